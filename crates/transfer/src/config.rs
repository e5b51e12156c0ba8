//! What an instance brings to the KV plane, and every bound on what it accepts from there.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use edge::Credentials;
use types::InstanceId;

use crate::{KvBounds, TransferError};

/// T_stall of the reliability goals.
const STALL: Duration = Duration::from_secs(5);

/// How one instance takes part in hand-overs, as sender or receiver.
#[derive(Clone, Debug)]
pub struct TransferConfig {
    pub instance: InstanceId,
    /// Changes whenever the process does, so that a ticket of the process before is not honoured.
    pub incarnation: u64,
    /// The model's digest; peers with another one are refused.
    pub digest: String,
    /// Proven by both ends of every connection between processes; none only where all of them are on loopback.
    pub credentials: Credentials,
    /// What this side offers; empty = all. A single entry forces it.
    pub transports: Vec<TransportKind>,
    /// What we bear of peers.
    pub bounds: KvBounds,
    /// A connection or hand-over that makes no progress for this long has failed.
    pub stall: Duration,
}

impl TransferConfig {
    /// All transports and the default bounds.
    pub fn new(instance: InstanceId, incarnation: u64, digest: impl Into<String>) -> Self {
        Self {
            instance,
            incarnation,
            digest: digest.into(),
            credentials: Credentials::default(),
            transports: Vec::new(),
            bounds: KvBounds::default(),
            stall: STALL,
        }
    }

    pub(crate) fn offers(&self, kind: TransportKind) -> bool {
        self.transports.is_empty() || self.transports.contains(&kind)
    }
}

/// A way to carry pieces, in order of preference.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum TransportKind {
    /// Both ends in one process.
    Inproc,
    /// D copies out of P's memory, frames go over TCP; both ends on one host.
    Shm,
    /// Own framing over TCP.
    Tcp,
    /// A gRPC byte stream on the worker's own port.
    Grpc,
}

impl TransportKind {
    /// Every kind, best first.
    pub const ALL: [TransportKind; 4] =
        [TransportKind::Inproc, TransportKind::Shm, TransportKind::Tcp, TransportKind::Grpc];

    pub fn as_str(self) -> &'static str {
        match self {
            TransportKind::Inproc => "inproc",
            TransportKind::Shm => "shm",
            TransportKind::Tcp => "tcp",
            TransportKind::Grpc => "grpc",
        }
    }
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TransportKind {
    type Err = TransferError;

    fn from_str(name: &str) -> Result<Self, TransferError> {
        let kind = TransportKind::ALL.into_iter().find(|kind| kind.as_str() == name);
        kind.ok_or_else(|| TransferError::UnknownTransport { found: name.to_owned() })
    }
}
