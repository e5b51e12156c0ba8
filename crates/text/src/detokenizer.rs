//! Turns a stream of token ids into a stream of whole characters.
//!
//! The pieces that `push` and `finish` return, joined, always equal the decoding of all ids at once.

use std::sync::Arc;

use types::TokenId;

use crate::Tokenizer;
use crate::decoder::ChainState;

/// One choice's text so far. Clone it to fork a choice.
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Special tokens that are shown nevertheless.
    shown: Arc<[TokenId]>,
    state: ChainState,
}

impl Detokenizer {
    /// For a text that starts with the first pushed token: the pieces join to `tokenizer.decode(ids)`.
    pub fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { state: tokenizer.start(false), tokenizer, skip_special, shown: Arc::default() }
    }

    /// For the output after a prompt: as `new`, but the first word keeps its leading space, so that prompt and output join rightly.
    pub fn after_prompt(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { state: tokenizer.start(true), tokenizer, skip_special, shown: Arc::default() }
    }

    /// Shows these special tokens even when others are skipped, because they mean something to who reads the text.
    pub fn showing(self, shown: Arc<[TokenId]>) -> Self {
        Self { shown, ..self }
    }

    /// The text that is certain now; often one word, sometimes empty, never half a character.
    pub fn push(&mut self, id: TokenId) -> String {
        let skip_special = self.skip_special && !self.shown.contains(&id);
        self.tokenizer.push(&mut self.state, id, skip_special)
    }

    /// What was still held back; the stream is over.
    pub fn finish(&mut self) -> String {
        self.tokenizer.finish(&mut self.state)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::tests::{byte_level, from_json, llama2, llama2_with};

    /// Every kind of decoder that published tokenizers of our families have, and some of their relatives.
    static PAIRS: LazyLock<Vec<(Tokenizer, tokenizers::Tokenizer)>> =
        LazyLock::new(|| files().iter().map(|file| from_json(file)).collect());

    fn files() -> Vec<String> {
        vec![
            byte_level(),
            llama2(),
            llama2_with(r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":false}"#),
            llama2_with(r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"never","split":false}"#),
            llama2_with(
                r#"{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Metaspace","replacement":"▁","prepend_scheme":"always"}]}"#,
            ),
            llama2_with(
                r#"{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"},
                {"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"Strip","content":" ","start":2,"stop":0}]}"#,
            ),
            llama2_with(r##"{"type":"WordPiece","prefix":"re","cleanup":true}"##),
            llama2_with("null"),
        ]
    }

    /// The pieces of all ids; none holds half a character, which `String` guarantees.
    fn streamed(mut detokenizer: Detokenizer, ids: &[TokenId]) -> String {
        let mut text: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// Bytes of all kinds, and often enough the words and special tokens between them; some ids are outside the vocabulary.
    fn any_id() -> impl Strategy<Value = TokenId> {
        prop_oneof![3 => 0u32..280, 2 => 256u32..272, 1 => 0u32..3, 2 => prop::sample::select(vec![0xe4, 0xbd, 0xa0, 0xe7, 0xc0, 0xa3])]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn pieces_join_to_the_whole_decoding(ids in prop::collection::vec(any_id(), 0..40), skip_special: bool) {
            for (ours, theirs) in &*PAIRS {
                let expected = theirs.decode(&ids, skip_special).unwrap();
                prop_assert_eq!(streamed(Detokenizer::new(ours.clone(), skip_special), &ids), expected);
            }
        }

        #[test]
        fn output_after_a_prompt_is_the_rest_of_the_whole(prompt in "[a-z ]{1,20}", ids in prop::collection::vec(0u32..256, 0..40)) {
            let (ours, theirs) = &PAIRS[0];
            let mut all = ours.encode(&prompt, false).unwrap();
            all.extend(&ids);
            let whole = theirs.decode(&all, false).unwrap();
            prop_assert_eq!(format!("{prompt}{}", streamed(Detokenizer::after_prompt(ours.clone(), false), &ids)), whole);
        }
    }

    fn check(file: &str, tokens: &[&str], expected: &[&str]) {
        let (ours, _) = from_json(file);
        let mut detokenizer = Detokenizer::new(ours.clone(), true);
        let mut pieces: Vec<String> = tokens.iter().map(|token| detokenizer.push(ours.id_of(token).unwrap())).collect();
        pieces.push(detokenizer.finish());
        assert_eq!(pieces, expected, "{tokens:?}");
    }

    #[test]
    fn characters_come_whole_and_as_early_as_they_are_certain() {
        check(&byte_level(), &["ð", "Ł", "ĺ", "Ģ", "Ġhi"], &["", "", "", "😀", " hi", ""]);
        check(&byte_level(), &["ðŁ", "ĺĢ"], &["", "😀", ""]);
        check(&byte_level(), &["ð", "h"], &["", "\u{fffd}h", ""]);
        check(&byte_level(), &["h", "ð", "Ł"], &["h", "", "", "\u{fffd}"]);
        check(&byte_level(), &["h", "<|im_end|>", "日本"], &["h", "", "日本", ""]);
        check(&llama2(), &["▁hi", "▁the", "re"], &["hi", " the", "re", ""]);
        check(&llama2(), &["▁", "▁hi"], &["", " hi", ""]);
        check(&llama2(), &["<0xE4>", "<0xBD>", "<0xA0>", "a"], &["", "", "", "你a", ""]);
        check(
            &llama2(),
            &["<0xE4>", "<0xBD>", "<0xA0>", "<0xFF>"],
            &["", "", "", "", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"],
        );
    }

    #[test]
    fn the_first_word_after_a_prompt_keeps_its_space() {
        let (ours, _) = from_json(&llama2());
        let ids = [ours.id_of("▁hi").unwrap(), ours.id_of("▁the").unwrap()];
        assert_eq!(streamed(Detokenizer::new(ours.clone(), true), &ids), "hi the");
        assert_eq!(streamed(Detokenizer::after_prompt(ours, true), &ids), " hi the");
    }
}
