//! One attempt's place on D: which pieces may be written, which have been, and until when.
//!
//! The invariant of the room: bytes are written only under the site's lock and only while it is open, and whoever closes it takes
//! that lock. So once [`Landing`] is dropped, no late piece can reach blocks that belong to somebody else by then.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use kv::{BlockId, KvLayout, KvSpan, KvStore};
use parking_lot::Mutex;
use proto::kv::kv_reply::Body;
use proto::kv::{Committed, KvReply, Piece, Refused};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use types::RequestKey;

use crate::coverage::Coverage;
use crate::receiver::Registry;
use crate::ticket::{Capability, same_capability};
use crate::transport::Payload;
use crate::{Refusal, TransferError, TransportKind, piece};

/// What D sets aside for one attempt.
#[derive(Clone, Debug)]
pub struct LandingRequest {
    pub key: RequestKey,
    /// The sequence's blocks from token 0 on, including those that D already has. The caller keeps them leased as long as the
    /// Landing lives.
    pub blocks: Vec<BlockId>,
    /// The tokens that D lacks; may be empty.
    pub tokens: Range<u32>,
    /// How long to wait for the next piece.
    pub lease: Duration,
}

/// What arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LandingStats {
    /// None when nothing had to be sent.
    pub transport: Option<TransportKind>,
    pub bytes: u64,
    pub pieces: u32,
}

/// The open door for one attempt's pieces. Dropping it closes the door and tells P: once `drop` has returned nothing is written.
pub struct Landing {
    site: Arc<Site>,
    registry: Weak<Registry>,
    ticket: Bytes,
}

/// The part of a landing that connections see.
pub(crate) struct Site {
    pub(crate) key: RequestKey,
    pub(crate) capability: Capability,
    tokens: Range<u32>,
    blocks: Vec<BlockId>,
    lease: Duration,
    store: Arc<dyn KvStore>,
    layout: KvLayout,
    arrival: Mutex<Arrival>,
    /// Notified when the outcome is known and when the deadline has moved.
    changed: Notify,
}

struct Arrival {
    /// None while pieces are written.
    outcome: Option<Result<(), TransferError>>,
    deadline: Instant,
    covered: Coverage,
    /// Exactly the spans that were written, to tell a duplicate from an overlap.
    pieces: HashSet<KvSpan>,
    /// Who sent the last piece, and is told the end.
    source: Option<Source>,
    stats: LandingStats,
}

/// The connection that a piece came by.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) connection: u64,
    pub(crate) kind: TransportKind,
    pub(crate) replies: mpsc::Sender<KvReply>,
}

/// What became of a piece that was not refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Landed {
    Written,
    Duplicate,
}

impl Site {
    /// An open site; complete at once if nothing is lacking. Fails only by a request that does not fit the store.
    pub(crate) fn new(request: LandingRequest, capability: Capability, store: Arc<dyn KvStore>) -> Self {
        let layout = store.layout();
        let LandingRequest { key, blocks, tokens, lease } = request;
        let arrival = Arrival {
            outcome: tokens.is_empty().then_some(Ok(())),
            deadline: Instant::now() + lease,
            covered: Coverage::new(layout.layers, layout.kv_heads),
            pieces: HashSet::new(),
            source: None,
            stats: LandingStats::default(),
        };
        let arrival = Mutex::new(arrival);
        Self { key, capability, tokens, blocks, lease, store, layout, arrival, changed: Notify::new() }
    }

    pub(crate) fn lease_left(&self) -> Duration {
        self.arrival.lock().deadline.saturating_duration_since(Instant::now())
    }

    /// Whether the header may be followed by its payload; nothing is allocated or written before this said yes.
    pub(crate) fn admit(&self, header: &Piece, now: Instant) -> Result<KvSpan, Refusal> {
        if !same_capability(&self.capability, &header.capability) {
            return Err(Refusal::Capability);
        }
        let span = piece::span(header);
        let inside = span.layer < self.layout.layers
            && span.heads.start < span.heads.end
            && span.heads.end <= self.layout.kv_heads
            && span.tokens.start < span.tokens.end
            && self.tokens.start <= span.tokens.start
            && span.tokens.end <= self.tokens.end;
        if !inside {
            return Err(Refusal::OutOfRange);
        }
        let bytes = span.payload_bytes(&self.layout) as u64;
        if header.payload_len != bytes || bytes > piece::PAYLOAD_BYTES_MAX {
            return Err(Refusal::Length);
        }
        let mut arrival = self.arrival.lock();
        self.expire(&mut arrival, now);
        if matches!(arrival.outcome, Some(Err(_))) { Err(Refusal::Closed) } else { Ok(span) }
    }

    /// Writes the payload of an admitted piece, and checks it on the way: one pass over the bytes. If it is wrong it has not landed, and
    /// the next one for the same place is written over it.
    pub(crate) fn land(
        &self,
        header: &Piece,
        span: KvSpan,
        payload: Payload<'_>,
        source: &Source,
        now: Instant,
    ) -> Result<Landed, Refusal> {
        // gRPC delivers whatever length the peer chose.
        if matches!(payload, Payload::Sent(bytes) if bytes.len() as u64 != header.payload_len) {
            return Err(Refusal::Length);
        }
        let mut arrival = self.arrival.lock();
        self.expire(&mut arrival, now);
        if matches!(arrival.outcome, Some(Err(_))) {
            return Err(Refusal::Closed);
        }
        if arrival.pieces.contains(&span) {
            return Ok(Landed::Duplicate);
        }
        if arrival.covered.overlaps(&span) {
            return Err(Refusal::Overlap);
        }
        let seed = piece::seed(header);
        let written = match payload {
            Payload::Sent(bytes) => match self.store.write_sealed(&span, &self.blocks, bytes, seed) {
                Ok(written) => written,
                Err(error) => {
                    tracing::error!(key = %self.key, %error, "kv store refuses a piece that was in range");
                    self.end(&mut arrival, Err(error.into()));
                    return Err(Refusal::OutOfRange);
                }
            },
            Payload::Fetched { memory, blocks } => {
                memory.copy(&span, &blocks, &self.blocks, seed).map_err(|_| Refusal::OutOfRange)?
            }
        };
        if written != header.checksum {
            return Err(Refusal::Checksum);
        }
        arrival.covered.add(&span);
        arrival.pieces.insert(span);
        arrival.deadline = now + self.lease;
        arrival.stats.transport = Some(source.kind);
        arrival.stats.bytes += header.payload_len;
        arrival.stats.pieces += 1;
        arrival.source = Some(source.clone());
        Ok(Landed::Written)
    }

    /// Ends the arrival well if every piece has landed; called once the last one is answered.
    pub(crate) fn complete(&self) {
        let mut arrival = self.arrival.lock();
        if arrival.outcome.is_none() && arrival.covered.len() == self.cells() {
            self.end(&mut arrival, Ok(()));
        }
    }

    /// Lets the lease begin anew unless a piece has arrived: from then on only pieces do.
    fn renew(&self, now: Instant) {
        let mut arrival = self.arrival.lock();
        self.expire(&mut arrival, now);
        if arrival.outcome.is_none() && arrival.stats.pieces == 0 {
            arrival.deadline = now + self.lease;
        }
    }

    /// Ends an arrival that is still going on, and says so to P.
    pub(crate) fn fail(&self, error: TransferError) {
        let mut arrival = self.arrival.lock();
        if arrival.outcome.is_none() {
            arrival.refuse(&self.key, error.to_string());
            self.end(&mut arrival, Err(error));
        }
    }

    /// P's connection broke: what it has not finished sending will not come.
    pub(crate) fn lost(&self, connection: u64, error: &TransferError) {
        let mut arrival = self.arrival.lock();
        let concerned = arrival.source.as_ref().is_some_and(|source| source.connection == connection);
        if concerned {
            arrival.source = None;
            if arrival.outcome.is_none() {
                self.end(&mut arrival, Err(error.clone()));
            }
        }
    }

    /// (layer, head, token) triples that make the arrival complete.
    fn cells(&self) -> u64 {
        let tokens = u64::from(self.tokens.end.saturating_sub(self.tokens.start));
        tokens * u64::from(self.layout.layers) * u64::from(self.layout.kv_heads)
    }

    fn expire(&self, arrival: &mut Arrival, now: Instant) {
        if arrival.outcome.is_none() && now >= arrival.deadline {
            let error = TransferError::Lease { key: self.key.clone(), lease: self.lease };
            arrival.refuse(&self.key, error.to_string());
            self.end(arrival, Err(error));
        }
    }

    fn end(&self, arrival: &mut Arrival, outcome: Result<(), TransferError>) {
        arrival.outcome = Some(outcome);
        self.changed.notify_waiters();
    }
}

impl Arrival {
    fn refuse(&self, key: &RequestKey, reason: String) {
        let request_id = key.request.to_string();
        self.tell(Body::Refused(Refused { request_id, epoch: key.epoch, reason }));
    }

    /// Never waits: a peer that does not read its replies learns the end by its own timer.
    fn tell(&self, body: Body) {
        if let Some(source) = &self.source
            && let Err(error) = source.replies.try_send(KvReply { body: Some(body) })
        {
            tracing::debug!(%error, "a reply is lost with its connection");
        }
    }
}

impl Landing {
    pub(crate) fn new(site: Arc<Site>, registry: Weak<Registry>, ticket: Bytes) -> Self {
        Self { site, registry, ticket }
    }

    /// For P, by way of the scheduler: addresses, capability, epoch, and which tokens D lacks.
    pub fn ticket(&self) -> Bytes {
        self.ticket.clone()
    }

    /// Waits until every byte has arrived and been checked, or the attempt has failed.
    ///
    /// # Errors
    /// `Lease` when nothing arrived for the lease's time, `PeerGone` when P's connection broke, `Refused` when P gave up or a
    /// newer attempt took over.
    pub async fn landed(&self) -> Result<LandingStats, TransferError> {
        let site = &*self.site;
        loop {
            let changed = site.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let deadline = {
                let mut arrival = site.arrival.lock();
                site.expire(&mut arrival, Instant::now());
                match &arrival.outcome {
                    Some(outcome) => return outcome.clone().map(|()| arrival.stats),
                    None => arrival.deadline,
                }
            };
            tokio::select! {
                biased;
                () = &mut changed => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    /// The caller knows that P has only not begun yet (it may have a queue): the lease begins anew. Without effect once a piece has
    /// arrived or the attempt is over.
    pub fn renew(&self) {
        self.site.renew(Instant::now());
    }

    /// Tells P that it may forget the attempt, and closes the door.
    ///
    /// # Errors
    /// Why it failed, or `Refused` when not everything has landed.
    pub fn commit(self) -> Result<LandingStats, TransferError> {
        let key = &self.site.key;
        let mut arrival = self.site.arrival.lock();
        match arrival.outcome.clone() {
            Some(outcome) => outcome?,
            None => {
                let reason = "committed before everything had landed".to_owned();
                return Err(TransferError::Refused { key: key.clone(), reason });
            }
        }
        arrival.tell(Body::Committed(Committed { request_id: key.request.to_string(), epoch: key.epoch }));
        arrival.source = None;
        Ok(arrival.stats)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.forget(&self.site);
        }
        let reason = "closed by the decode instance".to_owned();
        let mut arrival = self.site.arrival.lock();
        arrival.refuse(&self.site.key, reason.clone());
        arrival.source = None;
        if !matches!(arrival.outcome, Some(Err(_))) {
            let key = self.site.key.clone();
            self.site.end(&mut arrival, Err(TransferError::Refused { key, reason }));
        }
    }
}
