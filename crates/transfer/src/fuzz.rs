//! What bytes of a foreign peer reach, without a socket: entries for the fuzz targets and the simulation.

use std::io::{IoSlice, Result as IoResult};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use kv::{BlockId, KvSpan, KvStore};
use prost::Message;
use proto::kv::kv_frame::Body;
use proto::kv::kv_reply::Body as Reply;
use proto::kv::{KvFrame, KvHello, Piece};
use rustix::cmsg_space;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::sync::mpsc;
use tokio::time::Instant;
use types::RequestKey;

use crate::landing::{Landed, Site, Source};
use crate::receiver::KvReceiver;
use crate::serve::{REPLIES_MAX, serve};
use crate::ticket::{Capability, Endpoint, Ticket};
use crate::transport::{Payload, shm, tcp};
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
    let registry = receiver.registry();
    registry.enter(&Arc::new(site(store)));
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

/// Gives a piece the length and checksum that fit `payload`, as whoever forges one can.
pub fn seal(piece: &mut Piece, payload: &[u8]) {
    piece.payload_len = payload.len() as u64;
    piece.checksum = piece::checksum(piece, payload);
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

/// An attempt that waits for its tokens.
fn site(store: Arc<dyn KvStore>) -> Site {
    let blocks = (0..TOKENS.end.div_ceil(store.layout().block_size)).map(BlockId).collect();
    let request = LandingRequest { key: key(), blocks, tokens: TOKENS, lease: Duration::from_secs(10) };
    Site::new(request, CAPABILITY, store)
}

/// Takes the memory that a peer offers and fetches a piece of the open attempt from there; true if it was written. The first byte says
/// how many files come with the hand-over, then follow the peer's hello and the piece, each behind its length.
pub fn shared_memory(bytes: &[u8], store: Arc<dyn KvStore>) -> bool {
    let Some((files, mut rest)) = bytes.split_first() else { return false };
    let (Ok(hello), Ok(piece)) =
        (KvHello::decode_length_delimited(&mut rest), Piece::decode_length_delimited(&mut rest))
    else {
        return false;
    };
    let (Some(shared), Some(ours)) = (&hello.shared, store.shareable()) else { return false };
    let Ok(file) = handed_over(usize::from(files % 4), &ours.share().file) else { return false };
    let Ok(theirs) = handshake::offered(&hello, shared, Arc::new(file)) else { return false };
    let Ok(memory) = ours.open(&theirs) else { return false };
    let (site, now, replies) = (site(store.clone()), Instant::now(), mpsc::channel(1).0);
    let Ok(span) = site.admit(&piece, now) else { return false };
    let blocks = piece.shm_blocks.iter().copied().map(BlockId).collect();
    let source = Source { connection: 0, kind: TransportKind::Shm, replies };
    let landed = site.land(&piece, span, Payload::Fetched { memory: &*memory, blocks }, &source, now);
    landed == Ok(Landed::Written)
}

/// What arrives where `count` files are sent.
fn handed_over(count: usize, file: &std::fs::File) -> IoResult<std::fs::File> {
    let (sender, receiver) = UnixStream::pair()?;
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = vec![file.as_fd(); count];
    if count > 0 {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    rustix::net::sendmsg(&sender, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    shm::receive_file(&receiver)
}

/// What a good peer of the same shape offers, and its first tokens.
pub fn shared_memory_example(store: &dyn KvStore) -> Vec<u8> {
    let layout = store.layout();
    let mut hello = handshake::hello(&config("prefill-0"), &layout);
    hello.shared = store.shareable().map(|ours| handshake::describe(&ours.share(), "fuzz".to_owned()));
    let span = KvSpan { layer: 0, heads: 0..layout.kv_heads, tokens: TOKENS };
    let blocks: Vec<_> = (0..TOKENS.end.div_ceil(layout.block_size)).map(BlockId).collect();
    let mut head = piece::header(0, &key(), &CAPABILITY, &span, span.payload_bytes(&layout));
    let checksum = store.shareable().and_then(|ours| ours.checksum(&span, &blocks, piece::seed(&head)).ok());
    head.checksum = checksum.unwrap_or_default();
    head.shm_blocks = blocks.iter().map(|block| block.0).collect();
    [vec![1], hello.encode_length_delimited_to_vec(), head.encode_length_delimited_to_vec()].concat()
}
