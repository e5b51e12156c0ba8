//! Turns a stream of token ids into a stream of whole characters.
//!
//! The pieces that `push` and `finish` return, joined, always equal the decoding of all ids at once.

use types::TokenId;

use crate::Tokenizer;

/// One choice's text so far. Clone it to fork a choice.
#[derive(Clone)]
pub struct Detokenizer {
    _tokenizer: Tokenizer,
}

impl Detokenizer {
    /// For a text that starts with the first pushed token: the pieces join to `tokenizer.decode(ids)`.
    pub fn new(tokenizer: Tokenizer, _skip_special: bool) -> Self {
        Self { _tokenizer: tokenizer }
    }
    /// For a text that continues a prompt: as `new`, but a leading space of the first word is kept.
    pub fn after_prompt(tokenizer: Tokenizer, _skip_special: bool) -> Self {
        Self { _tokenizer: tokenizer }
    }
    /// The text that is certain now; often one word, sometimes empty, never half a character.
    pub fn push(&mut self, _id: TokenId) -> String {
        unimplemented!()
    }
    /// What was still held back; the stream is over.
    pub fn finish(&mut self) -> String {
        unimplemented!()
    }
}
