//! P's connection to one decode process: carries every shipment to it, one piece of each in turn, within D's credit.
//!
//! One task runs three loops side by side: the pump (reads KV and sends), the replies, and the stall watch. When one of them
//! ends, the connection is lost: every shipment on it fails at once, and the next hand-over makes a new connection.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use futures::StreamExt;
use futures::stream::BoxStream;
use kv::{BlockTable, KvStore};
use parking_lot::Mutex;
use proto::kv::kv_frame::Body as Frame;
use proto::kv::kv_reply::Body as Reply;
use proto::kv::{Abandon, KvReply, Piece, PieceNack, Refused};
use tokio::sync::Notify;
use tokio::time::Instant;
use types::{RequestId, RequestKey};

use crate::handshake::{self, Peer};
use crate::piece::Carriage;
use crate::shipment::{Next, Sending, Shipment};
use crate::ticket::Endpoint;
use crate::transport::FrameSink;
use crate::transport::choose::{self, Connected};
use crate::{Counters, TransferConfig, TransferError, TransportKind, piece};

/// Abandons waiting to be sent; above that D's leases do the work.
const ABANDONS_MAX: usize = 1024;

pub(crate) struct Connection {
    pub(crate) peer: Peer,
    endpoints: Vec<Endpoint>,
    config: TransferConfig,
    store: Arc<dyn KvStore>,
    counters: Arc<Counters>,
    /// Known once connected; the next connection to the same process uses it again.
    kind: OnceLock<TransportKind>,
    state: Mutex<State>,
    /// Something to send, or credit to send it with.
    wake: Notify,
}

#[derive(Default)]
struct State {
    shipments: BTreeMap<RequestKey, Arc<Shipment>>,
    /// Shipments with something to send, each at most once.
    queue: VecDeque<Arc<Shipment>>,
    abandons: VecDeque<Abandon>,
    in_flight: HashMap<u64, InFlight>,
    in_flight_bytes: u64,
    next_number: u64,
    /// When D last answered, or had nothing to answer.
    answered_at: Option<Instant>,
    /// Set when the connection is of no use any more.
    lost: Option<TransferError>,
}

/// A piece that D has not answered.
struct InFlight {
    shipment: Arc<Shipment>,
    sending: Sending,
    bytes: u64,
    /// D copies from them until it has answered.
    _blocks: Option<Arc<BlockTable>>,
}

/// What the pump does next.
enum Step {
    Abandon(Abandon),
    Piece { shipment: Arc<Shipment>, sending: Sending, blocks: Arc<BlockTable> },
    Wait,
}

impl State {
    /// For a new piece.
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    fn sent(&mut self, piece: InFlight) {
        let Some(number) = piece.sending.number else { return };
        if self.in_flight.is_empty() {
            self.answered_at = Some(Instant::now());
        }
        self.in_flight_bytes += piece.bytes;
        self.in_flight.insert(number, piece);
    }
}

impl Connection {
    pub(crate) fn new(
        peer: Peer,
        endpoints: Vec<Endpoint>,
        config: TransferConfig,
        store: Arc<dyn KvStore>,
        counters: Arc<Counters>,
    ) -> Self {
        let (kind, state, wake) = (OnceLock::new(), Mutex::default(), Notify::new());
        Self { peer, endpoints, config, store, counters, kind, state, wake }
    }

    pub(crate) fn kind(&self) -> Option<TransportKind> {
        self.kind.get().copied()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.state.lock().lost.is_some()
    }

    /// Takes a shipment in.
    ///
    /// # Errors
    /// Why the connection was lost meanwhile, or `Refused` when the same attempt is being sent already.
    pub(crate) fn add(&self, shipment: &Arc<Shipment>) -> Result<(), TransferError> {
        let mut state = self.state.lock();
        if let Some(error) = &state.lost {
            return Err(error.clone());
        }
        let key = &shipment.key;
        if state.shipments.contains_key(key) {
            let reason = "this attempt is being sent already".to_owned();
            return Err(TransferError::Refused { key: key.clone(), reason });
        }
        state.shipments.insert(key.clone(), shipment.clone());
        Ok(())
    }

    /// A shipment has something to send.
    pub(crate) fn attend(&self, shipment: &Arc<Shipment>) {
        self.state.lock().queue.push_back(shipment.clone());
        self.wake.notify_one();
    }

    /// A shipment is closed; if D still waits for it, D is told.
    pub(crate) fn remove(&self, shipment: &Shipment, unfinished: bool) {
        let mut state = self.state.lock();
        state.shipments.remove(&shipment.key);
        if unfinished && state.lost.is_none() && state.abandons.len() < ABANDONS_MAX {
            state.abandons.push_back(Abandon {
                request_id: shipment.key.request.to_string(),
                epoch: shipment.key.epoch,
                capability: bytes::Bytes::copy_from_slice(&shipment.capability),
                reason: "the hand-over was dropped".to_owned(),
            });
            self.wake.notify_one();
        }
    }

    /// When D last answered, or had nothing to answer.
    pub(crate) fn answered_at(&self) -> Option<Instant> {
        self.state.lock().answered_at
    }

    /// Connects, and carries shipments until the connection is lost. `only` is the transport that was chosen before.
    pub(crate) async fn run(self: Arc<Self>, only: Option<TransportKind>) {
        let hello = handshake::hello(&self.config, &self.store.layout());
        let error = match choose::connect(&self.config, &*self.store, &hello, &self.peer, &self.endpoints, only).await {
            Err(error) => error,
            Ok(Connected { link, kind, address, credit, carriage }) => {
                let _ = self.kind.set(kind);
                let reason = tokio::select! {
                    biased;
                    reason = self.pump(link.sink, credit, carriage) => reason,
                    reason = self.replies(link.replies, kind) => reason,
                    reason = self.stalled() => reason,
                };
                self.peer.gone(&address, reason)
            }
        };
        tracing::warn!(%error, "kv connection lost");
        self.lose(error);
    }

    /// Fails everything that is under way.
    pub(crate) fn lose(&self, error: TransferError) {
        let mut state = self.state.lock();
        self.counters.count_connection_lost();
        for shipment in state.shipments.values() {
            shipment.fail(error.clone());
        }
        *state = State { lost: Some(error), ..State::default() };
    }

    /// Sends what there is to send, for ever; returns why it cannot.
    async fn pump(&self, mut sink: Box<dyn FrameSink>, credit: u64, carriage: Carriage) -> String {
        let mut payload = Vec::new();
        loop {
            let sent = match self.step(credit, carriage) {
                Step::Wait => {
                    self.wake.notified().await;
                    continue;
                }
                Step::Abandon(abandon) => sink.send(Frame::Abandon(abandon), &mut Vec::new()).await,
                Step::Piece { shipment, sending, blocks } => {
                    match self.prepare(&shipment, sending, blocks, carriage, &mut payload) {
                        Ok(piece) => sink.send(Frame::Piece(piece), &mut payload).await,
                        Err(error) => {
                            shipment.fail(error);
                            continue;
                        }
                    }
                }
            };
            if let Err(reason) = sent {
                return reason;
            }
            // Sending may never have waited: let the replies have their turn.
            tokio::task::yield_now().await;
        }
    }

    /// One piece of the shipment that has waited longest.
    fn step(&self, credit: u64, carriage: Carriage) -> Step {
        let mut state = self.state.lock();
        if let Some(abandon) = state.abandons.pop_front() {
            return Step::Abandon(abandon);
        }
        // A piece above the whole credit goes alone.
        let used = state.in_flight_bytes;
        let fits = |bytes| used == 0 || used + bytes <= credit;
        while let Some(shipment) = state.queue.pop_front() {
            match shipment.next(carriage, fits) {
                Next::Piece { sending, blocks } => {
                    state.queue.push_back(shipment.clone());
                    return Step::Piece { shipment, sending, blocks };
                }
                Next::NoCredit => {
                    state.queue.push_front(shipment);
                    return Step::Wait;
                }
                Next::Nothing => {}
            }
        }
        Step::Wait
    }

    /// Makes a piece's header, reads its bytes into `payload` if they are to be sent, and notes that it is on its way.
    fn prepare(
        &self,
        shipment: &Arc<Shipment>,
        mut sending: Sending,
        blocks: Arc<BlockTable>,
        carriage: Carriage,
        payload: &mut Vec<u8>,
    ) -> Result<Piece, TransferError> {
        let number = sending.number.unwrap_or_else(|| self.state.lock().number());
        let (span, layout) = (&sending.span, self.store.layout());
        let (key, capability, bytes) = (&shipment.key, &shipment.capability, span.payload_bytes(&layout));
        let mut piece = piece::header(number, key, capability, span, bytes);
        let seed = piece::seed(&piece);
        let held = match (carriage, self.store.shareable()) {
            (Carriage::Fetched, Some(memory)) => {
                payload.clear();
                piece.checksum = memory.checksum(span, blocks.ids(), seed)?;
                piece.shm_blocks = piece::blocks_of(span, blocks.ids(), layout.block_size);
                Some(blocks)
            }
            _ => {
                // Not cleared before: all of it is read over.
                payload.resize(bytes, 0);
                piece.checksum = self.store.read_sealed(span, blocks.ids(), payload, seed)?;
                // What was read may change from here on; the piece has its own copy.
                None
            }
        };
        (sending.number, sending.attempts) = (Some(number), sending.attempts + 1);
        self.state.lock().sent(InFlight { shipment: shipment.clone(), sending, bytes: bytes as u64, _blocks: held });
        Ok(piece)
    }

    /// Handles what D answers; returns why there will be no more answers.
    async fn replies(&self, mut replies: BoxStream<'static, Result<KvReply, String>>, kind: TransportKind) -> String {
        while let Some(reply) = replies.next().await {
            let handled = reply.and_then(|reply| self.on_reply(reply, kind));
            if let Err(reason) = handled {
                return reason;
            }
        }
        "the connection ended".to_owned()
    }

    fn on_reply(&self, reply: KvReply, kind: TransportKind) -> Result<(), String> {
        match reply.body.ok_or("a reply of a kind that we do not know")? {
            Reply::Ack(ack) => {
                let InFlight { shipment, sending, bytes, .. } = self.answered(ack.piece)?;
                self.counters.count_piece(kind, bytes);
                shipment.acknowledged(&sending.span, kind);
            }
            Reply::Nack(nack) => self.on_nack(nack)?,
            Reply::Committed(committed) => {
                if let Some(shipment) = self.shipment(&committed.request_id, committed.epoch) {
                    shipment.committed();
                }
            }
            Reply::Refused(Refused { request_id, epoch, reason }) => {
                if let Some(shipment) = self.shipment(&request_id, epoch) {
                    shipment.fail(TransferError::Refused { key: shipment.key.clone(), reason });
                }
            }
            Reply::Welcome(_) => return Err("a second welcome".to_owned()),
        }
        Ok(())
    }

    fn on_nack(&self, nack: PieceNack) -> Result<(), String> {
        let InFlight { shipment, sending, .. } = self.answered(nack.piece)?;
        if !nack.resend {
            shipment.fail(TransferError::Refused { key: shipment.key.clone(), reason: nack.reason });
            return Ok(());
        }
        tracing::warn!(key = %shipment.key, peer = %self.peer.instance, layer = sending.span.layer, "a piece was damaged");
        self.counters.count_retried();
        if shipment.damaged(sending) {
            self.attend(&shipment);
        }
        Ok(())
    }

    /// The piece that D has answered; its credit is free again.
    fn answered(&self, number: u64) -> Result<InFlight, String> {
        let mut state = self.state.lock();
        let answered =
            state.in_flight.remove(&number).ok_or_else(|| format!("an answer to piece {number}, never sent"))?;
        state.in_flight_bytes -= answered.bytes;
        state.answered_at = Some(Instant::now());
        self.wake.notify_one();
        Ok(answered)
    }

    fn shipment(&self, request: &str, epoch: u32) -> Option<Arc<Shipment>> {
        let key = RequestKey { request: RequestId::from(request), epoch };
        self.state.lock().shipments.get(&key).cloned()
    }

    /// Returns when D has owed an answer for too long.
    async fn stalled(&self) -> String {
        let stall = self.config.stall;
        loop {
            tokio::time::sleep(stall / 16).await;
            let state = self.state.lock();
            let silent = state.answered_at.is_some_and(|answered| answered.elapsed() >= stall);
            if silent && !state.in_flight.is_empty() {
                return format!("no answer for {} ms", stall.as_millis());
            }
        }
    }
}
