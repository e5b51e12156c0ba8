//! A11 on real processes: who has the wrong papers gets nothing out of a worker's ports, costs next to nothing, and fills no log.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use edge::{Authority, CA_FILE, CA_KEY_FILE, ClusterSecret, ClusterTls, Credentials, Port};
use futures::future::join_all;
use serde_json::json;
use tests::ProcessCluster;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use types::Role;

const PDSERVE: &str = env!("CARGO_BIN_EXE_pdserve-under-test");
/// Generous: only there to fail in.
const PATIENCE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
const IDLE: usize = 200;
/// What a stranger may cost.
const STRANGER_KIB_MAX: u64 = 64;

/// What a prefill instance gets from `ca`.
fn certified(ca: &Authority, valid: Duration) -> Credentials {
    let directory = tempfile::tempdir().unwrap();
    ca.save(&ca.issue_role(Role::Prefill, valid).unwrap(), directory.path()).unwrap();
    Credentials { secret: None, tls: Some(ClusterTls::load(directory.path(), Role::Prefill).unwrap()) }
}

/// Papers that are not right: another cluster's, expired ones, a secret where certificates are asked for, and none.
fn wrong_papers(ca_directory: &Path) -> Vec<Credentials> {
    let read = |name| std::fs::read_to_string(ca_directory.join(name)).unwrap();
    let ca = Authority::from_pem(read(CA_FILE), &read(CA_KEY_FILE)).unwrap();
    let secret = ClusterSecret::new("0123456789abcdef", "test").ok();
    vec![
        certified(&Authority::new().unwrap(), DAY),
        certified(&ca, Duration::ZERO),
        Credentials { secret, tls: None },
        Credentials::default(),
    ]
}

async fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(IpAddr::from(from), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// Shows its papers, then says that 4 GiB will follow or asks for the control stream; what it gets to hear.
async fn knock(papers: &Credentials, to: SocketAddr, port: Port) -> Vec<u8> {
    let stream = net::TcpStream::connect(to).await.unwrap();
    let Ok(stream) = papers.connect(stream, Role::Decode, port, "stranger").await else { return Vec::new() };
    hear(stream, port).await
}

async fn hear(mut stream: impl AsyncRead + AsyncWrite + Unpin, port: Port) -> Vec<u8> {
    let says: &[u8] = match port {
        Port::Worker => b"POST /pdserve.control.v1.Worker/Control HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        Port::Kv => &[0xff; 4096],
    };
    let mut heard = Vec::new();
    if stream.write_all(says).await.is_ok() {
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await;
        assert!(read.is_ok(), "a stranger's connection ends");
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn a11_wrong_papers_are_refused_cost_little_and_are_logged_once_per_peer_and_minute() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = directory.path().display().to_string();
    let made = std::process::Command::new(PDSERVE).args(["certs", "--save-dir", &certificates]).output().unwrap();
    assert!(made.status.success());
    let cluster = ProcessCluster::up(PDSERVE, &["--cluster-tls-dir", &certificates, "--kv-transports", "tcp"]);
    let question = json!({"prompt": "What is prefill?", "max_tokens": 4, "temperature": 0});
    let answer = cluster.client().post("/v1/completions", &question).await.text().to_owned();
    let (control, kv) = (cluster.control_address("decode-0").await, cluster.kv_address("decode-0"));
    let (growth, started) = (cluster.growth("decode-0"), Instant::now());

    let idle = join_all((0..IDLE).map(|_| connect([127, 0, 0, 1], kv))).await;
    let mut strangers = IDLE as u64;
    let papers = wrong_papers(&directory.path().join("ca"));
    for (to, port) in [(kv, Port::Kv), (control, Port::Worker)] {
        let mut heard = Vec::new();
        for papers in papers.iter().cycle().take(3 * papers.len()) {
            heard.push(knock(papers, to, port).await);
        }
        heard.push(hear(connect([127, 0, 0, 2], to).await, port).await);
        strangers += heard.len() as u64;
        for heard in heard {
            // At most an alert of TLS.
            let told = String::from_utf8_lossy(&heard);
            assert!(heard.len() <= 7 || port == Port::Worker && told.contains("grpc-status: 16"), "{to}: {told}");
        }
    }
    assert_eq!(cluster.client().post("/v1/completions", &question).await.text(), answer, "the cluster serves on");
    let closed = idle.into_iter().map(|mut stream| async move { stream.read(&mut [0]).await.unwrap_or(0) });
    let closed = tokio::time::timeout(PATIENCE, join_all(closed)).await.expect("idle strangers are cut");
    assert!(closed.iter().all(|heard| *heard == 0), "not a word to them either");

    let grown = growth.kib();
    assert!(grown <= strangers * STRANGER_KIB_MAX, "{strangers} strangers took {grown} KiB");
    let log = std::fs::read_to_string(cluster.log("decode-0")).unwrap();
    let minutes = 1 + started.elapsed().as_secs() / 60;
    for (what, least) in [("kv connection refused", 2), (" connection refused", 4)] {
        let lines = log.lines().filter(|line| line.contains(what)).count() as u64;
        assert!((least..=least * minutes).contains(&lines), "{lines} lines of {what:?}:\n{log}");
    }
}
