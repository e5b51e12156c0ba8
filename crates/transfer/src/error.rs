//! How a hand-over fails, and why a piece is refused.

use std::fmt;
use std::time::Duration;

use kv::KvError;
use types::{InstanceId, RequestKey};

/// A hand-over that did not happen, or a set-up that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// The other side will not take (or send) this attempt; another pair may.
    #[error("{key}: refused by the peer: {reason}")]
    Refused { key: RequestKey, reason: String },
    /// D set blocks aside for a time and it ran out.
    #[error("{key}: no progress within the lease of {} ms", lease.as_millis())]
    Lease { key: RequestKey, lease: Duration },
    /// The same piece arrived damaged several times.
    #[error("{key}: a piece of layer {layer} failed its checksum {attempts} times")]
    Checksum { key: RequestKey, layer: u32, attempts: u32 },
    /// Not reachable, or the connection broke: everything on that connection has failed.
    #[error("peer {peer} at {address} is gone: {reason}")]
    PeerGone { peer: InstanceId, address: String, reason: String },
    /// The two sides run something different and can never exchange KV.
    #[error("peer {peer} does not fit: {field}: ours is {ours}, theirs is {theirs}")]
    Mismatch { peer: InstanceId, field: String, ours: String, theirs: String },
    /// The peer is connected but silent.
    #[error("{key}: no answer from {peer} for {} ms", waited.as_millis())]
    Timeout { key: RequestKey, peer: InstanceId, waited: Duration },
    #[error("bad ticket: {reason}")]
    BadTicket { reason: String },
    /// Neither side's list holds a transport that the other can use.
    #[error("no transport to {peer}: {tried}")]
    NoTransport { peer: InstanceId, tried: String },
    #[error("unknown transport `{found}`, expected inproc, shm, tcp or grpc")]
    UnknownTransport { found: String },
    #[error("cannot listen for KV on {address}: {reason}")]
    Listen { address: String, reason: String },
    /// Our own KV memory does not have what was asked of it.
    #[error(transparent)]
    Store(#[from] KvError),
}

/// Why D did not use a piece. Each reason is counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// No landing is open for the request.
    UnknownRequest,
    /// A newer attempt of the same request is open.
    Stale,
    /// The capability is not the ticket's.
    Capability,
    /// Layer, heads or tokens outside of what the landing lacks.
    OutOfRange,
    /// The payload's length is not that of its span, or above the bound.
    Length,
    /// Overlaps another piece without being equal to it.
    Overlap,
    /// The landing was closed, or its lease ran out, while the piece was on its way.
    Closed,
    /// Payload or header were damaged on the way; sent again.
    Checksum,
}

impl Refusal {
    pub const ALL: [Refusal; 8] = [
        Refusal::UnknownRequest,
        Refusal::Stale,
        Refusal::Capability,
        Refusal::OutOfRange,
        Refusal::Length,
        Refusal::Overlap,
        Refusal::Closed,
        Refusal::Checksum,
    ];

    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::UnknownRequest => "unknown_request",
            Refusal::Stale => "stale",
            Refusal::Capability => "capability",
            Refusal::OutOfRange => "out_of_range",
            Refusal::Length => "length",
            Refusal::Overlap => "overlap",
            Refusal::Closed => "closed",
            Refusal::Checksum => "checksum",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
