//! A model that turns batches of tokens into KV and sampled tokens, synchronously.
//!
//! Invariant: what a row of a batch yields depends on that row alone, bit for bit: not on its neighbours, the chunking, the KV
//! block size, the number of threads or the tensor-parallel degree.
//!
//! ```text
//! Engine::step(Batch) ─► ranks (one thread each) ─► models::Decoder ─► Backend ops ─► kernels
//!                  └──► sample (from the last token's logits of each row)
//! ```

mod batch;
mod config;
mod engine;
mod error;
mod generate;
mod memory;

pub use batch::{Batch, BatchRow, NoObserver, SampleRequest, StepObserver, StepOutput};
pub use config::{EngineConfig, LoadProgress, LoadStage};
pub use engine::Engine;
pub use error::Error;
pub use generate::generate;
pub use memory::MemoryPlan;
pub use models::ModelConfig;

mod models;
