//! Every bound of a KV port is hit: who exceeds it is closed, and what he held is given back.

use std::time::Duration;

use kv::KvSpan;
use proto::kv::kv_frame::Body as Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{Pair, Side, config, key, layout};
use super::raw::Raw;
use crate::{KvBounds, TransferConfig, TransportKind};

const KIND: TransportKind = TransportKind::Tcp;
/// Only there to fail in.
const PATIENCE: Duration = Duration::from_secs(20);

async fn pair(bounds: KvBounds) -> Pair {
    let receiver = TransferConfig { bounds, ..config("decode-0", KIND) };
    Pair::between(KIND, Side::new(layout(16)), Side::new(layout(16)), config("prefill-0", KIND), receiver).await
}

async fn closed(mut stream: TcpStream) {
    let mut answer = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(end.is_ok() && answer.is_empty(), "{answer:?}");
}

async fn connect(pair: &Pair) -> TcpStream {
    TcpStream::connect(pair.listening.as_ref().unwrap().address()).await.unwrap()
}

#[tokio::test]
async fn silent_connections_and_long_messages_are_closed() {
    let pair = pair(KvBounds { hello: Duration::from_millis(100), ..KvBounds::default() }).await;
    closed(connect(&pair).await).await;
    for length in [KvBounds::default().message_bytes as u32 + 1, u32::MAX] {
        let mut long = connect(&pair).await;
        long.write_all(&length.to_le_bytes()).await.unwrap();
        closed(long).await;
    }
}

#[tokio::test]
async fn one_connection_too_many_is_closed_at_once() {
    let pair = pair(KvBounds { connections: 2, ..KvBounds::default() }).await;
    let held = [Raw::welcome(&pair, KIND).await, Raw::welcome(&pair, KIND).await];
    closed(connect(&pair).await).await;
    drop(held);
    let again = async {
        // A place comes back when the receiver has seen the end.
        while pair.hand_over(&key("a", 0), &super::secret::CASE, 1).await.is_err() {}
    };
    assert!(tokio::time::timeout(PATIENCE, again).await.is_ok());
}

#[tokio::test]
async fn a_payload_that_does_not_come_ends_the_connection() {
    let pair = pair(KvBounds { payload: Duration::from_millis(100), ..KvBounds::default() }).await;
    let mut raw = Raw::welcome(&pair, KIND).await;
    let blocks = pair.d.blocks(&key("a", 0), 16, kv::Phase::Landing);
    let landing = pair.open(&key("a", 0), 0..16, &blocks);
    let (piece, _) = raw.piece(&landing, 1, KvSpan { layer: 0, heads: 0..4, tokens: 0..16 });
    raw.send(Frame::Piece(piece), &[]).await;
    let answer = tokio::time::timeout(PATIENCE, raw.answer()).await.expect("closed");
    assert!(answer.is_none(), "{answer:?}");
}
