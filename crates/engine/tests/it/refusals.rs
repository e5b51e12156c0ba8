//! Everything that loading and stepping refuse, with the exact words.

use std::path::Path;

use crate::support::{changed_llama, config, golden, load};
use engine::{Batch, BatchRow, Engine, EngineConfig, ModelConfig, NoObserver, Probe};
use kv::BlockId;
use serde_json::{Value, json};

fn refusal(config: &EngineConfig) -> String {
    load(config).err().map_or_else(|| "accepted".to_owned(), |error| error.to_string())
}

/// The refusal of a model directory, with `DIR` for its path.
fn refusal_of(dir: &Path) -> String {
    refusal(&config(dir)).replace(&dir.display().to_string(), "DIR")
}

#[test]
fn configs_that_we_cannot_follow() {
    let architectures = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM";
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
        "original_max_position_embeddings": 32});
    let cases: &[(&str, Value, &str)] = &[
        (
            "architectures",
            json!(["GPT2LMHeadModel"]),
            &format!("`architectures` is [\"GPT2LMHeadModel\"], supported: {architectures}"),
        ),
        ("architectures", Value::Null, &format!("`architectures` is missing, supported: {architectures}")),
        ("hidden_act", json!("gelu"), "`hidden_act` is \"gelu\", supported: silu"),
        (
            "quantization_config",
            json!({"quant_method": "awq"}),
            "`quantization_config` is {\"quant_method\":\"awq\"}, supported: bf16, f16 and f32 weights without quantization",
        ),
        ("hidden_size", Value::Null, "`hidden_size` is missing, supported: 1 to 1048576"),
        ("hidden_size", json!(-64), "`hidden_size` is -64, supported: 1 to 1048576"),
        ("hidden_size", json!("64"), "`hidden_size` is \"64\", supported: 1 to 1048576"),
        (
            "hidden_size",
            json!(66),
            "`hidden_size` is 66, supported: a multiple of num_attention_heads (4), or a head_dim",
        ),
        ("head_dim", json!(15), "`head_dim` is 15, supported: an even head size, and at most 1048576 over all heads"),
        ("num_hidden_layers", json!(1e9), "`num_hidden_layers` is 1000000000.0, supported: 1 to 1024"),
        (
            "num_key_value_heads",
            json!(3),
            "`num_key_value_heads` is 3, supported: a divisor of num_attention_heads (4)",
        ),
        ("num_key_value_heads", json!(8), "`num_key_value_heads` is 8, supported: 1 to 4"),
        ("vocab_size", json!(99_999_999), "`vocab_size` is 99999999, supported: 1 to 16777216"),
        ("rms_norm_eps", json!(0), "`rms_norm_eps` is 0, supported: a number above 0"),
        ("rope_theta", json!("big"), "`rope_theta` is \"big\", supported: a number above 0"),
        (
            "rope_scaling",
            json!({"rope_type": "yarn"}),
            "`rope_scaling.rope_type` is \"yarn\", supported: default, llama3",
        ),
        ("rope_scaling", json!({"type": "linear"}), "`rope_scaling.type` is \"linear\", supported: default, llama3"),
        ("rope_scaling", json!({"factor": 2.0}), "`rope_scaling.rope_type` is missing, supported: default, llama3"),
        ("rope_scaling", json!(2), "`rope_scaling` is 2, supported: an object or null"),
        (
            "rope_scaling",
            json!({"rope_type": "llama3"}),
            "`rope_scaling.factor` is missing, supported: a number above 0",
        ),
        ("rope_scaling", llama3, "`rope_scaling.high_freq_factor` is 1.0, supported: more than low_freq_factor"),
        (
            "rope_parameters",
            json!({"rope_type": "longrope"}),
            "`rope_parameters.rope_type` is \"longrope\", supported: default, llama3",
        ),
        ("partial_rotary_factor", json!(0.5), "`partial_rotary_factor` is 0.5, supported: 1"),
        ("tie_word_embeddings", json!("no"), "`tie_word_embeddings` is \"no\", supported: true or false"),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "`layer_types` is [\"full_attention\",\"sliding_attention\"], supported: full_attention in every layer",
        ),
        ("eos_token_id", json!([1, -2]), "`eos_token_id` is [1,-2], supported: a token id or a list of them"),
    ];
    for (key, value, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        changed_llama(dir.path(), key, value.clone());
        assert_eq!(refusal_of(dir.path()), format!("DIR/config.json: {expected}"));
    }
}

#[test]
fn weights_that_do_not_fit_the_config() {
    let cases: &[(&str, Value, &str)] = &[
        (
            "vocab_size",
            json!(129),
            "tensor `model.embed_tokens.weight` is f32 [128, 64], expected bf16, f16 or f32 [129, 64]",
        ),
        (
            "intermediate_size",
            json!(97),
            "tensor `model.layers.0.mlp.gate_proj.weight` is f32 [96, 64], expected bf16, f16 or f32 [97, 64]",
        ),
        (
            "num_hidden_layers",
            json!(3),
            "tensor `model.layers.2.input_layernorm.weight` is missing, expected bf16, f16 or f32 [64]",
        ),
        (
            "attention_bias",
            json!(true),
            "tensor `model.layers.0.self_attn.q_proj.bias` is missing, expected bf16, f16 or f32 [64]",
        ),
    ];
    for (key, value, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        changed_llama(dir.path(), key, value.clone());
        assert_eq!(refusal_of(dir.path()), format!("DIR/model.safetensors: {expected}"));
    }
}

#[test]
fn files_that_are_missing_or_damaged() {
    type Damage = fn(&Path);
    let cases: &[(&str, Damage)] = &[
        ("DIR/config.json: No such file or directory (os error 2)", |dir| {
            std::fs::remove_file(dir.join("config.json")).unwrap();
        }),
        ("DIR/config.json: not JSON: EOF while parsing an object at line 1 column 1", |dir| {
            std::fs::write(dir.join("config.json"), "{").unwrap();
        }),
        ("DIR/config.json: not a JSON object", |dir| std::fs::write(dir.join("config.json"), "[]").unwrap()),
        ("DIR/model.safetensors: No such file or directory (os error 2)", |dir| {
            std::fs::remove_file(dir.join("model.safetensors")).unwrap();
        }),
        ("DIR/model.safetensors: not safetensors: ", |dir| {
            std::fs::write(dir.join("model.safetensors"), "short").unwrap()
        }),
        ("DIR/model.safetensors: not safetensors: ", |dir| {
            std::fs::write(dir.join("model.safetensors"), [u64::MAX.to_le_bytes(), [b'{'; 8]].concat()).unwrap();
        }),
        ("DIR/model.safetensors: not safetensors: ", |dir| {
            let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
            std::fs::write(dir.join("model.safetensors"), &bytes[..bytes.len() - 4]).unwrap();
        }),
        ("DIR/generation_config.json: `eos_token_id` is \"2\", supported: a token id or a list of them", |dir| {
            std::fs::write(dir.join("generation_config.json"), json!({"eos_token_id": "2"}).to_string()).unwrap();
        }),
        (
            "DIR/model.safetensors.index.json: `weight_map` is \"../model.safetensors\", supported: names of files beside the index",
            |dir| {
                std::fs::remove_file(dir.join("model.safetensors")).unwrap();
                let index = json!({"weight_map": {"a": "../model.safetensors"}}).to_string();
                std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
            },
        ),
    ];
    for (expected, damage) in cases {
        let dir = tempfile::tempdir().unwrap();
        changed_llama(dir.path(), "use_cache", json!(true));
        damage(dir.path());
        let found = refusal_of(dir.path());
        assert!(found.starts_with(expected), "{found}\nexpected {expected}");
    }
}

#[test]
fn options_that_do_not_fit_model_or_machine() {
    let base = config(&golden("llama"));
    let check = |config: EngineConfig, expected: &str| assert_eq!(refusal(&config), expected);
    let divides = "it must be a power of two, at most 8, that divides the model's 2 kv heads";
    for ranks in [0, 3, 4, 16] {
        let config = EngineConfig { tensor_parallel_size: ranks, ..base.clone() };
        check(config, &format!("tensor_parallel_size is {ranks}: {divides}"));
    }
    check(EngineConfig { block_size: 4, ..base.clone() }, "block_size is 4: supported: 8 to 128 tokens");
    check(EngineConfig { block_size: 129, ..base.clone() }, "block_size is 129: supported: 8 to 128 tokens");
    check(EngineConfig { max_num_seqs: 0, ..base.clone() }, "max_num_seqs is 0: it must be at least 1");
    check(
        EngineConfig { max_model_len: Some(257), ..base.clone() },
        "max_model_len is 257: the model's max_position_embeddings is 256",
    );
}

#[test]
fn batches_that_cannot_be_computed() {
    let (mut engine, _) = load(&config(&golden("llama"))).unwrap();
    let total = engine.limits().blocks_total;
    let blocks: Vec<BlockId> = (0..16).map(BlockId).collect();
    let foreign = [BlockId(0), BlockId(total)];
    let row = |tokens: &'static [u32], start, blocks: &'static [BlockId]| BatchRow {
        tokens,
        start,
        blocks,
        samples: Vec::new(),
        probe: Probe::None,
    };
    let (blocks, foreign): (&'static [BlockId], &'static [BlockId]) = (blocks.leak(), foreign.to_vec().leak());
    let cases: Vec<(Vec<BatchRow<'_>>, String)> = vec![
        (vec![], "batch row 0: the batch has no rows".to_owned()),
        (vec![row(&[1], 0, blocks), row(&[], 0, blocks)], "batch row 1: no tokens".to_owned()),
        (vec![row(&[1; 10], 250, blocks)], "batch row 0: ends at position 260, max_model_len is 256".to_owned()),
        (
            vec![row(&[1], u32::MAX, blocks)],
            "batch row 0: ends at position 4294967296, max_model_len is 256".to_owned(),
        ),
        (vec![row(&[1, 128], 0, blocks)], "batch row 0: token 128 of a vocabulary of 128".to_owned()),
        (vec![row(&[1; 17], 0, &blocks[..1])], "batch row 0: 1 blocks of 16 tokens for 17 positions".to_owned()),
        (vec![row(&[1; 17], 0, foreign)], format!("batch row 0: block {total} of {total}")),
        (vec![row(&[1], 0, blocks); 9], "batch row 8: 9 rows, max_num_seqs is 8".to_owned()),
        (
            vec![row(&[1; 200], 0, blocks); 2],
            "batch row 1: more than max_num_batched_tokens (256) tokens in the batch".to_owned(),
        ),
    ];
    for (rows, expected) in cases {
        let found = engine.step(&Batch { rows }, &NoObserver).err().map(|error| error.to_string());
        assert_eq!(found, Some(expected));
    }
    // A block that is not needed yet may be anything, and the engine still works after refusals.
    assert!(engine.step(&Batch { rows: vec![row(&[1; 16], 0, foreign)] }, &NoObserver).is_ok());
}

#[test]
fn eos_ids_come_from_either_file() {
    let dir = tempfile::tempdir().unwrap();
    changed_llama(dir.path(), "eos_token_id", json!([5, 6]));
    assert_eq!(ModelConfig::load(dir.path()).unwrap().eos_token_ids, [5, 6]);
    for (generation, expected) in
        [(json!({"eos_token_id": 9}), vec![9]), (json!({"eos_token_id": [9, 8]}), vec![9, 8]), (json!({}), vec![5, 6])]
    {
        std::fs::write(dir.path().join("generation_config.json"), generation.to_string()).unwrap();
        assert_eq!(ModelConfig::load(dir.path()).unwrap().eos_token_ids, expected);
    }
    changed_llama(dir.path(), "eos_token_id", Value::Null);
    assert_eq!(ModelConfig::load(dir.path()).unwrap().eos_token_ids, Vec::<u32>::new());
}

/// Two spellings of one model are one model; another number or another weight is another.
#[test]
fn the_digest_tells_models_apart() {
    let identity = |dir: &Path| Engine::load(&config(dir), &mut |_| ()).unwrap().identity().clone();
    let changed = |key: &str, value: Value| {
        let dir = tempfile::tempdir().unwrap();
        changed_llama(dir.path(), key, value);
        identity(dir.path())
    };
    let base = identity(&golden("llama"));
    assert_eq!(changed("torch_dtype", json!("float16")), base);
    assert_eq!(changed("rope_parameters", json!({"rope_theta": 10000.0, "rope_type": "default"})), base);
    assert_eq!(base.rope, "theta=10000");
    let other = changed("rope_theta", json!(500_000.0));
    assert_ne!(other.digest, base.digest);
    assert_ne!(changed("rms_norm_eps", json!(1e-5)).digest, base.digest);
    let dir = tempfile::tempdir().unwrap();
    changed_llama(dir.path(), "use_cache", json!(true));
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_ne!(identity(dir.path()).digest, base.digest);
}
