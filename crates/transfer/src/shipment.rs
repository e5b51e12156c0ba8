//! One attempt's KV on P: what is ready, what was sent, what D has.
//!
//! Each (layer, head, token) that D lacks is reported, sent and acknowledged exactly once; only a damaged piece is sent again. The
//! blocks stay leased until the shipment is closed *and* no piece of it is being read, so a piece never carries another request's
//! bytes under a right checksum.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use kv::{BlockTable, KvLayout, KvSpan};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use types::RequestKey;

use crate::coverage::Coverage;
use crate::piece::Carriage;
use crate::ticket::{Capability, Ticket};
use crate::{TransferError, TransferStats, TransportKind, piece};

/// How often one piece is sent before the hand-over fails.
const ATTEMPTS_MAX: u32 = 3;

/// What the engine's threads, the connection and the worker share about one hand-over.
pub(crate) struct Shipment {
    pub(crate) key: RequestKey,
    pub(crate) capability: Capability,
    /// What D lacks.
    pub(crate) needed: Range<u32>,
    layout: KvLayout,
    progress: Mutex<Progress>,
    /// Notified when the outcome is known.
    pub(crate) changed: Notify,
}

struct Progress {
    /// None once the shipment is closed.
    blocks: Option<Arc<BlockTable>>,
    reported: Coverage,
    ready: VecDeque<KvSpan>,
    /// Damaged on the way.
    resend: VecDeque<Sending>,
    /// Acknowledged (layer, head, token) triples.
    acknowledged: u64,
    /// Waiting for the connection's attention; it is asked once.
    queued: bool,
    outcome: Option<Result<(), TransferError>>,
    /// When the last of the prompt was computed.
    computed_at: Option<Instant>,
    moved_at: Instant,
    stats: TransferStats,
}

/// A piece on its way for the first or another time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Sending {
    /// Known from the first time on.
    pub(crate) number: Option<u64>,
    pub(crate) span: KvSpan,
    /// Times sent before.
    pub(crate) attempts: u32,
}

/// What a shipment has for its connection.
pub(crate) enum Next {
    /// A piece, and the blocks to read it from.
    Piece { sending: Sending, blocks: Arc<BlockTable> },
    /// Something, once the credit allows.
    NoCredit,
    /// Nothing now; it will ask when it has.
    Nothing,
}

/// Whether to go on waiting for a shipment.
pub(crate) enum Standing {
    Over(Result<TransferStats, TransferError>),
    /// Since when nothing has moved, and whether D owes us only its commit.
    Waiting {
        since: Instant,
        only_commit: bool,
    },
}

impl Shipment {
    /// Nothing ready yet; over at once if D lacks nothing.
    pub(crate) fn new(ticket: &Ticket, layout: KvLayout, blocks: BlockTable) -> Self {
        let needed = ticket.tokens.clone();
        let blocks_skipped = needed.start / layout.block_size.max(1);
        let progress = Progress {
            blocks: Some(Arc::new(blocks)),
            reported: Coverage::new(layout.layers, layout.kv_heads),
            ready: VecDeque::new(),
            resend: VecDeque::new(),
            acknowledged: 0,
            queued: false,
            outcome: needed.is_empty().then_some(Ok(())),
            computed_at: None,
            moved_at: Instant::now(),
            stats: TransferStats { blocks_skipped, ..TransferStats::default() },
        };
        let (key, capability) = (ticket.key.clone(), ticket.capability);
        Self { key, capability, needed, layout, progress: Mutex::new(progress), changed: Notify::new() }
    }

    /// Notes that these keys and values are in the store. True if the connection is to be asked for attention.
    pub(crate) fn report(&self, layer: u32, heads: Range<u32>, tokens: Range<u32>) -> bool {
        let heads = heads.start..heads.end.min(self.layout.kv_heads);
        let tokens = tokens.start.max(self.needed.start)..tokens.end.min(self.needed.end);
        if layer >= self.layout.layers || heads.is_empty() || tokens.is_empty() {
            return false;
        }
        let mut progress = self.progress.lock();
        if progress.outcome.is_some() || progress.blocks.is_none() {
            return false;
        }
        for span in progress.reported.add(&KvSpan { layer, heads, tokens }) {
            join(&mut progress.ready, span);
        }
        progress.ask()
    }

    /// The next piece to send. `fits` says whether the credit allows so many bytes; the piece stays where it is if not.
    pub(crate) fn next(&self, carriage: Carriage, fits: impl Fn(u64) -> bool) -> Next {
        let mut progress = self.progress.lock();
        let Some(blocks) = progress.blocks.clone().filter(|_| progress.outcome.is_none()) else {
            progress.queued = false;
            return Next::Nothing;
        };
        let Some(sending) = progress.take(&self.layout, carriage) else {
            progress.queued = false;
            return Next::Nothing;
        };
        if !fits(sending.span.payload_bytes(&self.layout) as u64) {
            progress.resend.push_front(sending);
            return Next::NoCredit;
        }
        Next::Piece { sending, blocks }
    }

    /// D has written a piece.
    pub(crate) fn acknowledged(&self, span: &KvSpan, kind: TransportKind) {
        let mut progress = self.progress.lock();
        progress.acknowledged +=
            u64::from(span.heads.end - span.heads.start) * u64::from(span.tokens.end - span.tokens.start);
        progress.moved_at = Instant::now();
        progress.stats.transport = Some(kind);
        progress.stats.bytes += span.payload_bytes(&self.layout) as u64;
        progress.stats.pieces += 1;
    }

    /// D asks for a piece again. True if the connection is to be asked for attention.
    pub(crate) fn damaged(&self, sending: Sending) -> bool {
        let mut progress = self.progress.lock();
        if sending.attempts >= ATTEMPTS_MAX {
            let (key, layer, attempts) = (self.key.clone(), sending.span.layer, sending.attempts);
            self.end(&mut progress, Err(TransferError::Checksum { key, layer, attempts }));
            return false;
        }
        progress.stats.retried_pieces += 1;
        progress.resend.push_back(sending);
        progress.ask()
    }

    /// D has committed: only believed when it has everything.
    pub(crate) fn committed(&self) {
        let mut progress = self.progress.lock();
        let outcome = if progress.acknowledged == self.cells() {
            Ok(())
        } else {
            let reason = "committed before everything was acknowledged".to_owned();
            Err(TransferError::Refused { key: self.key.clone(), reason })
        };
        self.end(&mut progress, outcome);
    }

    /// What D has not committed by now is not hidden behind computing.
    pub(crate) fn computed(&self) {
        self.progress.lock().computed_at = Some(Instant::now());
    }

    pub(crate) fn fail(&self, error: TransferError) {
        self.end(&mut self.progress.lock(), Err(error));
    }

    pub(crate) fn standing(&self) -> Standing {
        let progress = self.progress.lock();
        match &progress.outcome {
            Some(outcome) => Standing::Over(outcome.clone().map(|()| progress.stats)),
            None => Standing::Waiting { since: progress.moved_at, only_commit: progress.acknowledged == self.cells() },
        }
    }

    /// Lets the blocks go (the one being read stays until it is read). True if D still waits for pieces.
    pub(crate) fn close(&self) -> bool {
        let mut progress = self.progress.lock();
        progress.blocks = None;
        progress.ready.clear();
        progress.resend.clear();
        progress.outcome.is_none()
    }

    fn cells(&self) -> u64 {
        let tokens = u64::from(self.needed.end - self.needed.start);
        tokens * u64::from(self.layout.layers) * u64::from(self.layout.kv_heads)
    }

    /// The first outcome stays.
    fn end(&self, progress: &mut Progress, outcome: Result<(), TransferError>) {
        if progress.outcome.is_none() {
            progress.outcome = Some(outcome);
            progress.stats.exposed = progress.computed_at.map(|at| at.elapsed()).unwrap_or_default();
            self.changed.notify_waiters();
        }
    }
}

impl Progress {
    /// True if the connection does not know yet that there is something to send.
    fn ask(&mut self) -> bool {
        let waiting = !self.ready.is_empty() || !self.resend.is_empty();
        waiting && !std::mem::replace(&mut self.queued, true)
    }

    /// Takes the next piece: what was taken before and put back, else the front of what is ready, cut to size.
    fn take(&mut self, layout: &KvLayout, carriage: Carriage) -> Option<Sending> {
        if let Some(sending) = self.resend.pop_front() {
            return Some(sending);
        }
        let mut cuts = piece::cut(self.ready.pop_front()?, layout, carriage);
        let span = cuts.next()?;
        let rest: Vec<_> = cuts.collect();
        rest.into_iter().rev().for_each(|span| self.ready.push_front(span));
        Some(Sending { number: None, span, attempts: 0 })
    }
}

/// Adds a span to what is ready, as part of one that it continues if there is one: ranks report their heads one by one, and
/// chunks their tokens.
fn join(ready: &mut VecDeque<KvSpan>, new: KvSpan) {
    for span in ready.iter_mut().rev().filter(|span| span.layer == new.layer) {
        if span.tokens == new.tokens && span.heads.end == new.heads.start {
            span.heads.end = new.heads.end;
            return;
        }
        if span.tokens == new.tokens && new.heads.end == span.heads.start {
            span.heads.start = new.heads.start;
            return;
        }
        if span.heads == new.heads && span.tokens.end == new.tokens.start {
            span.tokens.end = new.tokens.end;
            return;
        }
    }
    ready.push_back(new);
}

#[cfg(test)]
mod tests {
    use kv::KvDtype;

    use super::*;

    /// 8 bytes per token and head.
    const LAYOUT: KvLayout =
        KvLayout { layers: 2, kv_heads: 4, head_dim: 1, dtype: KvDtype::F32, block_size: 4, blocks: 8 };

    fn shipment(needed: Range<u32>) -> Shipment {
        let ticket = Ticket {
            key: RequestKey { request: "r".into(), epoch: 0 },
            capability: [0; 16],
            instance: "decode-0".into(),
            incarnation: 1,
            tokens: needed,
            lease: std::time::Duration::from_secs(1),
            endpoints: Vec::new(),
        };
        Shipment::new(&ticket, LAYOUT, BlockTable::new(4))
    }

    fn span(layer: u32, heads: Range<u32>, tokens: Range<u32>) -> KvSpan {
        KvSpan { layer, heads, tokens }
    }

    fn taken(shipment: &Shipment) -> Vec<KvSpan> {
        let next = || match shipment.next(Carriage::Sent, |_| true) {
            Next::Piece { sending, .. } => Some(sending.span),
            Next::NoCredit | Next::Nothing => None,
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn only_what_is_lacking_is_taken_and_only_once() {
        let shipment = shipment(4..10);
        assert!(!shipment.report(0, 0..4, 0..4), "D has it");
        assert!(shipment.report(0, 0..4, 2..8), "asks for attention");
        assert!(!shipment.report(0, 0..4, 2..12), "asked before");
        assert!(!shipment.report(2, 0..4, 0..12), "no such layer");
        assert_eq!(taken(&shipment), [span(0, 0..4, 4..10)]);
        assert!(!shipment.report(0, 0..4, 0..12));
        assert_eq!(taken(&shipment), []);
    }

    #[test]
    fn heads_of_ranks_and_tokens_of_chunks_are_joined() {
        let shipment = shipment(0..8);
        for (layer, heads, tokens) in [(0, 2..4, 0..4), (1, 0..2, 0..4), (0, 0..2, 0..4), (1, 0..2, 4..8)] {
            shipment.report(layer, heads, tokens);
        }
        assert_eq!(taken(&shipment), [span(0, 0..4, 0..4), span(1, 0..2, 0..8)]);
    }

    #[test]
    fn a_piece_stays_until_the_credit_allows_it() {
        let shipment = shipment(0..8);
        shipment.report(0, 0..4, 0..8);
        assert!(matches!(shipment.next(Carriage::Sent, |bytes| bytes < 256), Next::NoCredit));
        assert_eq!(taken(&shipment), [span(0, 0..4, 0..8)]);
    }

    #[test]
    fn a_piece_damaged_three_times_fails_the_hand_over() {
        let shipment = shipment(0..8);
        let sending = |attempts| Sending { number: Some(1), span: span(1, 0..4, 0..8), attempts };
        assert!(shipment.damaged(sending(1)));
        assert_eq!(taken(&shipment), [span(1, 0..4, 0..8)]);
        assert!(shipment.damaged(sending(2)));
        assert!(!shipment.damaged(sending(3)));
        let Standing::Over(Err(error)) = shipment.standing() else { panic!("it is over") };
        assert_eq!(error.to_string(), "r#0: a piece of layer 1 failed its checksum 3 times");
    }

    #[test]
    fn a_commit_before_the_last_acknowledgement_is_not_believed() {
        for (acknowledged, ok) in [(0..4, true), (0..3, false)] {
            let shipment = shipment(0..8);
            for layer in 0..2 {
                shipment.acknowledged(&span(layer, acknowledged.clone(), 0..8), TransportKind::Tcp);
            }
            shipment.committed();
            assert!(matches!(shipment.standing(), Standing::Over(outcome) if outcome.is_ok() == ok));
        }
    }
}
