//! P's side: ships KV to decode instances while it is being computed.
//!
//! The life of a hand-over on P:
//! 1. **begun** — the worker brings a ticket and the prompt's blocks; a connection to D's process is there or is being made.
//! 2. **shipping** — the engine reports layers as they are done. The connection's pump reads what D lacks, piece by piece, and sends
//!    it within D's credit; D acknowledges each piece, or asks for a damaged one again (`shipment.rs`, `connection.rs`).
//! 3. **shipped** — everything that D lacks is acknowledged.
//! 4. **committed** — D has made the sequence visible. [`Outgoing::finish`] returns and the blocks are let go.
//!
//! From 1 to 3 it may also end as **failed**: D refused, the connection broke, nothing moved for the stall time, or the Outgoing was
//! dropped, in which case D is told.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use kv::{BlockRef, BlockTable, KvLayout, KvStore};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use types::InstanceId;

use crate::connection::Connection;
use crate::handshake::Peer;
use crate::shipment::{Shipment, Standing};
use crate::ticket::Ticket;
use crate::{Counters, TransferConfig, TransferError, TransportKind};

/// P's side of the KV plane: keeps one connection per peer. Cheap to clone; when the last clone and the last [`Outgoing`] are
/// gone, the connections end.
#[derive(Clone)]
pub struct KvSender {
    shared: Arc<Shared>,
}

struct Shared {
    config: TransferConfig,
    store: Arc<dyn KvStore>,
    layout: KvLayout,
    counters: Arc<Counters>,
    /// The newest connection to each instance.
    peers: Mutex<HashMap<InstanceId, Arc<Connection>>>,
    runtime: Handle,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// One attempt's hand-over. Holds the blocks until it is finished or dropped; dropping it unfinished tells D to give up.
pub struct Outgoing {
    shipment: Arc<Shipment>,
    /// None when D lacks nothing.
    connection: Option<Arc<Connection>>,
    sender: KvSender,
}

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
    /// From [`Outgoing::computed`] to D's commit; zero if the commit came first.
    pub exposed: Duration,
}

impl KvSender {
    /// Call inside a tokio runtime: connections run on it.
    pub fn new(config: TransferConfig, store: Arc<dyn KvStore>) -> Self {
        let stop = CancellationToken::new();
        let shared = Shared {
            config,
            layout: store.layout(),
            store,
            counters: Arc::default(),
            peers: Mutex::new(HashMap::new()),
            runtime: Handle::current(),
            stop: stop.clone(),
            _stop_on_drop: stop.drop_guard(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Starts a hand-over. `blocks` are the sequence's from token 0 on and must hold every token that the ticket asks for.
    ///
    /// # Errors
    /// `BadTicket` when it cannot be read or asks for more tokens than `blocks` hold; `Refused` when this attempt is being sent
    /// already. That D cannot be reached shows in [`Outgoing::finish`].
    pub fn begin(&self, ticket: &[u8], blocks: Vec<BlockRef>) -> Result<Outgoing, TransferError> {
        let ticket = Ticket::decode(ticket)?;
        let layout = self.shared.layout;
        let mut table = BlockTable::new(layout.block_size);
        table.extend(blocks);
        if table.capacity_tokens() < ticket.tokens.end as usize {
            let (end, capacity) = (ticket.tokens.end, table.capacity_tokens());
            return Err(TransferError::BadTicket {
                reason: format!("asks for tokens to {end}, our blocks hold {capacity}"),
            });
        }
        let shipment = Arc::new(Shipment::new(&ticket, layout, table));
        let connection = if ticket.tokens.is_empty() { None } else { Some(self.add(ticket, &shipment)?) };
        Ok(Outgoing { shipment, connection, sender: self.clone() })
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Puts the shipment on the connection to the ticket's process, made anew if there is none or it is lost.
    fn add(&self, ticket: Ticket, shipment: &Arc<Shipment>) -> Result<Arc<Connection>, TransferError> {
        let peer = Peer { instance: ticket.instance, incarnation: ticket.incarnation };
        let mut peers = self.shared.peers.lock();
        let known = peers.get(&peer.instance).filter(|connection| connection.peer == peer);
        if let Some(connection) = known
            && !connection.is_lost()
        {
            connection.add(shipment)?;
            return Ok(connection.clone());
        }
        let only = known.and_then(|connection| connection.kind());
        let Shared { config, store, counters, runtime, stop, .. } = &*self.shared;
        let connection = Connection::new(peer, ticket.endpoints, config.clone(), store.clone(), counters.clone());
        let connection = Arc::new(connection);
        connection.add(shipment)?;
        peers.insert(connection.peer.instance.clone(), connection.clone());
        let (stop, running) = (stop.clone(), connection.clone().run(only));
        runtime.spawn(async move { stop.run_until_cancelled(running).await });
        Ok(connection)
    }
}

impl Outgoing {
    /// The tokens that D lacks.
    pub fn needed(&self) -> Range<u32> {
        self.shipment.needed.clone()
    }

    /// These keys and values are in the store now. Never waits; callable from any thread. What D has, or was reported before, is
    /// passed over. What P itself found in its prefix cache must be reported too.
    pub fn layer_ready(&self, layer: u32, heads: Range<u32>, tokens: Range<u32>) {
        if let Some(connection) = &self.connection
            && self.shipment.report(layer, heads, tokens)
        {
            connection.attend(&self.shipment);
        }
    }

    /// The last of the prompt has been computed: from now on the hand-over is not hidden behind computing.
    pub fn computed(&self) {
        self.shipment.computed();
    }

    /// Waits until D has everything and has committed; call it once everything is reported.
    ///
    /// # Errors
    /// `Timeout` when nothing moves for the stall time, `PeerGone`, `Refused`, `Checksum`, `Mismatch`, `NoTransport`, `Store`.
    pub async fn finish(self) -> Result<TransferStats, TransferError> {
        let called = Instant::now();
        let stall = self.sender.shared.config.stall;
        loop {
            let changed = self.shipment.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let moved = match self.shipment.standing() {
                Standing::Over(outcome) => return outcome,
                Standing::Waiting { since, only_commit } => self.moved_at(since, only_commit).max(called),
            };
            if moved.elapsed() >= stall {
                let (key, waited) = (self.shipment.key.clone(), moved.elapsed());
                let peer =
                    self.connection.as_ref().map_or_else(|| "".into(), |connection| connection.peer.instance.clone());
                return Err(TransferError::Timeout { key, peer, waited });
            }
            tokio::select! {
                biased;
                () = &mut changed => {}
                () = tokio::time::sleep_until(moved + stall) => {}
            }
        }
    }

    /// Pieces that wait behind other requests' are not stalled while D answers those.
    fn moved_at(&self, since: Instant, only_commit: bool) -> Instant {
        let answered =
            self.connection.as_ref().filter(|_| !only_commit).and_then(|connection| connection.answered_at());
        answered.map_or(since, |answered| answered.max(since))
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let unfinished = self.shipment.close();
        if let Some(connection) = &self.connection {
            connection.remove(&self.shipment, unfinished);
        }
    }
}
