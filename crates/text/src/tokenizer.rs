//! The model's tokenizer, loaded once and shared.

use std::path::Path;
use std::sync::Arc;

use types::TokenId;

use crate::Error;

/// A loaded `tokenizer.json`. Clones share it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model directory.
    pub fn load(model_dir: &Path) -> Result<Self, Error> {
        unimplemented!("{model_dir:?} {:?}", Arc::new(Inner {}))
    }
    /// Token ids of `text`; `add_special` adds what the model's post-processor adds (BOS mostly).
    pub fn encode(&self, _text: &str, _add_special: bool) -> Result<Vec<TokenId>, Error> {
        unimplemented!()
    }
    /// Text of all ids together; ids outside the vocabulary are skipped.
    pub fn decode(&self, _ids: &[TokenId], _skip_special: bool) -> String {
        unimplemented!()
    }
    /// One token as text, bytes that are no character shown as U+FFFD.
    pub fn token_text(&self, _id: TokenId) -> String {
        unimplemented!()
    }
    /// The bytes that one token adds in the middle of a text.
    pub fn token_bytes(&self, _id: TokenId) -> Vec<u8> {
        unimplemented!()
    }
    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        unimplemented!()
    }
    pub fn id_of(&self, _token: &str) -> Option<TokenId> {
        unimplemented!()
    }
    pub fn is_special(&self, _id: TokenId) -> bool {
        unimplemented!()
    }
}
impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inner")
    }
}
