//! What happened on the KV plane since start, for metrics. All counts only grow.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{Refusal, TransportKind};

/// Counts of one sender or receiver; read at any time.
#[derive(Default, Debug)]
pub struct Counters {
    pieces: [AtomicU64; TransportKind::ALL.len()],
    bytes: [AtomicU64; TransportKind::ALL.len()],
    refused: [AtomicU64; Refusal::ALL.len()],
    retried: AtomicU64,
    duplicates: AtomicU64,
    connections_lost: AtomicU64,
    unauthenticated: AtomicU64,
}

impl Counters {
    /// Pieces acknowledged (sender) or written (receiver) over one transport.
    pub fn pieces(&self, kind: TransportKind) -> u64 {
        self.pieces[kind as usize].load(Relaxed)
    }

    /// Payload bytes of those pieces.
    pub fn bytes(&self, kind: TransportKind) -> u64 {
        self.bytes[kind as usize].load(Relaxed)
    }

    /// Pieces not used, by reason (receiver).
    pub fn refused(&self, reason: Refusal) -> u64 {
        self.refused[reason as usize].load(Relaxed)
    }

    /// Pieces sent again after a bad checksum (sender).
    pub fn retried(&self) -> u64 {
        self.retried.load(Relaxed)
    }

    /// Pieces that had already arrived (receiver).
    pub fn duplicates(&self) -> u64 {
        self.duplicates.load(Relaxed)
    }

    /// Connections that ended in an error.
    pub fn connections_lost(&self) -> u64 {
        self.connections_lost.load(Relaxed)
    }

    /// Connections refused because the peer did not prove the cluster secret (receiver).
    pub fn unauthenticated(&self) -> u64 {
        self.unauthenticated.load(Relaxed)
    }

    pub(crate) fn count_unauthenticated(&self) {
        self.unauthenticated.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_piece(&self, kind: TransportKind, bytes: u64) {
        self.pieces[kind as usize].fetch_add(1, Relaxed);
        self.bytes[kind as usize].fetch_add(bytes, Relaxed);
    }

    pub(crate) fn count_refused(&self, reason: Refusal) {
        self.refused[reason as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn count_retried(&self) {
        self.retried.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_duplicate(&self) {
        self.duplicates.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_connection_lost(&self) {
        self.connections_lost.fetch_add(1, Relaxed);
    }
}
