//! What an engine is loaded with, and what it reports while it loads.

use std::path::PathBuf;

use kv::KvDtype;

/// How to load a model. Every value is as the operator gave it; [`crate::Engine::load`] checks them against the model.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// A Hugging Face directory: `config.json` and safetensors.
    pub model_dir: PathBuf,
    /// Number of ranks: a power of two that divides the model's KV heads.
    pub tensor_parallel_size: usize,
    /// Compute threads of all ranks together; each rank gets its share, at least one. 0 = one per core.
    pub threads: usize,
    /// Tokens per KV block, 8 to 128.
    pub block_size: u32,
    /// `None`: bf16 for bf16 weights, else f32.
    pub kv_dtype: Option<KvDtype>,
    /// Bytes for KV over all ranks. `None`: what the sequences may need, at most a quarter of the memory available.
    pub kv_bytes: Option<u64>,
    /// Longest sequence, prompt and output. `None`: the model's own limit.
    pub max_model_len: Option<u32>,
    /// Most rows of a batch.
    pub max_num_seqs: u32,
    /// Most new tokens of a batch.
    pub max_num_batched_tokens: u32,
}

/// One report of [`crate::Engine::load`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoadProgress {
    pub stage: LoadStage,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// What loading is busy with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadStage {
    /// Mapping the files and checking every tensor.
    Weights,
    /// Setting KV memory aside and starting the ranks.
    Memory,
    /// Everything is loaded.
    Done,
}
