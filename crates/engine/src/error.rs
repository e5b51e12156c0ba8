//! Everything that loading or stepping can refuse.

use std::io;
use std::path::PathBuf;

/// Says what was found, where, and what is supported or expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A file that is not what its name says.
    #[error("{}: {reason}", .path.display())]
    Malformed { path: PathBuf, reason: String },
    /// A key of a JSON file that is missing, of the wrong kind, or asks for what we do not have.
    #[error("{}: `{key}` is {found}, supported: {supported}", .path.display())]
    Unsupported { path: PathBuf, key: String, found: String, supported: String },
    #[error("{}: tensor `{name}` is {found}, expected {expected}", .path.display())]
    Tensor { path: PathBuf, name: String, found: String, expected: String },
    /// A value of [`crate::EngineConfig`] that does not fit the model or the machine.
    #[error("{option} is {found}: {reason}")]
    Option { option: &'static str, found: String, reason: String },
    #[error(transparent)]
    Isa(#[from] kernels::IsaError),
    #[error(transparent)]
    Pack(#[from] kernels::PackError),
    /// The system refuses a thread or memory.
    #[error("starting the compute ranks: {0}")]
    Start(io::Error),
    /// A batch that the engine cannot compute; nothing was written.
    #[error("batch row {row}: {reason}")]
    Batch { row: usize, reason: String },
    /// The model computed something that is not a number: its weights are damaged.
    #[error("batch row {row}: the logits are not numbers; the weights are damaged")]
    NotANumber { row: usize },
    /// The oracle's pool is too small for the sequence.
    #[error(transparent)]
    PoolFull(#[from] kv::PoolFull),
}
