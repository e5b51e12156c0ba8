//! Ships a prompt's KV while it is computed.
//!
//! The hand-over begins when the prompt gets its blocks; each layer of each chunk is announced as soon as it is written, what the
//! prefix cache already had at once. The blocks stay held until D has committed or the hand-over is given up.

use std::ops::Range;

use bytes::Bytes;
use kv::{BlockPool, BlockRef, Owner, Phase};
use parking_lot::Mutex;
use proto::control::FailCode;
use tokio::runtime::Handle;
use transfer::{KvSender, Outgoing, TransferError};
use types::RequestKey;
use worker::{Failure, KvWatcher};

/// Where this instance's KV is and who ships it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Shipping {
    pub(crate) sender: KvSender,
    pub(crate) pool: BlockPool,
    pub(crate) layers: u32,
    pub(crate) kv_heads: u32,
    /// Hand-overs begin on the engine thread, their connections live here.
    pub(crate) runtime: Handle,
}

/// One attempt's hand-over; see the module's head.
pub(crate) struct HandOff {
    key: RequestKey,
    ticket: Bytes,
    shipping: Shipping,
    outgoing: Mutex<Option<Outgoing>>,
}

impl HandOff {
    pub(crate) fn new(key: RequestKey, ticket: Bytes, shipping: Shipping) -> Self {
        Self { key, ticket, shipping, outgoing: Mutex::new(None) }
    }

    /// The hand-over, once the prompt is computed; to be finished.
    pub(crate) fn take(&self) -> Option<Outgoing> {
        self.outgoing.lock().take()
    }
}

impl KvWatcher for HandOff {
    fn admitted(&self, blocks: &[BlockRef], computed: u32) -> Result<(), Failure> {
        let _runtime = self.shipping.runtime.enter();
        let mut blocks = blocks.to_vec();
        let owner = Owner { key: self.key.clone(), phase: Phase::HandOver };
        self.shipping.pool.reassign(&mut blocks, owner);
        let outgoing = self.shipping.sender.begin(&self.ticket, blocks).map_err(failure)?;
        if computed > 0 {
            for layer in 0..self.shipping.layers {
                outgoing.layer_ready(layer, 0..self.shipping.kv_heads, 0..computed);
            }
        }
        *self.outgoing.lock() = Some(outgoing);
        Ok(())
    }

    fn layer_done(&self, layer: u32, heads: Range<u32>, tokens: Range<u32>) {
        if let Some(outgoing) = self.outgoing.lock().as_ref() {
            outgoing.layer_ready(layer, heads, tokens);
        }
    }

    fn computed(&self) {
        if let Some(outgoing) = self.outgoing.lock().as_ref() {
            outgoing.computed();
        }
    }
}

/// How the scheduler is told of a failed hand-over.
pub(crate) fn failure(error: TransferError) -> Failure {
    let code = match error {
        TransferError::Lease { .. } => FailCode::FailLease,
        TransferError::BadTicket { .. } => FailCode::FailBadRequest,
        _ => FailCode::FailTransfer,
    };
    Failure::new(code, error.to_string())
}
