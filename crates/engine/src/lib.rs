//! A model that turns batches of tokens into KV and sampled tokens, synchronously.
//!
//! Invariant: what a row of a batch yields depends on that row alone, bit for bit: not on its neighbours, the chunking, the KV
//! block size, the number of threads or the tensor-parallel degree.
//!
//! ```text
//! Engine::step(Batch) ─► plan ─► ranks (one thread each) ─► models::decoder ─► backend ops ─► cpu ─► kernels
//!                  └──► sample (from the last token's logits of each row)
//! ```

mod backend;
mod batch;
mod config;
mod cpu;
mod engine;
mod error;
mod generate;
mod identity;
mod memory;
mod models;
mod plan;
mod probe;
mod ranks;
mod sample;
mod store;
mod weights;

pub use batch::{Batch, BatchRow, Constraint, NoObserver, Probe, Probed, SampleRequest, StepObserver, StepOutput};
pub use config::{EngineConfig, LoadProgress, LoadStage, Quantization, QuantizationError};
pub use engine::Engine;
pub use error::Error;
pub use generate::{embed, generate, prompt_scores};
pub use memory::{MemoryPlan, PackedWeights};
pub use models::{Family, Llama3Scaling, ModelConfig, Rope};
pub use sample::{NotANumber, Sampler};
pub use store::kv_memory;
