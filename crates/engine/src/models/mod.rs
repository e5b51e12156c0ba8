//! What a model is, read from its directory.

use std::path::Path;

use types::TokenId;

use crate::Error;

/// `config.json` and `generation_config.json`, checked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelConfig {
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: u32,
    pub vocab_size: u32,
    /// From `generation_config.json`, else `config.json`; may be empty.
    pub eos_token_ids: Vec<TokenId>,
}

impl ModelConfig {
    /// Reads the configuration of the model in `dir`.
    pub fn load(_dir: &Path) -> Result<Self, Error> {
        unimplemented!()
    }
}
