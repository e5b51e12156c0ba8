//! What happens to KV frames on their way: a bad network card drops, doubles, swaps and damages them, and a stranger sends pieces of
//! his own. Frames are those of `proto/kv.proto` over TCP.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use net::sim::Tamper;
use parking_lot::Mutex;
use prost::Message;
use proto::kv::kv_frame::Body;
use proto::kv::kv_reply::Body as Reply;
use proto::kv::{KvFrame, KvReply, Piece};
use rand::Rng;
use rand::rngs::StdRng;

use crate::control::Mischief;
use crate::plan::pick_of_thousand;
use crate::witness::{Attempt, Witness};

/// How many frames of a thousand suffer what.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Damage {
    pub(crate) dropped: u32,
    pub(crate) doubled: u32,
    pub(crate) swapped: u32,
    pub(crate) flipped: u32,
}

impl Damage {
    pub(crate) fn draw(random: &mut StdRng) -> Self {
        let mut share = |most| random.random_range(0..=most);
        Self { dropped: share(10), doubled: share(80), swapped: share(80), flipped: share(150) }
    }

    pub(crate) fn any(&self) -> bool {
        self.dropped + self.doubled + self.swapped + self.flipped > 0
    }
}

/// Numbers of forged pieces begin here; no sender gets so far.
const FORGED: u64 = 1 << 63;

/// Pieces under way on one connection: which attempt they belong to.
pub(crate) type Pieces = Arc<Mutex<BTreeMap<u64, Attempt>>>;

/// One direction of one connection, from P to D.
pub(crate) struct Frames {
    pub(crate) damage: Damage,
    pub(crate) mischief: Mischief,
    pub(crate) pieces: Pieces,
    pub(crate) random: StdRng,
    pub(crate) unread: Vec<u8>,
    /// Goes out after the next one.
    pub(crate) held: Option<Vec<u8>>,
    /// The card works again, the stranger is gone.
    pub(crate) over: Arc<AtomicBool>,
}

impl Frames {
    fn happens(&mut self, of_thousand: u32) -> bool {
        pick_of_thousand(&mut self.random, of_thousand)
    }

    fn suffer(&mut self, mut frame: Vec<u8>, out: &mut Vec<u8>) {
        if self.happens(self.damage.dropped) {
            return;
        }
        if self.happens(self.damage.flipped) {
            let bit = self.random.random_range(0..frame.len() * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        if self.held.is_none() && self.happens(self.damage.swapped) {
            self.held = Some(frame);
            return;
        }
        out.extend(&frame);
        if self.happens(self.damage.doubled) {
            out.extend(&frame);
        }
        out.extend(self.held.take().unwrap_or_default());
    }

    /// The same piece with other bytes, rightly sealed, from somebody who knows either its capability or its epoch.
    fn forge(&mut self, piece: &Piece, payload: &[u8]) -> Vec<u8> {
        let mut forged = Piece { piece: FORGED + piece.piece, ..piece.clone() };
        match self.random.random_bool(0.5) {
            true => forged.epoch = forged.epoch.checked_sub(1).unwrap_or(1),
            false => forged.capability = self.random.random::<[u8; 16]>().to_vec().into(),
        }
        let payload: Vec<u8> = payload.iter().map(|byte| !byte).collect();
        transfer::fuzz::seal(&mut forged, &payload);
        let head = KvFrame { body: Some(Body::Piece(forged)), payload: bytes::Bytes::new() }.encode_to_vec();
        [&(head.len() as u32).to_le_bytes(), head.as_slice(), &payload].concat()
    }
}

impl Tamper for Frames {
    fn pass(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        self.unread.extend(bytes);
        let mut out = Vec::new();
        while let Some((length, body)) = frame_length(&self.unread) {
            let frame: Vec<u8> = self.unread.drain(..length).collect();
            match body.filter(|_| !self.over.load(Relaxed)) {
                Some(Body::Piece(piece)) => {
                    self.pieces.lock().insert(piece.piece, (piece.request_id.clone(), piece.epoch));
                    if self.happens(self.mischief.forged) {
                        let payload = &frame[length - piece.payload_len as usize..];
                        out.extend(self.forge(&piece, payload));
                    }
                    self.suffer(frame, &mut out);
                }
                Some(Body::Abandon(_)) if self.happens(self.mischief.abandons_lost) => {}
                _ => out.extend(frame),
            }
        }
        out
    }
}

/// The other direction, from D to P: what D says of forged pieces reaches nobody.
pub(crate) struct Answers {
    pub(crate) pieces: Pieces,
    pub(crate) witness: Witness,
    pub(crate) unread: Vec<u8>,
}

impl Answers {
    /// Notes what D says; false if it is no business of P's.
    fn hear(&self, reply: &KvReply) -> bool {
        match &reply.body {
            Some(Reply::Ack(ack)) if ack.piece >= FORGED => {
                self.witness.accuse(format!("D has taken a forged piece, number {}", ack.piece - FORGED));
                false
            }
            Some(Reply::Nack(nack)) if nack.piece >= FORGED => false,
            Some(Reply::Ack(ack)) => {
                if let Some(attempt) = self.pieces.lock().remove(&ack.piece) {
                    self.witness.landed(attempt);
                }
                true
            }
            _ => true,
        }
    }
}

impl Tamper for Answers {
    fn pass(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        self.unread.extend(bytes);
        let mut out = Vec::new();
        while let Some(head) = self.unread.first_chunk::<4>() {
            let length = 4 + u32::from_le_bytes(*head) as usize;
            if self.unread.len() < length {
                break;
            }
            let frame: Vec<u8> = self.unread.drain(..length).collect();
            if KvReply::decode(&frame[4..]).is_ok_and(|reply| self.hear(&reply)) {
                out.extend(frame);
            }
        }
        out
    }
}

/// Says everything twice that holds tokens: [`Sabotage::Double`](crate::Sabotage).
pub(crate) struct Twice;

impl Tamper for Twice {
    fn pass(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let is_event = bytes.windows(6).any(|part| part == b"data: ") && !bytes.starts_with(b"HTTP");
        if is_event { bytes.repeat(2) } else { bytes }
    }
}

/// Length of the first frame with its payload, once all of it is there; and what it says.
fn frame_length(bytes: &[u8]) -> Option<(usize, Option<Body>)> {
    let head = bytes.first_chunk::<4>()?;
    let message = 4 + u32::from_le_bytes(*head) as usize;
    let frame = KvFrame::decode(bytes.get(4..message)?).ok()?;
    let payload = match &frame.body {
        Some(Body::Piece(piece)) => piece.payload_len as usize,
        _ => 0,
    };
    (bytes.len() >= message + payload).then_some((message + payload, frame.body))
}
