//! Encodes texts word by word and remembers words, where it is known how the tokenizer cuts its texts.
//!
//! ```text
//! text -> added tokens, and what lies between -> ASCII, and stretches with other characters -> words -> ids
//! ```
//! The ids are those of the `tokenizers` crate, which looks at every text with a regular expression and keeps track of each byte's
//! origin; here most words are found in a table. What the table does not know, and every stretch with characters beyond ASCII, is
//! encoded by the crate and remembered. A tokenizer of another kind than these is left to the crate altogether.

mod added;
mod cut;
mod known;

use tokenizers::{Model as _, NormalizerWrapper};
use types::TokenId;

use crate::Error;
use crate::decoder::byte_char;
use added::Added;
use cut::Cut;
use known::Known;

/// A tokenizer that is of the known kind must prove it on this text.
const SAMPLE: &str =
    "It's 12345 o'clock,\tI'LL say:  \"ä déjà-vu 你好 😀!?\" \r\n\n  (x+y)=z; don't\u{a0}you've é a  b\n";

/// How one tokenizer's texts are encoded, and the words that it has met.
pub(crate) struct Words {
    cut: Cut,
    added: Added,
    /// What the post-processor puts around a text.
    before: Vec<TokenId>,
    after: Vec<TokenId>,
    /// The vocabulary's character for each byte.
    chars: [char; 256],
    known: Known,
}

impl Words {
    /// `None`: not of the known kind.
    pub(crate) fn new(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        // Composing characters changes no ASCII.
        if !matches!(tokenizer.get_normalizer(), None | Some(NormalizerWrapper::NFC(_))) {
            return None;
        }
        let cut = Cut::of(&serde_json::to_value(tokenizer.get_pre_tokenizer()?).ok()?)?;
        let added = Added::new(tokenizer.get_added_vocabulary().get_added_tokens_decoder())?;
        let (before, after) = around(tokenizer)?;
        let chars = std::array::from_fn(|byte| byte_char(byte as u8));
        let words = Self { cut, added, before, after, chars, known: Known::default() };
        let proven = [false, true].into_iter().all(|add_special| {
            let theirs = tokenizer.encode_fast(SAMPLE, add_special).ok();
            theirs.is_some_and(|ids| words.encode(tokenizer, SAMPLE, add_special).is_ok_and(|own| own == ids.get_ids()))
        });
        proven.then_some(words)
    }

    /// `tokenizer` is the one that this was made of.
    pub(crate) fn encode(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        add_special: bool,
    ) -> Result<Vec<TokenId>, Error> {
        // About as many as there will be: four bytes to a token.
        let mut ids = Vec::with_capacity(text.len() / 4 + self.before.len() + self.after.len());
        if add_special {
            ids.extend(&self.before);
        }
        let mut from = 0;
        while let Some((start, end, id)) = self.added.find(text.as_bytes(), from) {
            self.between(tokenizer, &text[from..start], &mut ids)?;
            ids.push(id);
            from = end;
        }
        self.between(tokenizer, &text[from..], &mut ids)?;
        if add_special {
            ids.extend(&self.after);
        }
        Ok(ids)
    }

    /// A text without added tokens.
    fn between(&self, tokenizer: &tokenizers::Tokenizer, text: &str, ids: &mut Vec<TokenId>) -> Result<(), Error> {
        let mut from = 0;
        while let Some(odd) = text.as_bytes()[from..].iter().position(|byte| !byte.is_ascii()) {
            let odd = from + odd;
            let is_seam = |at: &usize| is_seam(text.as_bytes(), *at);
            let start = (from + 1..odd).rev().find(is_seam).unwrap_or(from);
            let end = (odd + 1..text.len()).find(is_seam).unwrap_or(text.len());
            self.ascii(tokenizer, &text[from..start], ids)?;
            self.remembered(&text[start..end], ids, |stretch| {
                Ok(tokenizer.encode_fast(stretch, false)?.get_ids().to_vec())
            })?;
            from = end;
        }
        self.ascii(tokenizer, &text[from..], ids)
    }

    fn ascii(&self, tokenizer: &tokenizers::Tokenizer, text: &str, ids: &mut Vec<TokenId>) -> Result<(), Error> {
        let mut from = 0;
        while from < text.len() {
            let end = self.cut.end(text.as_bytes(), from);
            self.remembered(&text[from..end], ids, |word| {
                let mapped: String = word.bytes().map(|byte| self.chars[usize::from(byte)]).collect();
                Ok(tokenizer.get_model().tokenize(&mapped)?.into_iter().map(|token| token.id).collect())
            })?;
            from = end;
        }
        Ok(())
    }

    fn remembered(
        &self,
        word: &str,
        ids: &mut Vec<TokenId>,
        encode: impl FnOnce(&str) -> tokenizers::Result<Vec<TokenId>>,
    ) -> Result<(), Error> {
        if let Some(known) = self.known.get(word.as_bytes()) {
            ids.extend_from_slice(known);
            return Ok(());
        }
        let found = encode(word).map_err(|error| Error::Encode(error.to_string()))?;
        self.known.put(word.as_bytes(), &found);
        ids.extend(found);
        Ok(())
    }
}

/// Whether every such tokenizer cuts in front of this byte, whatever else the text says: a space behind something and in front of a
/// letter, all of them ASCII.
fn is_seam(text: &[u8], at: usize) -> bool {
    text[at] == b' '
        && at.checked_sub(1).is_some_and(|before| text[before].is_ascii_graphic())
        && text.get(at + 1).is_some_and(u8::is_ascii_alphabetic)
}

/// What stands before and behind the tokens of every text.
fn around(tokenizer: &tokenizers::Tokenizer) -> Option<(Vec<TokenId>, Vec<TokenId>)> {
    let encode = |add_special| Some(tokenizer.encode_fast("a", add_special).ok()?.get_ids().to_vec());
    let (bare, whole) = (encode(false)?, encode(true)?);
    let mut places = whole.windows(bare.len().max(1)).enumerate().filter(|(_, ids)| *ids == bare);
    let (at, _) = places.next()?;
    places.next().is_none().then(|| (whole[..at].to_vec(), whole[at + bare.len()..].to_vec()))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::tokenizer::tests::byte_level;

    /// One of each kind that is known, with a vocabulary in which neighbours matter.
    static TOKENIZERS: LazyLock<Vec<(Words, tokenizers::Tokenizer)>> = LazyLock::new(|| {
        let normalizers = [Value::Null, json!({ "type": "NFC" })];
        let kinds =
            cut::PATTERNS.iter().flat_map(|(pattern, _)| normalizers.iter().map(move |nfc| (Some(*pattern), nfc)));
        kinds.chain([(None, &Value::Null)]).map(|(pattern, normalizer)| known(tokenizer(pattern, normalizer))).collect()
    });

    fn known(tokenizer: tokenizers::Tokenizer) -> (Words, tokenizers::Tokenizer) {
        (Words::new(&tokenizer).unwrap(), tokenizer)
    }

    fn tokenizer(pattern: Option<&str>, normalizer: &Value) -> tokenizers::Tokenizer {
        let mut file: Value = serde_json::from_str(&byte_level()).unwrap();
        file["truncation"] = Value::Null;
        file["normalizer"] = normalizer.clone();
        if let Some(pattern) = pattern {
            let split =
                json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
            let bytes =
                json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
            file["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [split, bytes] });
        }
        tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap()
    }

    fn check(text: &str) {
        for (words, tokenizer) in TOKENIZERS.iter() {
            for add_special in [false, true] {
                let theirs = tokenizer.encode(text, add_special).unwrap();
                // The second time from memory.
                for _ in 0..2 {
                    assert_eq!(words.encode(tokenizer, text, add_special).unwrap(), theirs.get_ids(), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn every_kind_is_known() {
        assert_eq!(TOKENIZERS.len(), 2 * cut::PATTERNS.len() + 1);
        for text in [SAMPLE, "", " ", "\n", "a", "\r\n\r\n x", "<|im_end|>", "a<|im_end|>日本\u{301}<|bos|> b <|im_en"]
        {
            check(text);
        }
    }

    #[test]
    fn other_kinds_are_left_to_the_crate() {
        let file = |change: &dyn Fn(&mut Value)| {
            let mut file: Value = serde_json::from_str(&byte_level()).unwrap();
            file["truncation"] = Value::Null;
            change(&mut file);
            Words::new(&tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap()).is_some()
        };
        assert!(file(&|_| {}));
        assert!(!file(&|file| file["normalizer"] = json!({ "type": "Lowercase" })));
        assert!(!file(&|file| file["pre_tokenizer"]["add_prefix_space"] = true.into()));
        assert!(!file(&|file| file["pre_tokenizer"]["use_regex"] = false.into()));
        assert!(!file(&|file| file["pre_tokenizer"] = Value::Null));
        assert!(!file(&|file| file["added_tokens"][0]["lstrip"] = true.into()));
        assert!(!file(&|file| file["added_tokens"][0]["normalized"] = true.into()));
    }

    #[test]
    fn every_two_ascii_characters_are_cut_as_by_the_crate() {
        let ascii = || (0..128u8).map(char::from);
        for first in ascii() {
            check(&ascii().flat_map(|second| [first, second, 'a', ' ', first, second, '1']).collect::<String>());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn ids_are_those_of_the_crate(text in "([a-cS' \t\r\n.1é\u{301}😀\u{a0}]|hi|'ll|'RE|<|im_end|>|日本|  |d e){0,40}") {
            check(&text);
        }

        #[test]
        fn ids_are_those_of_the_crate_for_any_text(text in "(\\PC|[ -~]| [a-z]|\\s){0,60}") {
            check(&text);
        }
    }
}
