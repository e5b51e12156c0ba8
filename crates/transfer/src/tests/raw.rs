//! A peer that speaks the wire by hand: sends what no sender of ours would.

use std::sync::Arc;

use futures::StreamExt;
use kv::{KvSpan, KvStore};
use proto::kv::kv_frame::Body as Frame;
use proto::kv::kv_reply::Body as Reply;
use proto::kv::{KvHello, Piece};

use super::harness::{Pair, VecStore, config};
use crate::ticket::Ticket;
use crate::transport::{Link, inproc, tcp};
use crate::{Landing, TransportKind, handshake, piece};

pub(super) struct Raw {
    pub(super) link: Link,
    store: Arc<VecStore>,
}

impl Raw {
    /// A connection on which nothing was said yet.
    pub(super) async fn connect(pair: &Pair, kind: TransportKind) -> Self {
        let ticket = Ticket::decode(&pair.open(&super::harness::key("probe", 0), 0..1, &[]).ticket()).unwrap();
        let endpoint = ticket.endpoints.iter().find(|endpoint| endpoint.kind == kind).unwrap();
        let link = match kind {
            TransportKind::Inproc => {
                inproc::connect(&endpoint.address, &*pair.p.store, &mut KvHello::default()).unwrap()
            }
            _ => tcp::connect(&config("prefill-0", kind), &endpoint.address).await.unwrap(),
        };
        Self { link, store: pair.p.store.clone() }
    }

    /// A connection that has shaken hands.
    pub(super) async fn welcome(pair: &Pair, kind: TransportKind) -> Self {
        let mut raw = Self::connect(pair, kind).await;
        let hello = raw.hello();
        let Some(Reply::Welcome(welcome)) = raw.ask(Frame::Hello(hello), &[]).await else { panic!("no welcome") };
        assert_eq!(welcome.mismatch, None);
        raw
    }

    pub(super) fn hello(&self) -> KvHello {
        handshake::hello(&config("prefill-0", TransportKind::Tcp), &self.store.layout())
    }

    /// A right piece for `landing`: P's tokens 0.. at P's blocks 0.. .
    pub(super) fn piece(&self, landing: &Landing, number: u64, span: KvSpan) -> (Piece, Vec<u8>) {
        let ticket = Ticket::decode(&landing.ticket()).unwrap();
        let layout = self.store.layout();
        let blocks: Vec<_> = (0..layout.blocks).map(kv::BlockId).collect();
        let mut payload = vec![0; span.payload_bytes(&layout)];
        self.store.read(&span, &blocks, &mut payload).unwrap();
        (piece::sealed(number, &ticket.key, &ticket.capability, &span, &payload), payload)
    }

    pub(super) async fn send(&mut self, frame: Frame, payload: &[u8]) {
        self.link.sink.send(frame, &mut payload.to_vec()).await.unwrap();
    }

    /// Sends a frame and waits for an answer; None when the connection ends instead.
    pub(super) async fn ask(&mut self, frame: Frame, payload: &[u8]) -> Option<Reply> {
        self.send(frame, payload).await;
        self.answer().await
    }

    pub(super) async fn answer(&mut self) -> Option<Reply> {
        self.link.replies.next().await?.ok()?.body
    }

    /// Sends a piece; the number acknowledged, or the reason of the refusal and whether it may be sent again.
    pub(super) async fn piece_answer(&mut self, piece: &Piece, payload: &[u8]) -> Result<u64, (String, bool)> {
        match self.ask(Frame::Piece(piece.clone()), payload).await {
            Some(Reply::Ack(ack)) => Ok(ack.piece),
            Some(Reply::Nack(nack)) => Err((nack.reason, nack.resend)),
            other => panic!("neither ack nor nack: {other:?}"),
        }
    }
}
