//! Ships KV from P.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use kv::{BlockRef, KvStore};

use crate::{Counters, TransferConfig, TransferError, TransportKind};

/// P's side of the KV plane: keeps one connection per peer. Cheap to clone.
#[derive(Clone)]
pub struct KvSender {}

/// One attempt's hand-over. Holds the blocks until it is dropped; dropping it unfinished tells D to give up.
pub struct Outgoing {}

/// What was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TransferStats {
    /// None when nothing had to be sent.
    pub transport: Option<TransportKind>,
    pub bytes: u64,
    pub pieces: u32,
    pub retried_pieces: u32,
    /// Full blocks (of P) that D already had.
    pub blocks_skipped: u32,
    /// From the call of `finish` to D's commit.
    pub exposed: Duration,
}

impl KvSender {
    /// Call inside a tokio runtime: connections run on it.
    pub fn new(_config: TransferConfig, _store: Arc<dyn KvStore>) -> Self {
        unimplemented!()
    }

    /// Starts a hand-over. `blocks` are the sequence's from token 0 on and must hold every token that the ticket asks for.
    pub fn begin(&self, _ticket: &[u8], _blocks: Vec<BlockRef>) -> Result<Outgoing, TransferError> {
        unimplemented!()
    }

    pub fn counters(&self) -> &Counters {
        unimplemented!()
    }
}

impl Outgoing {
    /// The tokens that D lacks.
    pub fn needed(&self) -> Range<u32> {
        unimplemented!()
    }

    /// These keys and values are in the store now. Never blocks; callable from any thread; what D has or was already told is skipped.
    pub fn layer_ready(&self, _layer: u32, _heads: Range<u32>, _tokens: Range<u32>) {
        unimplemented!()
    }

    /// Waits until D has everything and has committed.
    pub async fn finish(self) -> Result<TransferStats, TransferError> {
        unimplemented!()
    }
}
