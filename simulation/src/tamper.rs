//! What a bad network card does to KV frames: drops, doubles, swaps and damages them. Frames are those of `proto/kv.proto` over TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use net::sim::Tamper;
use prost::Message;
use proto::kv::KvFrame;
use proto::kv::kv_frame::Body;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

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
        Self { dropped: share(10), doubled: share(80), swapped: share(80), flipped: share(40) }
    }

    pub(crate) fn any(&self) -> bool {
        self.dropped + self.doubled + self.swapped + self.flipped > 0
    }
}

/// One direction of one connection, from P to D.
pub(crate) struct Frames {
    damage: Damage,
    random: StdRng,
    unread: Vec<u8>,
    /// Goes out after the next one.
    held: Option<Vec<u8>>,
    /// The card works again.
    over: Arc<AtomicBool>,
}

impl Frames {
    pub(crate) fn new(damage: Damage, seed: u64, from: SocketAddr, over: Arc<AtomicBool>) -> Self {
        let random = StdRng::seed_from_u64(seed ^ u64::from(from.port()) << 32);
        Self { damage, random, unread: Vec::new(), held: None, over }
    }

    fn happens(&mut self, of_thousand: u32) -> bool {
        self.random.random_range(0..1000) < of_thousand
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
}

impl Tamper for Frames {
    fn pass(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        self.unread.extend(bytes);
        let mut out = Vec::new();
        while let Some((length, is_piece)) = frame_length(&self.unread) {
            let frame: Vec<u8> = self.unread.drain(..length).collect();
            match is_piece {
                true if !self.over.load(Relaxed) => self.suffer(frame, &mut out),
                _ => out.extend(frame),
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

/// Length of the first frame with its payload, once all of it is there; and whether it is a piece.
fn frame_length(bytes: &[u8]) -> Option<(usize, bool)> {
    let head = bytes.first_chunk::<4>()?;
    let message = 4 + u32::from_le_bytes(*head) as usize;
    let frame = KvFrame::decode(bytes.get(4..message)?).ok()?;
    let (payload, is_piece) = match frame.body {
        Some(Body::Piece(piece)) => (piece.payload_len as usize, true),
        _ => (0, false),
    };
    (bytes.len() >= message + payload).then_some((message + payload, is_piece))
}
