//! What is known of the pretended model: a tokenizer whose tokens are bytes, so that characters, stop strings and structured output are
//! cut in every place, and the forms of text that requests may ask for.

use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use text::{Grammars, Matcher, Tokenizer};
use types::Grammar;
use worker::fake::VOCAB;

/// Name under which it is served.
pub(crate) const NAME: &str = "fake";

/// A conversation is what was said in it.
const TEMPLATE: &str = "{% for message in messages %}{{ message.content }}{% endfor %}";

/// A form of text that a request may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Objects within objects: whoever begins anew in the middle nests what should not be nested.
    Schema,
    /// Characters of several tokens.
    Regex,
    /// Brackets within brackets, of which only a stack knows how many are open.
    Nested,
}

impl Form {
    pub(crate) const ALL: [Self; 3] = [Self::Schema, Self::Regex, Self::Nested];

    /// The field that asks for it.
    pub(crate) fn field(self) -> (&'static str, Value) {
        match self {
            Self::Schema => (
                "guided_json",
                json!({"type": "object", "additionalProperties": false, "properties": {
                    "A": {"$ref": "#"}, "B": {"type": "array", "items": {"enum": ["é", "€C", "DE"]}}, "F": {"type": "string"},
                }}),
            ),
            Self::Regex => ("guided_regex", json!("((é|€|😀){1,3}[A-H]+,)+J?")),
            Self::Nested => ("guided_grammar", json!("start: list\nlist: \"[\" (WORD | list)* \"]\"\nWORD: /[A-H]€?/")),
        }
    }

    fn grammar(self) -> Grammar {
        let text = |value: Value| value.as_str().unwrap_or_default().into();
        match (self, self.field().1) {
            (Self::Schema, schema) => Grammar::JsonSchema(schema.to_string().into()),
            (Self::Regex, regex) => Grammar::Regex(text(regex)),
            (Self::Nested, grammar) => Grammar::Lark(text(grammar)),
        }
    }
}

/// What all hosts and clients know of it. Grammars are compiled beforehand: a compilation takes a time that is no simulated one.
pub struct Model {
    directory: TempDir,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) grammars: Grammars,
}

impl Model {
    /// # Errors
    /// When a temporary directory cannot be written.
    pub fn new() -> anyhow::Result<Self> {
        let directory = model_dir()?;
        let tokenizer = Tokenizer::load(directory.path())?;
        let grammars = Grammars::new(tokenizer.clone());
        for form in Form::ALL {
            grammars.compile(&form.grammar()).with_context(|| format!("{form:?}"))?;
        }
        Ok(Self { directory, tokenizer, grammars })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// At the beginning of a text of this form.
    pub(crate) fn matcher(&self, form: Form) -> Matcher {
        let known = self.grammars.known(&form.grammar());
        known.and_then(Result::ok).expect("every form was compiled and stays known")
    }
}

/// A model directory without a model. Token 0 ends a text; a third of the others are parts of characters.
fn model_dir() -> anyhow::Result<TempDir> {
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

/// The byte of each token but the first: what the characters é, € and 😀 are made of, what JSON is written with, letters.
fn bytes() -> impl Iterator<Item = u8> {
    let parts = "é€😀".bytes().chain("è₭😁".bytes().skip(1));
    let mut seen = std::collections::BTreeSet::new();
    let bytes: Vec<u8> = parts.chain(*b"{}[]:,\"").chain(b'A'..=b'z').filter(|byte| seen.insert(*byte)).collect();
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
