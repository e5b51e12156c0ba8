//! What an engine is loaded with, and what it reports while it loads.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

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
    /// Weights are packed into fewer bits at load; `None`: used as they are stored.
    pub quantization: Option<Quantization>,
    /// Directory in which packed weights are kept and shared; `None`: packed anew at each load, into memory of this process.
    pub pack_cache: Option<PathBuf>,
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

/// How weights are packed, from whatever type they are stored in.
///
/// Inputs of the products become 8 bits, too. The embedding stays as it is stored, and the output head gets 8 bits in both, since
/// rounding it shows in the logits directly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quantization {
    /// 8 bits, a scale for 128 weights.
    Int8,
    /// 4 bits, a scale for 128 weights and a step for 32.
    Int4,
}

impl Quantization {
    pub fn as_str(self) -> &'static str {
        match self {
            Quantization::Int8 => "int8",
            Quantization::Int4 => "int4",
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not the name of a [`Quantization`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("quantization is `{found}`, supported: int8, int4")]
pub struct QuantizationError {
    found: String,
}

impl FromStr for Quantization {
    type Err = QuantizationError;

    fn from_str(name: &str) -> Result<Self, QuantizationError> {
        match name {
            "int8" => Ok(Quantization::Int8),
            "int4" => Ok(Quantization::Int4),
            _ => Err(QuantizationError { found: name.to_owned() }),
        }
    }
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
