//! How an instance's memory is divided.

/// Decided at load and printed at start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryPlan {
    /// Bytes of weights, mapped from the files.
    pub weights_bytes: u64,
    /// Bytes set aside for KV, over all ranks. Pages are only touched when used.
    pub kv_bytes: u64,
    pub blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
}
