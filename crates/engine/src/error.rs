//! Everything that loading or stepping can refuse.

/// Says what was found, where, and what is supported or expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A batch that the engine cannot compute; nothing was written.
    #[error("batch row {row}: {reason}")]
    Batch { row: usize, reason: String },
}
