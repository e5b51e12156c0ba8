//! Peers that leave, stall, come back as another process, and links that break or flip bits.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use kv::{BlockId, KvError, KvLayout, KvSource, KvSpan, KvStore, Phase, ShareableKv, SharedKv};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::harness::{Case, LOCALHOST, Pair, Started, VecStore, config, ids, key, layout};
use super::raw::Raw;
use crate::ticket::Ticket;
use crate::{KvReceiver, KvSender, LandingRequest, TransferError, TransportKind};

/// One piece of 32 KiB per layer.
const CASE: Case = Case { prompt: 64, cached: 0, chunk: 64, heads: 4 };

async fn pair(kind: TransportKind) -> Pair {
    Pair::new(kind, layout(16), layout(16)).await
}

#[tokio::test]
async fn a_landing_dropped_midway_ends_the_outgoing_and_nothing_else() {
    for kind in TransportKind::ALL {
        let pair = pair(kind).await;
        let started = pair.start(&key("r", 0), &CASE, 1);
        started.outgoing.layer_ready(0, 0..4, 0..64);
        until(|| pair.sender.counters().pieces(kind) == 1).await;
        let Started { landing, outgoing, d_blocks, .. } = started;
        drop(landing);
        let error = outgoing.finish().await.unwrap_err();
        assert_eq!(error.to_string(), "r#0: refused by the peer: closed by the decode instance", "{kind}");
        drop(d_blocks);
        assert_eq!((pair.p.pool.stats().leased, pair.d.pool.stats().leased), (0, 0));
        pair.hand_over(&key("s", 0), &CASE, 2).await.unwrap();
        assert_eq!(pair.receiver.connections(), 1, "{kind}: still the same connection");
    }
}

#[tokio::test]
async fn an_outgoing_dropped_midway_ends_the_landing() {
    for kind in TransportKind::ALL {
        let pair = pair(kind).await;
        let Started { landing, outgoing, .. } = pair.start(&key("r", 0), &CASE, 1);
        outgoing.layer_ready(0, 0..4, 0..64);
        drop(outgoing);
        assert_eq!(pair.p.pool.stats().leased, 0);
        let error = landing.landed().await.unwrap_err().to_string();
        assert_eq!(error, "r#0: refused by the peer: abandoned by the prefill instance: the hand-over was dropped");
    }
}

#[tokio::test]
async fn a_prefill_instance_that_dies_ends_its_landings_at_once() {
    for kind in [TransportKind::Inproc, TransportKind::Tcp] {
        let pair = pair(kind).await;
        let landing = pair.open(&key("r", 0), 0..64, &pair.d.blocks(&key("r", 0), 64, Phase::Landing));
        let mut raw = Raw::welcome(&pair, kind).await;
        let (piece, payload) = raw.piece(&landing, 0, KvSpan { layer: 0, heads: 0..4, tokens: 0..64 });
        raw.piece_answer(&piece, &payload).await.unwrap();
        drop(raw);
        let lost = landing.landed().await;
        assert!(matches!(lost, Err(TransferError::PeerGone { .. })), "{kind}: {lost:?}");
    }
}

#[tokio::test]
async fn a_decode_instance_that_dies_ends_every_outgoing_to_it_at_once() {
    for kind in [TransportKind::Inproc, TransportKind::Shm, TransportKind::Tcp] {
        let mut pair = pair(kind).await;
        let many: Vec<_> = (0..4).map(|n| pair.start(&key(&format!("r{n}"), 0), &CASE, n)).collect();
        many.iter().for_each(|started| started.outgoing.layer_ready(0, 0..4, 0..64));
        until(|| pair.sender.counters().pieces(kind) == 4).await;
        pair.listening = None;
        for started in many {
            let lost = started.outgoing.finish().await;
            assert!(matches!(lost, Err(TransferError::PeerGone { .. })), "{kind}: {lost:?}");
        }
        // Back again: the next hand-over makes a new connection.
        pair.listening = Some(pair.receiver.listen(LOCALHOST, LOCALHOST, 0).await.unwrap());
        pair.hand_over(&key("s", 0), &CASE, 2).await.unwrap();
    }
}

#[tokio::test]
async fn nobody_there_and_another_process_there_are_told_apart() {
    let pair = pair(TransportKind::Tcp).await;
    let other = KvReceiver::new(
        crate::TransferConfig { incarnation: 8, ..config("decode-0", TransportKind::Tcp) },
        pair.d.store.clone(),
    );
    let other = other.listen(LOCALHOST, LOCALHOST, 0).await.unwrap();
    let nobody = {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap()
    };
    let lost = |address: SocketAddr| pair.start_by(&key("r", 0), &CASE, 1, |ticket| reroute(&ticket, address)).outgoing;
    for (address, reason) in [
        (nobody, "Connection refused (os error 111)"),
        (other.address(), "another process took its place; its tickets are void"),
    ] {
        let error = lost(address).finish().await.unwrap_err().to_string();
        assert_eq!(error, format!("peer decode-0 at {address} is gone: tcp: {reason}"));
    }
}

#[tokio::test]
async fn a_silent_peer_hurts_only_its_own_hand_overs() {
    let pair = pair(TransportKind::Tcp).await;
    let silent = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let address = silent.local_addr().unwrap();
    // Under another name, so that it is another peer.
    let stuck = pair.start_by(&key("stuck", 0), &CASE, 1, |ticket| {
        let ticket = Ticket::decode(&reroute(&ticket, address)).unwrap();
        Ticket { instance: "decode-1".into(), ..ticket }.encode()
    });
    stuck.report(&pair.p, 0..64);
    for request in 0..8 {
        pair.hand_over(&key(&format!("r{request}"), 0), &CASE, request).await.unwrap();
    }
    let error = stuck.outgoing.finish().await.unwrap_err().to_string();
    assert!(error.contains("no answer to the hello"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_extended_by_progress_and_then_runs_out() {
    let pair = pair(TransportKind::Inproc).await;
    let blocks = ids(&pair.d.blocks(&key("r", 0), 64, Phase::Landing));
    let lease = Duration::from_secs(10);
    let landing = pair.receiver.open(LandingRequest { key: key("r", 0), blocks, tokens: 0..64, lease });
    let mut raw = Raw::welcome(&pair, TransportKind::Inproc).await;
    for layer in 0..2 {
        tokio::time::sleep(Duration::from_secs(8)).await;
        let (piece, payload) = raw.piece(&landing, layer, KvSpan { layer: layer as u32, heads: 0..4, tokens: 0..64 });
        assert_eq!(raw.piece_answer(&piece, &payload).await, Ok(layer));
    }
    let started = Instant::now();
    assert_eq!(landing.landed().await, Err(TransferError::Lease { key: key("r", 0), lease }));
    assert_eq!(started.elapsed().as_secs(), 10);
    let (piece, payload) = raw.piece(&landing, 2, KvSpan { layer: 2, heads: 0..4, tokens: 0..64 });
    let Some(proto::kv::kv_reply::Body::Refused(refused)) = raw.answer().await else { panic!("P is told") };
    assert_eq!(refused.reason, "r#0: no progress within the lease of 10000 ms");
    assert_eq!(raw.piece_answer(&piece, &payload).await, Err(("closed".into(), false)));
}

#[tokio::test(start_paused = true)]
async fn a_lease_may_be_renewed_until_the_first_piece_and_no_longer() {
    let pair = pair(TransportKind::Inproc).await;
    let landing = pair.open(&key("r", 0), 0..64, &pair.d.blocks(&key("r", 0), 64, Phase::Landing));
    let mut raw = Raw::welcome(&pair, TransportKind::Inproc).await;
    let renew = async |times| {
        for _ in 0..times {
            tokio::time::sleep(Duration::from_secs(4)).await;
            landing.renew();
        }
    };
    renew(10).await;
    let (piece, payload) = raw.piece(&landing, 0, KvSpan { layer: 0, heads: 0..4, tokens: 0..64 });
    assert_eq!(raw.piece_answer(&piece, &payload).await, Ok(0), "40 s of P's queue cost nothing");
    renew(2).await;
    let started = Instant::now();
    assert!(matches!(landing.landed().await, Err(TransferError::Lease { .. })));
    assert_eq!(started.elapsed().as_secs(), 2, "10 s after the piece");
    landing.renew();
    assert!(matches!(landing.landed().await, Err(TransferError::Lease { .. })), "what is over stays over");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_waits_for_closes_the_door_too() {
    let pair = pair(TransportKind::Inproc).await;
    let landing = pair.open(&key("r", 0), 0..64, &pair.d.blocks(&key("r", 0), 64, Phase::Landing));
    let mut raw = Raw::welcome(&pair, TransportKind::Inproc).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let (piece, payload) = raw.piece(&landing, 2, KvSpan { layer: 2, heads: 0..4, tokens: 0..64 });
    assert_eq!(raw.piece_answer(&piece, &payload).await, Err(("closed".into(), false)));
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_never_comes_is_a_timeout() {
    let pair = pair(TransportKind::Inproc).await;
    let started = pair.start(&key("r", 0), &CASE, 1);
    started.report(&pair.p, 0..64);
    started.landing.landed().await.unwrap();
    let waited = Duration::from_secs(5);
    let error = started.outgoing.finish().await.unwrap_err();
    assert_eq!(error, TransferError::Timeout { key: key("r", 0), peer: "decode-0".into(), waited });
    assert_eq!(pair.p.pool.stats().leased, 0);
}

#[tokio::test]
async fn a_commit_before_the_last_piece_is_an_error() {
    let pair = pair(TransportKind::Inproc).await;
    let started = pair.start(&key("r", 0), &CASE, 1);
    let error = started.landing.commit().unwrap_err().to_string();
    assert_eq!(error, "r#0: refused by the peer: committed before everything had landed");
}

#[tokio::test]
async fn the_same_attempt_is_not_sent_twice_and_short_blocks_are_refused() {
    let pair = pair(TransportKind::Tcp).await;
    let started = pair.start(&key("r", 0), &CASE, 1);
    let begin = |tokens| {
        let blocks = pair.p.blocks(&key("r", 0), tokens, Phase::HandOver);
        pair.sender.begin(&started.landing.ticket(), blocks).map(drop).unwrap_err().to_string()
    };
    assert_eq!(begin(64), "r#0: refused by the peer: this attempt is being sent already");
    assert_eq!(begin(32), "bad ticket: asks for tokens to 64, our blocks hold 32");
    assert_eq!(pair.p.pool.stats().leased, 4, "what was refused holds nothing");
}

/// A flipped bit in a payload is found and only that piece is sent again.
#[tokio::test]
async fn f9_a_bit_flipped_in_a_payload_is_repaired() {
    let pair = pair(TransportKind::Tcp).await;
    let proxy = proxy(pair.listening.as_ref().unwrap().address(), Fault::Flip(10_000)).await;
    let started = pair.start_by(&key("r", 0), &CASE, 1, |ticket| reroute(&ticket, proxy));
    let (shipped, landed) = pair.complete(started).await.unwrap();
    assert_eq!((shipped.retried_pieces, shipped.pieces, landed.pieces), (1, 3, 3));
    assert_eq!(pair.receiver.counters().refused(crate::Refusal::Checksum), 1);
    assert_eq!(pair.sender.counters().retried(), 1);
}

/// Wherever a bit flips between the hello and the payload, the hand-over fails or is repaired; D never has other bytes than P
/// (which `complete` checks).
#[tokio::test]
async fn f9_a_bit_flipped_in_any_header_byte_is_never_believed() {
    let stall = Duration::from_millis(200);
    let mut outcomes = [0, 0];
    for offset in 0..120 {
        let sender = crate::TransferConfig { stall, ..config("prefill-0", TransportKind::Tcp) };
        let side = || super::harness::Side::new(KvLayout { blocks: 8, ..layout(16) });
        let pair = Pair::with(TransportKind::Tcp, side(), side(), sender).await;
        let hello = crate::handshake::hello(&config("prefill-0", TransportKind::Tcp), &pair.p.store.layout());
        let frame = proto::kv::KvFrame { body: Some(proto::kv::kv_frame::Body::Hello(hello)), payload: Bytes::new() };
        let first = 4 + prost::Message::encoded_len(&frame) as u64;
        let proxy = proxy(pair.listening.as_ref().unwrap().address(), Fault::Flip(first + offset)).await;
        let started = pair.start_by(&key("r", 0), &CASE, 1, |ticket| reroute(&ticket, proxy));
        outcomes[usize::from(pair.complete(started).await.is_ok())] += 1;
    }
    assert!(outcomes.iter().all(|&count| count > 0), "both kinds of outcome occur: {outcomes:?}");
}

#[tokio::test]
async fn a_link_cut_midway_fails_both_ends_and_the_next_hand_over_works() {
    let pair = pair(TransportKind::Tcp).await;
    let address = pair.listening.as_ref().unwrap().address();
    let proxy = proxy(address, Fault::Cut(50_000)).await;
    let started = pair.start_by(&key("r", 0), &CASE, 1, |ticket| reroute(&ticket, proxy));
    started.report(&pair.p, 0..64);
    let Started { landing, outgoing, .. } = started;
    let (shipped, landed) = tokio::join!(outgoing.finish(), landing.landed());
    assert!(matches!(shipped, Err(TransferError::PeerGone { .. })), "{shipped:?}");
    assert!(matches!(landed, Err(TransferError::PeerGone { .. })), "{landed:?}");
    assert_eq!(pair.p.pool.stats().leased, 0);
    pair.hand_over(&key("s", 0), &CASE, 2).await.unwrap();
}

/// The heart of D's safety: whoever drops a Landing may give its blocks away the moment `drop` returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_landing_is_not_dropped_while_a_piece_is_being_written() {
    let p = pair(TransportKind::Inproc).await.p;
    let (gate, entered, release) = Gate::new();
    let receiver = KvReceiver::new(config("decode-0", TransportKind::Inproc), gate.clone());
    let _listening = receiver.listen(LOCALHOST, LOCALHOST, 0).await.unwrap();
    let blocks = (0..4).map(BlockId).collect();
    let request = LandingRequest { key: key("r", 0), blocks, tokens: 0..64, lease: Duration::from_secs(10) };
    let landing = receiver.open(request);
    let sender = KvSender::new(config("prefill-0", TransportKind::Inproc), p.store.clone());
    let outgoing = sender.begin(&landing.ticket(), p.blocks(&key("r", 0), 64, Phase::HandOver)).unwrap();
    outgoing.layer_ready(0, 0..4, 0..64);
    let entered = tokio::task::spawn_blocking(move || entered.recv());
    entered.await.unwrap().unwrap();
    let passed = gate.clone();
    let dropping = tokio::task::spawn_blocking(move || {
        drop(landing);
        passed.passed.load(Ordering::SeqCst)
    });
    // Long enough for a drop that does not wait to be caught.
    tokio::time::sleep(Duration::from_millis(50)).await;
    release.send(()).unwrap();
    assert!(dropping.await.unwrap(), "drop returned before the write had ended");
}

/// And P's: a piece that is being read keeps its blocks, though the Outgoing is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_stay_leased_while_a_piece_is_being_read() {
    let pair = pair(TransportKind::Inproc).await;
    let (gate, entered, release) = Gate::new();
    let sender = KvSender::new(config("prefill-0", TransportKind::Inproc), gate.clone());
    let landing = pair.open(&key("r", 0), 0..64, &pair.d.blocks(&key("r", 0), 64, Phase::Landing));
    let outgoing = sender.begin(&landing.ticket(), pair.p.blocks(&key("r", 0), 64, Phase::HandOver)).unwrap();
    outgoing.layer_ready(0, 0..4, 0..64);
    let entered = tokio::task::spawn_blocking(move || entered.recv());
    entered.await.unwrap().unwrap();
    drop(outgoing);
    assert_eq!(pair.p.pool.stats().leased, 4);
    release.send(()).unwrap();
    until(|| pair.p.pool.stats().leased == 0).await;
}

/// A store whose checksums and copies say that they have begun, and then wait.
struct Gate {
    me: Weak<Gate>,
    store: Arc<VecStore>,
    entered: SyncSender<()>,
    release: Mutex<Receiver<()>>,
    /// The first operation has ended.
    passed: AtomicBool,
}

impl Gate {
    fn new() -> (Arc<Self>, Receiver<()>, SyncSender<()>) {
        let (entered, entered_receiver) = sync_channel(1);
        let (release_sender, release) = sync_channel(1);
        let (store, release) = (VecStore::new(layout(16)), Mutex::new(release));
        let passed = AtomicBool::new(false);
        let gate = Arc::new_cyclic(|me| Self { me: me.clone(), store, entered, release, passed });
        (gate, entered_receiver, release_sender)
    }

    fn pass<T>(&self, operation: impl FnOnce() -> T) -> T {
        let _ = self.entered.try_send(());
        let _ = self.release.lock().recv();
        let outcome = operation();
        self.passed.store(true, Ordering::SeqCst);
        outcome
    }
}

impl KvStore for Gate {
    fn layout(&self) -> KvLayout {
        self.store.layout()
    }

    fn read(&self, span: &KvSpan, blocks: &[BlockId], out: &mut [u8]) -> Result<(), KvError> {
        self.store.read(span, blocks, out)
    }

    fn write(&self, span: &KvSpan, blocks: &[BlockId], bytes: &[u8]) -> Result<(), KvError> {
        self.store.write(span, blocks, bytes)
    }

    fn shareable(&self) -> Option<&dyn ShareableKv> {
        Some(self)
    }
}

impl ShareableKv for Gate {
    fn share(&self) -> SharedKv {
        self.store.share()
    }

    fn checksum(&self, span: &KvSpan, blocks: &[BlockId], seed: u64) -> Result<u64, KvError> {
        self.pass(|| self.store.checksum(span, blocks, seed))
    }

    fn open(&self, theirs: &SharedKv) -> Result<Box<dyn KvSource>, KvError> {
        Ok(Box::new(GatedSource(self.me.upgrade().unwrap(), self.store.open(theirs)?)))
    }
}

struct GatedSource(Arc<Gate>, Box<dyn KvSource>);

impl KvSource for GatedSource {
    fn copy(&self, span: &KvSpan, theirs: &[BlockId], ours: &[BlockId], seed: u64) -> Result<u64, KvError> {
        self.0.pass(|| self.1.copy(span, theirs, ours, seed))
    }
}

/// Waits for something that happens soon; fails by the test's own patience and not by a wrong answer.
async fn until(condition: impl Fn() -> bool) {
    let patience = tokio::time::timeout(Duration::from_secs(30), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    patience.await.unwrap();
}

/// The ticket, leading to another address.
fn reroute(ticket: &[u8], address: SocketAddr) -> Bytes {
    let mut ticket = Ticket::decode(ticket).unwrap();
    ticket.endpoints.iter_mut().for_each(|endpoint| endpoint.address = address.to_string());
    ticket.encode()
}

/// What a proxy does to the bytes from P to D, at an offset from the connection's start.
#[derive(Clone, Copy)]
enum Fault {
    Flip(u64),
    Cut(u64),
}

/// A TCP proxy for one connection.
async fn proxy(to: SocketAddr, fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = TcpStream::connect(to).await.unwrap().into_split();
        let forward = async move {
            let (mut buffer, mut offset) = (vec![0; 16 << 10], 0);
            while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                let chunk = offset..offset + count as u64;
                match fault {
                    Fault::Flip(at) if chunk.contains(&at) => buffer[(at - offset) as usize] ^= 1 << (at % 8),
                    Fault::Cut(at) if chunk.contains(&at) => return,
                    _ => {}
                }
                offset = chunk.end;
                if to_server.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = forward => {}
            _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
        }
    });
    address
}
