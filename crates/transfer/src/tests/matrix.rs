//! Every transport with every shape of hand-over.

use kv::{KvLayout, KvStore};

use super::harness::{Case, Pair, key, layout};
use crate::{TransferConfig, TransferError, TransportKind};

/// (P's block size, D's block size, case)
const CASES: [(u32, u32, Case); 7] = [
    (16, 16, Case { prompt: 100, cached: 0, chunk: 100, heads: 4 }),
    (16, 8, Case { prompt: 100, cached: 0, chunk: 32, heads: 4 }),
    (8, 32, Case { prompt: 77, cached: 32, chunk: 16, heads: 2 }),
    (16, 16, Case { prompt: 64, cached: 48, chunk: 64, heads: 1 }),
    (32, 16, Case { prompt: 33, cached: 16, chunk: 1, heads: 1 }),
    (16, 16, Case { prompt: 1, cached: 0, chunk: 1, heads: 4 }),
    (16, 16, Case { prompt: 48, cached: 48, chunk: 16, heads: 4 }),
];

async fn check(kind: TransportKind) {
    for (p_block, d_block, case) in &CASES {
        let pair = Pair::new(kind, layout(*p_block), layout(*d_block)).await;
        // Twice, so that the second goes over a connection that is there.
        for request in 0..2 {
            let key = key(&format!("r{request}"), 0);
            let (shipped, landed) = pair.hand_over(&key, case, request).await.unwrap();
            let store = pair.p.store.layout();
            let bytes = store.token_bytes(4) * store.layers as usize * (case.prompt - case.cached) as usize;
            let transport = (bytes > 0).then_some(kind);
            assert_eq!((shipped.transport, shipped.bytes), (transport, bytes as u64), "{kind} {case:?}");
            assert_eq!((landed.transport, landed.bytes, landed.pieces), (transport, shipped.bytes, shipped.pieces));
            assert_eq!((shipped.retried_pieces, shipped.blocks_skipped), (0, case.cached / p_block));
        }
        let (p, d) = (pair.p.pool.stats(), pair.d.pool.stats());
        assert_eq!((p.leased, d.leased), (0, 0), "{kind} {case:?}: blocks are back");
    }
}

#[tokio::test]
async fn in_process() {
    check(TransportKind::Inproc).await;
}

#[tokio::test]
async fn shared_memory() {
    check(TransportKind::Shm).await;
}

#[tokio::test]
async fn tcp() {
    check(TransportKind::Tcp).await;
}

#[tokio::test]
async fn grpc() {
    check(TransportKind::Grpc).await;
}

/// 12 MiB per layer, 36 MiB in all: cut into pieces, above the credit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_prompts_are_cut_into_pieces() {
    let layout = |block_size| KvLayout { head_dim: 1536, blocks: 32, ..layout(block_size) };
    let case = Case { prompt: 256, cached: 0, chunk: 256, heads: 4 };
    for kind in TransportKind::ALL {
        let pair = Pair::new(kind, layout(16), layout(32)).await;
        let (shipped, _) = pair.hand_over(&key("r", 0), &case, 1).await.unwrap();
        let fetched = matches!(kind, TransportKind::Inproc | TransportKind::Shm);
        let pieces = if fetched { 12 } else { 39 };
        assert_eq!((shipped.pieces, shipped.bytes), (pieces, 36 << 20), "{kind}");
        assert_eq!(pair.sender.counters().bytes(kind), pair.receiver.counters().bytes(kind));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_at_once_over_one_connection() {
    for kind in TransportKind::ALL {
        let wide = |block_size| KvLayout { blocks: 1024, ..layout(block_size) };
        let pair = Pair::new(kind, wide(16), wide(8)).await;
        let hand_overs = (0..64u32).map(|request| {
            let case = Case { prompt: 20 + request, cached: request % 17, chunk: 16, heads: 2 };
            let pair = &pair;
            async move { pair.hand_over(&key(&format!("r{request}"), 0), &case, u64::from(request)).await }
        });
        for outcome in futures::future::join_all(hand_overs).await {
            outcome.unwrap();
        }
        assert_eq!((pair.p.pool.stats().leased, pair.d.pool.stats().leased), (0, 0));
        assert_eq!(pair.receiver.connections(), 1, "{kind}");
    }
}

#[tokio::test]
async fn left_free_both_take_the_best() {
    let mut pair = Pair::new(TransportKind::Inproc, layout(16), layout(16)).await;
    pair.sender = crate::KvSender::new(TransferConfig::new("prefill-0".into(), 7, "model"), pair.p.store.clone());
    pair.receiver = crate::KvReceiver::new(TransferConfig::new("decode-0".into(), 7, "model"), pair.d.store.clone());
    let localhost = super::harness::LOCALHOST;
    pair.listening = Some(pair.receiver.listen(localhost, localhost, 0).await.unwrap());
    let (shipped, _) = pair.hand_over(&key("r", 0), &CASES[0].2, 1).await.unwrap();
    assert_eq!(shipped.transport, Some(TransportKind::Inproc));
}

#[tokio::test]
async fn a_misfit_is_refused_at_the_handshake_with_both_values() {
    let case = Case { prompt: 16, cached: 0, chunk: 16, heads: 4 };
    for kind in TransportKind::ALL {
        let pair = Pair::new(kind, KvLayout { head_dim: 8, ..layout(16) }, layout(16)).await;
        let started = pair.start(&key("r", 0), &case, 1);
        let error = started.outgoing.finish().await.unwrap_err();
        let expected = TransferError::Mismatch {
            peer: "decode-0".into(),
            field: "head_dim".into(),
            ours: "8".into(),
            theirs: "16".into(),
        };
        assert_eq!(error, expected, "{kind}");
    }
}

#[tokio::test]
async fn without_a_common_transport_the_error_lists_why() {
    let pair = Pair::new(TransportKind::Tcp, layout(16), layout(16)).await;
    let sender = crate::KvSender::new(super::harness::config("prefill-0", TransportKind::Shm), pair.p.store.clone());
    let landing = pair.open(&key("r", 0), 0..16, &pair.d.blocks(&key("r", 0), 16, kv::Phase::Landing));
    let blocks = pair.p.blocks(&key("r", 0), 16, kv::Phase::HandOver);
    let error = sender.begin(&landing.ticket(), blocks).unwrap().finish().await.unwrap_err();
    let reasons = "inproc: not offered by the peer, shm: not offered by the peer, tcp: not offered by us, \
                   grpc: not offered by the peer";
    assert_eq!(error.to_string(), format!("no transport to decode-0: {reasons}"));
}
