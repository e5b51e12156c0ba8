//! What lies in a model directory or is a rank table: the operator's files, which may be broken or somebody else's.

use std::cell::RefCell;
use std::path::Path;

use engine::{Engine, EngineConfig, ModelConfig};
use ranktable::{GlobalRankTable, HostRankTable, LocalRankTable, NodePorts};
use tempfile::TempDir;
use text::{ChatTemplate, Message, RenderOptions, Tokenizer};

thread_local! {
    static DIRECTORY: RefCell<TempDir> = RefCell::new(tempfile::tempdir().expect("a temporary directory"));
}

/// Calls `with` on a directory that holds these files.
fn with_files<T>(files: &[(&str, &[u8])], with: impl FnOnce(&Path) -> T) -> T {
    DIRECTORY.with_borrow(|directory| {
        for (name, bytes) in files {
            std::fs::write(directory.path().join(name), bytes).expect("the temporary directory can be written");
        }
        with(directory.path())
    })
}

/// The same text as every kind of table; what is taken says the same when it is written and read again.
pub(crate) fn rank_table(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let global = GlobalRankTable::parse("fuzz", text);
    let host = HostRankTable::parse("fuzz", text);
    let local = LocalRankTable::parse("fuzz", text);
    GlobalRankTable::problems("fuzz", text);
    let ports = NodePorts::parse(text).is_ok();
    if let Ok(table) = &global {
        let again = GlobalRankTable::parse("fuzz", &table.to_json()).expect("what we write we can read");
        assert_eq!(again.hash(), table.hash());
        table.local_tables();
        ranktable::instances(table);
    }
    global.is_ok() || host.is_ok() || local.is_ok() || ports
}

pub(crate) fn rank_table_examples() -> Vec<Vec<u8>> {
    let tables = [
        &include_bytes!("../../../ranktable-tool/tests/golden/1p1d-tp2/global_ranktable_10.0.0.18.json")[..],
        include_bytes!("../../../ranktable-tool/tests/golden/1p1d-tp2/local_ranktable_10.0.0.18_45.json"),
        include_bytes!("../../../ranktable-tool/tests/golden/1p1d-tp2/local_ranktable_10.0.0.18_host.json"),
        include_bytes!("../../../ranktable-tool/tests/golden/two-hosts-merged/global_ranktable_merge.json"),
        b"8001,8002,8003",
    ];
    tables.map(<[u8]>::to_vec).into()
}

pub(crate) fn chat_template(bytes: &[u8]) -> bool {
    let template = with_files(&[("chat_template.jinja", bytes)], ChatTemplate::load);
    let Ok(Some(template)) = template else { return false };
    let message = |role: &str| Message { role: role.into(), content: Some("Hi é".into()), ..Message::default() };
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    template.render(&[message("system"), message("user"), message("assistant"), message("user")], &options).is_ok()
}

pub(crate) fn template_examples() -> Vec<Vec<u8>> {
    let templates = [
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}",
        "{{ bos_token }}{%- for m in messages if m['role'] != 'system' %}{{ '<|' + m.role + '|>' ~ m.content | trim }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}",
        "{% macro show(m, depth=0) %}{{ m.content[0:3] }}{% if depth < 3 %}{{ show(m, depth + 1) }}{% endif %}{% endmacro %}{% for m in messages %}{{ show(m) }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if loop.first %}{{ m | tojson }}{% endif %}{% endfor %}{{ ns.n }}{{ strftime_now('%Y') }}",
    ];
    templates.iter().map(|template| template.as_bytes().to_vec()).collect()
}

pub(crate) fn tokenizer(bytes: &[u8]) -> bool {
    let Ok(tokenizer) = with_files(&[("tokenizer.json", bytes)], Tokenizer::load) else { return false };
    let Ok(ids) = tokenizer.encode("Hello, wörld! <|end|>\n", true) else { return true };
    tokenizer.decode(&ids, true);
    (0..64).for_each(|id| drop((tokenizer.token_text(id), tokenizer.is_special(id))));
    true
}

pub(crate) fn tokenizer_examples() -> Vec<Vec<u8>> {
    let byte_level = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":4,"content":"<|end|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false},"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"H":0,"e":1,"l":2,"ll":3},"merges":["l l"]}}"#;
    let metaspace = r#"{"version":"1.0","added_tokens":[],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"_"},{"type":"Replace","pattern":{"String":" "},"content":"_"}]},"pre_tokenizer":null,"post_processor":null,"decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},"model":{"type":"BPE","dropout":null,"unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{"<unk>":0,"<0x0A>":1,"_":2,"H":3},"merges":[]}}"#;
    [byte_level, metaspace].map(|json| json.as_bytes().to_vec()).into()
}

pub(crate) fn model_config(bytes: &[u8]) -> bool {
    with_files(&[("config.json", bytes)], ModelConfig::load).is_ok()
}

pub(crate) fn config_examples() -> Vec<Vec<u8>> {
    let configs = [
        &include_bytes!("../../../tests/golden/llama/config.json")[..],
        include_bytes!("../../../tests/golden/qwen3/config.json"),
        include_bytes!("../../../tests/golden/llama3-rope/config.json"),
    ];
    configs.map(<[u8]>::to_vec).into()
}

/// A file of weights beside a configuration that is as it should be.
pub(crate) fn weights(bytes: &[u8]) -> bool {
    let config = &include_bytes!("../../../tests/golden/llama/config.json")[..];
    with_files(&[("config.json", config), ("model.safetensors", bytes)], |directory| {
        let config = EngineConfig {
            model_dir: directory.to_owned(),
            tensor_parallel_size: 1,
            threads: 1,
            block_size: 16,
            quantization: None,
            pack_cache: None,
            kv_dtype: None,
            kv_bytes: Some(1 << 20),
            max_model_len: Some(64),
            max_num_seqs: 2,
            max_num_batched_tokens: 64,
        };
        Engine::load(&config, &mut |_| {}).is_ok()
    })
}

pub(crate) fn weights_examples() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../../tests/golden/llama/model.safetensors").to_vec()]
}
