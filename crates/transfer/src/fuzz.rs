//! What bytes of a foreign peer reach, without a socket: entries for the fuzz targets.

use std::sync::Arc;
use std::time::Duration;

use kv::{BlockId, KvSpan, KvStore};
use proto::kv::KvFrame;
use proto::kv::kv_frame::Body;
use proto::kv::kv_reply::Body as Reply;
use tokio::sync::mpsc;
use types::RequestKey;

use crate::landing::Site;
use crate::receiver::KvReceiver;
use crate::serve::{REPLIES_MAX, serve};
use crate::ticket::{Capability, Endpoint, Ticket};
use crate::transport::tcp;
use crate::{LandingRequest, TransferConfig, TransportKind, handshake, piece};

/// Of the one attempt that is open.
const CAPABILITY: Capability = [7; 16];
const TOKENS: std::ops::Range<u32> = 0..8;

fn key() -> RequestKey {
    RequestKey { request: "r".into(), epoch: 1 }
}

fn config(instance: &str) -> TransferConfig {
    TransferConfig::new(instance.into(), 1, "fuzz")
}

/// Reads a ticket; one that can be read is the same after it was written again.
pub fn ticket(bytes: &[u8]) -> bool {
    let Ok(ticket) = Ticket::decode(bytes) else { return false };
    let again = ticket.encode();
    // What we write may be longer than what we were sent, and is bounded too.
    assert!(Ticket::decode(&again).is_ok_and(|again| again == ticket) || again.len() > bytes.len());
    true
}

/// A ticket that can be read.
pub fn ticket_example() -> Vec<u8> {
    let endpoint = |kind| Endpoint { kind, address: "10.0.0.1:8001".into(), host_id: "h".into() };
    let ticket = Ticket {
        key: key(),
        capability: CAPABILITY,
        instance: "decode-0".into(),
        incarnation: 9,
        tokens: TOKENS,
        lease: Duration::from_secs(10),
        endpoints: vec![endpoint(TransportKind::Tcp), endpoint(TransportKind::Grpc)],
    };
    ticket.encode().to_vec()
}

/// Serves one connection to D on which `bytes` arrive, while one attempt is open; true if its hello was welcome and a piece of it
/// was written.
pub async fn connection(bytes: &[u8], store: Arc<dyn KvStore>) -> bool {
    let receiver = KvReceiver::new(config("decode-0"), store.clone());
    let blocks = (0..TOKENS.end.div_ceil(store.layout().block_size)).map(BlockId).collect();
    let request = LandingRequest { key: key(), blocks, tokens: TOKENS, lease: Duration::from_secs(10) };
    let registry = receiver.registry();
    registry.enter(&Arc::new(Site::new(request, CAPABILITY, store)));
    let (sender, mut replies) = mpsc::channel(REPLIES_MAX);
    let source = tcp::Source::new(std::io::Cursor::new(bytes.to_vec()), config("decode-0").bounds.message_bytes);
    let serving = serve(registry.clone(), Box::new(source), sender, "fuzz".into());
    let hearing = async {
        let mut acknowledged = 0;
        while let Some(reply) = replies.recv().await {
            acknowledged += usize::from(matches!(reply.body, Some(Reply::Ack(_))));
        }
        acknowledged
    };
    tokio::join!(serving, hearing).1 > 0
}

/// What a good peer says: a hello, then two pieces of the open attempt.
pub fn connection_example(store: &dyn KvStore) -> Vec<u8> {
    let layout = store.layout();
    let mut bytes = Vec::new();
    let mut say = |body, payload: &[u8]| {
        tcp::encode(&KvFrame { body: Some(body), payload: bytes::Bytes::new() }, &mut bytes);
        bytes.extend_from_slice(payload);
    };
    say(Body::Hello(handshake::hello(&config("prefill-0"), &layout)), &[]);
    for (number, layer) in (0..layout.layers.min(2)).enumerate() {
        let span = KvSpan { layer, heads: 0..layout.kv_heads, tokens: TOKENS };
        let payload = vec![number as u8; span.payload_bytes(&layout)];
        let head = piece::sealed(number as u64, &key(), &CAPABILITY, &span, &payload);
        say(Body::Piece(head), &payload);
    }
    bytes
}
