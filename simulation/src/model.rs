//! What the scheduler reads of the pretended model: a tokenizer whose tokens are bytes, so that characters and stop strings are cut in
//! every place.

use anyhow::Context;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use worker::fake::VOCAB;

/// Name under which it is served.
pub(crate) const NAME: &str = "fake";

/// A conversation is what was said in it.
const TEMPLATE: &str = "{% for message in messages %}{{ message.content }}{% endfor %}";

/// A model directory without a model. Token 0 ends a text; a third of the others are parts of characters.
///
/// # Errors
/// When a temporary directory cannot be written.
pub fn model_dir() -> anyhow::Result<TempDir> {
    let directory = tempfile::tempdir().context("no temporary directory")?;
    let vocab: Map<String, Value> =
        bytes().zip(1u32..).map(|(byte, id)| (byte_symbol(byte).to_string(), json!(id))).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let eos = json!({"id": 0, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [eos], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []},
    });
    let write = |name: &str, content: Value| std::fs::write(directory.path().join(name), content.to_string());
    write("tokenizer.json", tokenizer)?;
    write("tokenizer_config.json", json!({"eos_token": "<|end|>", "chat_template": TEMPLATE}))?;
    write("config.json", json!({"max_position_embeddings": worker::fake::MAX_MODEL_LEN}))?;
    Ok(directory)
}

/// The byte of each token but the first: letters, and what the characters é, € and 😀 are made of.
fn bytes() -> impl Iterator<Item = u8> {
    let parts = "é€😀".bytes().chain("è₭😁".bytes().skip(1));
    let mut seen = std::collections::BTreeSet::new();
    let bytes: Vec<u8> = parts.chain(b'A'..=b'z').filter(|byte| seen.insert(*byte)).collect();
    bytes.into_iter().take(VOCAB as usize - 1)
}

/// The printable character that byte-level tokenizers write for a byte.
fn byte_symbol(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&byte| !printable(byte)).count();
    char::from_u32(256 + before as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}
