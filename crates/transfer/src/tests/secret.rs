//! With a cluster secret or certificates, strangers get nothing out of a KV port and put nothing into it.

use std::time::Duration;

use edge::{Authority, ClusterSecret, ClusterTls, Credentials};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use types::Role;

use super::harness::{Case, Pair, Side, config, key, layout};
use crate::{TransferConfig, TransferError, TransportKind};

pub(super) const CASE: Case = Case { prompt: 40, cached: 0, chunk: 16, heads: 4 };

fn with(instance: &str, kind: TransportKind, secret: Option<&str>) -> TransferConfig {
    let secret = secret.map(|text| ClusterSecret::new(text, "test").unwrap());
    TransferConfig { credentials: Credentials { secret, tls: None }, ..config(instance, kind) }
}

/// A hand-over between a P and a D that have these secrets.
async fn hand_over(kind: TransportKind, p: Option<&str>, d: Option<&str>) -> (Pair, Result<(), TransferError>) {
    let (sender, receiver) = (with("prefill-0", kind, p), with("decode-0", kind, d));
    let pair = Pair::between(kind, Side::new(layout(16)), Side::new(layout(16)), sender, receiver).await;
    let result = pair.hand_over(&key("a", 0), &CASE, 1).await.map(drop);
    (pair, result)
}

#[tokio::test]
async fn only_peers_with_the_same_secret_hand_over() {
    const OURS: &str = "0123456789abcdef";
    for kind in [TransportKind::Tcp, TransportKind::Shm] {
        for (p, d, fits) in [
            (Some(OURS), Some(OURS), true),
            (Some(OURS), Some("fedcba9876543210"), false),
            (None, Some(OURS), false),
            (Some(OURS), None, false),
        ] {
            let (pair, result) = hand_over(kind, p, d).await;
            assert_eq!(result.is_ok(), fits, "{kind} {p:?} {d:?}: {result:?}");
            let counted = pair.receiver.counters().unauthenticated() > 0;
            assert_eq!(counted, !fits && d.is_some(), "{kind} {p:?} {d:?}");
        }
    }
    // Within one process there is nobody to keep out.
    assert_eq!(hand_over(TransportKind::Inproc, None, Some(OURS)).await.1, Ok(()));
}

#[tokio::test]
async fn a11_a_stranger_is_cut_before_anything_is_read() {
    let (pair, result) = hand_over(TransportKind::Tcp, Some("0123456789abcdef"), Some("0123456789abcdef")).await;
    assert_eq!(result, Ok(()));
    let served = pair.receiver.connections();
    let address = pair.listening.as_ref().unwrap().address();
    for bytes in [&b"\xff\xff\xff\xff"[..], &[0; 8192], b"GET /metrics HTTP/1.1\r\n\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(answer, b"", "not a word to strangers");
    }
    assert_eq!(pair.receiver.counters().unauthenticated(), 3);
    assert_eq!(pair.receiver.connections(), served, "none of them reached the protocol");
}

/// What a process of that role gets from `ca`.
fn certified(ca: &Authority, role: Role) -> Credentials {
    let directory = tempfile::tempdir().unwrap();
    let issued = ca.issue_role(role, Duration::from_secs(3600)).unwrap();
    ca.save(&issued, directory.path()).unwrap();
    Credentials { secret: None, tls: Some(ClusterTls::load(directory.path(), role).unwrap()) }
}

#[tokio::test]
async fn pieces_go_through_mutual_tls_and_foreign_certificates_do_not() {
    let (ours, theirs) = (Authority::new().unwrap(), Authority::new().unwrap());
    for kind in [TransportKind::Tcp, TransportKind::Shm] {
        for (ca, role, fits) in [
            (&ours, Some(Role::Prefill), true),
            (&ours, Some(Role::Scheduler), false),
            (&theirs, Some(Role::Prefill), false),
            (&ours, None, false),
        ] {
            let p = role.map(|role| certified(ca, role)).unwrap_or_default();
            let sender = TransferConfig { credentials: p, ..config("prefill-0", kind) };
            let receiver = TransferConfig { credentials: certified(&ours, Role::Decode), ..config("decode-0", kind) };
            let pair = Pair::between(kind, Side::new(layout(16)), Side::new(layout(16)), sender, receiver).await;
            let result = pair.hand_over(&key("a", 0), &CASE, 1).await;
            assert_eq!(result.is_ok(), fits, "{kind} {role:?}: {result:?}");
            // Whichever side refuses first, the receiver counts it.
            let counted = async {
                while !fits && pair.receiver.counters().unauthenticated() == 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), counted).await.expect("refusals are counted");
        }
    }
}
