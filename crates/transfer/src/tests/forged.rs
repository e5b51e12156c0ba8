//! What D does with pieces that are damaged, old, forged, doubled or out of order: nothing of it lands.

use kv::{BlockId, BlockRef, KvSpan, KvStore, Phase, ShareableKv};
use proto::kv::kv_frame::Body as Frame;
use proto::kv::kv_reply::Body as Reply;
use proto::kv::{Abandon, KvHello, KvShared, Piece};

use super::harness::{Pair, ids, key, layout};
use super::raw::Raw;
use crate::{Landing, Refusal, TransferError, TransportKind, handshake};

/// Tokens 16..32 are lacking; P's store is filled.
async fn open(kind: TransportKind) -> (Pair, Raw, Landing, Vec<BlockRef>) {
    let pair = Pair::new(kind, layout(16), layout(16)).await;
    let all: Vec<_> = (0..2).map(kv::BlockId).collect();
    pair.p.store.fill(&all, 0..32, 1);
    let raw = Raw::welcome(&pair, kind).await;
    let blocks = pair.d.blocks(&key("r", 3), 32, Phase::Landing);
    let landing = pair.open(&key("r", 3), 16..32, &blocks);
    (pair, raw, landing, blocks)
}

fn span(layer: u32, heads: std::ops::Range<u32>, tokens: std::ops::Range<u32>) -> KvSpan {
    KvSpan { layer, heads, tokens }
}

/// A change to a right piece, what D says of it, and what it counts.
type Forgery = (fn(&mut Piece, &mut Vec<u8>), Refusal);

const FORGERIES: [Forgery; 19] = [
    (|piece, _| piece.request_id = "s".into(), Refusal::UnknownRequest),
    (|piece, _| piece.request_id.clear(), Refusal::UnknownRequest),
    (|piece, _| piece.epoch = 2, Refusal::Stale),
    (|piece, _| piece.epoch = 4, Refusal::UnknownRequest),
    (|piece, _| piece.capability = vec![0; 16].into(), Refusal::Capability),
    (|piece, _| piece.capability = Default::default(), Refusal::Capability),
    (|piece, _| piece.layer = 3, Refusal::OutOfRange),
    (|piece, _| piece.layer = 0, Refusal::Checksum),
    (|piece, _| piece.head_end = 5, Refusal::OutOfRange),
    (|piece, _| (piece.head_start, piece.head_end) = (4, 0), Refusal::OutOfRange),
    (|piece, _| piece.head_start = 1, Refusal::Length),
    (|piece, _| piece.token_start = 15, Refusal::OutOfRange),
    (|piece, _| (piece.token_start, piece.token_end) = (24, 16), Refusal::OutOfRange),
    (|piece, _| piece.token_end = u32::MAX, Refusal::OutOfRange),
    (|piece, _| (piece.token_start, piece.token_end) = (24, 32), Refusal::Checksum),
    (|piece, _| piece.piece ^= 1, Refusal::Checksum),
    (|piece, _| piece.checksum ^= 1 << 63, Refusal::Checksum),
    (|_, payload| payload[1000] ^= 4, Refusal::Checksum),
    (
        |piece, payload| {
            payload.push(0);
            piece.payload_len += 1;
        },
        Refusal::Length,
    ),
];

#[tokio::test]
async fn f9_f10_a_damaged_or_forged_piece_is_refused_and_counted_and_does_not_land() {
    for kind in [TransportKind::Inproc, TransportKind::Tcp] {
        for (case, (forge, refusal)) in FORGERIES.iter().enumerate() {
            let (pair, mut raw, landing, blocks) = open(kind).await;
            let (right, payload) = raw.piece(&landing, 8, span(1, 0..4, 16..24));
            let (mut piece, mut forged) = (right.clone(), payload.clone());
            forge(&mut piece, &mut forged);
            let answer = raw.piece_answer(&piece, &forged).await;
            let resend = *refusal == Refusal::Checksum;
            assert_eq!(answer, Err((refusal.to_string(), resend)), "{kind}, case {case}");
            assert_eq!(pair.receiver.counters().refused(*refusal), 1, "{kind}, case {case}");
            // Checksums are known only when a piece has been written; nothing else is written at all.
            let written = pair.d.store.dump(&ids(&blocks), 0..32);
            assert!(resend || written.iter().all(|&byte| byte == 0), "{kind}, case {case}: something was written");
            // The stream is still in step, and the landing still takes the right piece, over whatever was written.
            assert_eq!(raw.piece_answer(&right, &payload).await, Ok(8), "{kind}, case {case}");
            let mut landed = vec![0; payload.len()];
            pair.d.store.read(&span(1, 0..4, 16..24), &ids(&blocks), &mut landed).unwrap();
            assert!(landed == payload, "{kind}, case {case}: other bytes");
            let before = pair.d.store.dump(&ids(&blocks), 0..16);
            assert!(before.iter().all(|&byte| byte == 0), "{kind}, case {case}: written outside");
        }
    }
}

#[tokio::test]
async fn f10_order_and_repetition_do_not_matter() {
    let (pair, mut raw, landing, blocks) = open(TransportKind::Tcp).await;
    let parts = [
        span(2, 2..4, 16..32),
        span(0, 0..4, 24..32),
        span(2, 0..2, 16..32),
        span(0, 0..4, 16..24),
        span(1, 0..4, 16..32),
    ];
    for (number, span) in parts.iter().enumerate() {
        let (piece, payload) = raw.piece(&landing, number as u64, span.clone());
        for _ in 0..2 {
            assert_eq!(raw.piece_answer(&piece, &payload).await, Ok(number as u64));
        }
    }
    let stats = landing.landed().await.unwrap();
    assert_eq!((stats.pieces, pair.receiver.counters().duplicates()), (5, 5));
    let all: Vec<_> = (0..2).map(kv::BlockId).collect();
    assert!(pair.d.store.dump(&ids(&blocks), 16..32) == pair.p.store.dump(&all, 16..32));
    assert!(landing.commit().is_ok());
}

#[tokio::test]
async fn an_overlap_with_other_bounds_is_refused() {
    let (pair, mut raw, landing, _blocks) = open(TransportKind::Inproc).await;
    let (first, payload) = raw.piece(&landing, 0, span(0, 0..2, 16..24));
    raw.piece_answer(&first, &payload).await.unwrap();
    for other in [span(0, 0..4, 16..24), span(0, 1..2, 20..28), span(0, 0..2, 16..23)] {
        let (piece, payload) = raw.piece(&landing, 1, other);
        assert_eq!(raw.piece_answer(&piece, &payload).await, Err(("overlap".into(), false)));
    }
    assert_eq!(pair.receiver.counters().refused(Refusal::Overlap), 3);
}

#[tokio::test]
async fn f10_a_newer_attempt_takes_over_and_an_older_one_never_does() {
    let (pair, mut raw, old, blocks) = open(TransportKind::Tcp).await;
    let (piece, payload) = raw.piece(&old, 0, span(0, 0..4, 16..32));
    let new = pair.open(&key("r", 4), 16..32, &blocks);
    assert_eq!(raw.piece_answer(&piece, &payload).await, Err(("stale".into(), false)));
    let superseded =
        |epoch| TransferError::Refused { key: key("r", epoch), reason: "attempt 4 of the request is open".into() };
    assert_eq!(old.landed().await, Err(superseded(3)));
    assert_eq!(pair.open(&key("r", 3), 16..32, &blocks).landed().await, Err(superseded(3)));
    assert_eq!(pair.open(&key("r", 4), 16..32, &blocks).landed().await, Err(superseded(4)));
    // Dropping the losers does not close the winner.
    drop(old);
    let (piece, payload) = raw.piece(&new, 1, span(0, 0..4, 16..32));
    assert_eq!(raw.piece_answer(&piece, &payload).await, Ok(1));
}

#[tokio::test]
async fn only_the_tickets_holder_can_abandon() {
    let (_pair, mut raw, landing, _blocks) = open(TransportKind::Tcp).await;
    let (piece, payload) = raw.piece(&landing, 0, span(0, 0..4, 16..32));
    let abandon = |capability| Abandon { request_id: "r".into(), epoch: 3, capability, reason: "test".into() };
    raw.send(Frame::Abandon(abandon(vec![1; 16].into())), &[]).await;
    assert_eq!(raw.piece_answer(&piece, &payload).await, Ok(0), "a forged abandon changes nothing");
    raw.send(Frame::Abandon(abandon(piece.capability.clone())), &[]).await;
    let error = landing.landed().await.unwrap_err();
    assert_eq!(error.to_string(), "r#3: refused by the peer: abandoned by the prefill instance: test");
}

/// What is copied out of P's memory is what its checksum says, or it has not arrived.
#[tokio::test]
async fn a_fetched_piece_that_was_written_over_is_asked_for_again() {
    let (pair, _, landing, _blocks) = open(TransportKind::Inproc).await;
    let mut raw = Raw::connect(&pair, TransportKind::Inproc).await;
    let shared = handshake::describe(&pair.p.store.share(), String::new());
    let hello = KvHello { shared: Some(shared), ..raw.hello() };
    let Some(Reply::Welcome(welcome)) = raw.ask(Frame::Hello(hello), &[]).await else { panic!("no welcome") };
    assert_eq!(welcome.shm_refusal, "");
    let fetched = |piece, block| Piece { shm_blocks: vec![block], ..piece };
    let piece = fetched(raw.piece(&landing, 0, span(0, 0..4, 16..32)).0, 1);
    let fill = |seed| pair.p.store.fill(&[BlockId(0), BlockId(1)], 0..32, seed);
    fill(2);
    assert_eq!(raw.piece_answer(&piece, &[]).await, Err(("checksum".into(), true)));
    fill(1);
    assert_eq!(raw.piece_answer(&piece, &[]).await, Ok(0));
    let outside = fetched(raw.piece(&landing, 1, span(1, 0..4, 16..32)).0, 128);
    assert_eq!(raw.piece_answer(&outside, &[]).await, Err(("out_of_range".into(), false)));
    assert_eq!(pair.receiver.counters().refused(Refusal::Checksum), 1);
}

/// Pieces of several MiB are admitted by their header: a length that the span does not have is never read into memory.
#[tokio::test]
async fn a_length_above_the_bound_ends_the_connection() {
    let (pair, mut raw, landing, _blocks) = open(TransportKind::Tcp).await;
    let (mut piece, _) = raw.piece(&landing, 0, span(0, 0..4, 16..32));
    piece.payload_len = 1 << 40;
    assert_eq!(raw.ask(Frame::Piece(piece), &[]).await, None);
    assert_eq!(pair.receiver.counters().connections_lost(), 1);
}

#[tokio::test]
async fn nothing_is_served_before_a_hello_that_fits() {
    let pair = Pair::new(TransportKind::Tcp, layout(16), layout(16)).await;
    let foreign = KvShared { socket: "/run/dbus".into(), ..KvShared::default() };
    let mut raw = Raw::connect(&pair, TransportKind::Tcp).await;
    assert_eq!(raw.ask(Frame::Piece(Piece::default()), &[]).await, None, "a piece is not a hello");
    let mut raw = Raw::connect(&pair, TransportKind::Tcp).await;
    let hello = KvHello { shared: Some(foreign), ..raw.hello() };
    let Some(proto::kv::kv_reply::Body::Welcome(welcome)) = raw.ask(Frame::Hello(hello), &[]).await else {
        panic!("no welcome")
    };
    assert_eq!(welcome.shm_refusal, "not a name that a sender uses");
    assert_eq!(raw.answer().await, None);
}

#[tokio::test]
async fn garbage_ends_its_connection_and_nothing_else() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pair = Pair::new(TransportKind::Tcp, layout(16), layout(16)).await;
    let address = pair.listening.as_ref().unwrap().address();
    let mut http = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    http.resize(8192, 0);
    for garbage in [vec![0xff; 4096], vec![0; 4096], http, vec![16, 0, 0, 0, 1, 2, 3]] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        // The door may close while we still write.
        let _ = stream.write_all(&garbage).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(answer, b"");
    }
    let case = super::harness::Case { prompt: 40, cached: 0, chunk: 16, heads: 4 };
    pair.hand_over(&key("r", 0), &case, 1).await.unwrap();
}

/// A landing that does not fit its own store fails instead of writing elsewhere.
#[tokio::test]
async fn too_few_blocks_fail_the_landing() {
    let (pair, mut raw, _landing, blocks) = open(TransportKind::Inproc).await;
    let landing = pair.open(&key("short", 0), 0..32, &blocks[..1]);
    let (piece, payload) = raw.piece(&landing, 0, span(0, 0..4, 0..32));
    assert_eq!(raw.piece_answer(&piece, &payload).await, Err(("out_of_range".into(), false)));
    assert!(matches!(landing.landed().await, Err(TransferError::Store(_))));
}
