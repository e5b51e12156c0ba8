//! The model's tokenizer, loaded once and shared.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tokenizers::Model as _;
use types::TokenId;

use crate::decoder::{Chain, ChainState};
use crate::words::Words;
use crate::{Detokenizer, Error};

/// The largest `tokenizer.json` that is read. The largest of a published model is below 40 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// How much shorter normalising may make a text: composed characters have up to three times fewer bytes.
const SHRINK_MAX: usize = 4;

/// A loaded `tokenizer.json`. Clones share it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    chain: Chain,
    /// Every token as it stands in the vocabulary.
    tokens: HashMap<TokenId, Token>,
    /// Where its texts can be encoded word by word.
    words: Option<Words>,
    vocab_size: usize,
    /// Bytes of the longest token, at least.
    token_bytes_max: usize,
}

struct Token {
    text: Box<str>,
    is_special: bool,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model directory.
    pub fn load(model_dir: &Path) -> Result<Self, Error> {
        let path = model_dir.join("tokenizer.json");
        let bytes = read_bounded(&path, FILE_BYTES_MAX)?;
        let parse_error = |reason: String| Error::Parse { path: path.clone(), reason };
        // The crate unwraps where a part has another shape than its type says; a broken file must not end the process.
        let parsed = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes));
        let tokenizer = parsed
            .map_err(|_| parse_error("a part of it has another shape than its type says".to_owned()))?
            .map_err(|error| parse_error(error.to_string()))?;
        Self::new(tokenizer)
    }

    fn new(mut tokenizer: tokenizers::Tokenizer) -> Result<Self, Error> {
        // Files may carry the training run's truncation and padding; a prompt must reach the model as it is.
        tokenizer.with_truncation(None).map_err(|error| Error::Encode(error.to_string()))?;
        tokenizer.with_padding(None);
        let chain = Chain::new(tokenizer.get_decoder())?;
        let vocab = tokenizer.get_vocab(true);
        let vocab_size = vocab.values().max().map_or(0, |id| *id as usize + 1);
        let token_bytes_max = vocab.keys().map(String::len).max().unwrap_or(0).max(1);
        let words = Words::new(&tokenizer);
        let tokens = vocab.values().filter_map(|&id| Some((id, Token::new(&tokenizer, id)?))).collect();
        Ok(Self(Arc::new(Inner { tokenizer, chain, tokens, words, vocab_size, token_bytes_max })))
    }

    /// Whether a text of so many bytes is more than `tokens` tokens, whatever it says: known without encoding it, which takes a hundred
    /// times the text's memory.
    pub fn is_more_than(&self, bytes: usize, tokens: u32) -> bool {
        bytes / SHRINK_MAX / self.0.token_bytes_max > tokens as usize
    }

    /// Token ids of `text`; `add_special` adds what the model's post-processor adds (BOS mostly).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, Error> {
        if let Some(words) = &self.0.words {
            return words.encode(&self.0.tokenizer, text, add_special);
        }
        let encoding =
            self.0.tokenizer.encode_fast(text, add_special).map_err(|error| Error::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of all ids together; ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        let mut detokenizer = Detokenizer::new(self.clone(), skip_special);
        let mut text: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// One token as text, bytes that are no character shown as U+FFFD.
    pub fn token_text(&self, id: TokenId) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// The bytes that one token adds in the middle of a text; empty outside the vocabulary.
    pub fn token_bytes(&self, id: TokenId) -> Vec<u8> {
        self.0.tokens.get(&id).map(|token| self.0.chain.bytes_of(token.text.clone().into())).unwrap_or_default()
    }

    /// One more than the highest id, added tokens included. The model's own vocabulary may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// The id of a token as it stands in the vocabulary, for example `</s>`.
    pub fn id_of(&self, token: &str) -> Option<TokenId> {
        self.0.tokenizer.token_to_id(token)
    }

    /// Whether `skip_special` leaves this token out.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.0.tokens.get(&id).is_some_and(|token| token.is_special)
    }

    pub(crate) fn start(&self, after_prompt: bool) -> ChainState {
        self.0.chain.start(after_prompt)
    }

    pub(crate) fn push(&self, state: &mut ChainState, id: TokenId, skip_special: bool) -> String {
        match self.0.tokens.get(&id) {
            Some(token) if !(skip_special && token.is_special) => self.0.chain.push(state, &token.text),
            _ => String::new(),
        }
    }

    pub(crate) fn finish(&self, state: &mut ChainState) -> String {
        self.0.chain.finish(state)
    }
}

impl Token {
    fn new(tokenizer: &tokenizers::Tokenizer, id: TokenId) -> Option<Self> {
        let added = tokenizer.get_added_vocabulary();
        let text = added.simple_id_to_token(id).or_else(|| tokenizer.get_model().id_to_token(id))?;
        Some(Self { is_special: added.is_special_token(&text), text: text.into() })
    }
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooBig { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::decoder::byte_char;

    /// A tokenizer from the JSON of a `tokenizer.json`, and the crate's own for comparison.
    pub(crate) fn from_json(json: &str) -> (Tokenizer, tokenizers::Tokenizer) {
        let theirs = tokenizers::Tokenizer::from_bytes(json).unwrap();
        (Tokenizer::new(theirs.clone()).unwrap(), theirs)
    }

    /// Byte-level BPE: all 256 bytes, a few merges, two special tokens and one plain added token that is no byte string.
    pub(crate) fn byte_level() -> String {
        let mut vocab: Vec<String> = (0..=255u8).map(|byte| byte_char(byte).to_string()).collect();
        let merges = [("h", "i"), ("Ġ", "hi"), ("Ã", "¤"), ("ä", "½"), ("ð", "Ł"), ("ĺ", "Ģ")];
        vocab.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
        let added = [("<|im_end|>", true), ("<|bos|>", true), ("日本", false)];
        file(
            &vocab,
            &merges,
            &added,
            r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#,
            true,
        )
    }

    /// Llama-2 style: sentencepiece words, byte tokens, a leading space that is stripped.
    pub(crate) fn llama2() -> String {
        let mut vocab: Vec<String> = vec!["<unk>".into(), "<s>".into(), "</s>".into()];
        vocab.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
        vocab.extend(["▁", "▁hi", "▁the", "re", "a", "é", "▁▁", "日", "<0x4", "<0xZZ>", "h", "i"].map(String::from));
        let added = [("<unk>", true), ("<s>", true), ("</s>", true)];
        let decoder = r#"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
            {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}"#;
        file(&vocab, &[], &added, decoder, false)
    }

    /// The same vocabulary with another decoder.
    pub(crate) fn llama2_with(decoder: &str) -> String {
        let mut json: serde_json::Value = serde_json::from_str(&llama2()).unwrap();
        json["decoder"] = serde_json::from_str(decoder).unwrap();
        json.to_string()
    }

    fn file(
        vocab: &[String],
        merges: &[(&str, &str)],
        added: &[(&str, bool)],
        decoder: &str,
        byte_level: bool,
    ) -> String {
        let ids: serde_json::Map<_, _> =
            vocab.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
        let added = added.iter().scan(vocab.len(), |next, (content, special)| {
            let id = ids.get(*content).and_then(|id| id.as_u64()).unwrap_or_else(|| {
                *next += 1;
                *next as u64 - 1
            });
            Some(serde_json::json!({ "id": id, "content": content, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false }))
        });
        let added: Vec<_> = added.collect();
        let merges: Vec<_> = merges.iter().map(|(left, right)| serde_json::json!([left, right])).collect();
        let pre = byte_level.then(|| serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }));
        serde_json::json!({
            "version": "1.0", "truncation": { "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0 },
            "padding": null, "added_tokens": added, "normalizer": null, "pre_tokenizer": pre, "post_processor": null,
            "decoder": serde_json::from_str::<serde_json::Value>(decoder).unwrap(),
            "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": !byte_level, "vocab": ids, "merges": merges }
        })
        .to_string()
    }

    #[test]
    fn ids_and_text_go_both_ways_without_truncation() {
        let (tokenizer, _) = from_json(&byte_level());
        let text = "hi hi, wie geht's? äöü 你好 😀<|im_end|>日本";
        let ids = tokenizer.encode(text, true).unwrap();
        assert!(ids.len() > 4);
        assert_eq!(tokenizer.decode(&ids, false), text);
        assert_eq!(tokenizer.decode(&ids, true), text.replace("<|im_end|>", ""));
    }

    #[test]
    fn single_tokens() {
        let (tokenizer, _) = from_json(&byte_level());
        let end = tokenizer.id_of("<|im_end|>").unwrap();
        assert!(tokenizer.is_special(end));
        assert!(!tokenizer.is_special(tokenizer.id_of("日本").unwrap()));
        assert_eq!(tokenizer.token_text(end), "<|im_end|>");
        assert_eq!(tokenizer.token_text(tokenizer.id_of("Ġhi").unwrap()), " hi");
        assert_eq!(tokenizer.token_bytes(tokenizer.id_of("ð").unwrap()), [0xf0]);
        assert_eq!(tokenizer.token_text(tokenizer.id_of("ð").unwrap()), "\u{fffd}");
        assert_eq!(tokenizer.token_bytes(1_000_000), Vec::<u8>::new());
        assert!(!tokenizer.is_special(u32::MAX));
        assert_eq!(tokenizer.vocab_size(), 256 + 6 + 3);
        let (tokenizer, _) = from_json(&llama2());
        assert_eq!(tokenizer.token_bytes(tokenizer.id_of("<0xE4>").unwrap()), [0xe4]);
        assert_eq!(tokenizer.token_text(tokenizer.id_of("▁hi").unwrap()), " hi");
    }

    #[test]
    fn files_are_bounded_and_errors_name_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let error = |dir: &Path| Tokenizer::load(dir).err().unwrap().to_string();
        assert!(error(dir.path()).starts_with(&format!("{}: cannot be read", path.display())));
        std::fs::write(&path, "{\"version\": 1}").unwrap();
        assert!(error(dir.path()).starts_with(&path.display().to_string()));
        std::fs::write(&path, byte_level()).unwrap();
        assert!(Tokenizer::load(dir.path()).is_ok());
        assert!(matches!(read_bounded(&path, 10), Err(Error::TooBig { limit: 10, .. })));
    }
}
