//! Connections that are slow, unread, malformed or too many: cut within their bounds, and nobody else notices.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Resource, getrlimit, setrlimit};
use scheduler::Config;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::support::client::{get, post, stream};
use crate::support::{Cluster, PATIENCE};

fn impatient(config: &mut Config) {
    config.bounds.port.header_read = Duration::from_millis(300);
    config.bounds.port.idle = Duration::from_millis(300);
    config.bounds.port.write_progress = Duration::from_millis(300);
    config.bounds.body_read = Duration::from_millis(300);
    config.bounds.socket_bytes = 4096;
    config.bounds.unread_bytes = 4 << 10;
}

/// Nothing is held anywhere.
async fn idle(cluster: &Cluster) {
    let nothing = || async {
        let ready = get(cluster.address(), "/ready").await.json();
        cluster.workers.iter().all(|worker| worker.held() == 0) && ready["requests_in_flight"] == 0
    };
    cluster.until("idle", nothing).await;
}

/// Sends byte after byte until the connection is closed by the other side.
async fn drip(address: SocketAddr, start: &'static [u8], drop: &'static [u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(start).await.unwrap();
    let mut buffer = [0; 256];
    let closed = async {
        loop {
            tokio::select! {
                read = stream.read(&mut buffer) => if matches!(read, Ok(0) | Err(_)) { return },
                () = tokio::time::sleep(Duration::from_millis(100)) => if stream.write_all(drop).await.is_err() { return },
            }
        }
    };
    let closed = tokio::time::timeout(PATIENCE, closed).await;
    assert!(closed.is_ok(), "never closed after {:?}", String::from_utf8_lossy(start));
}

/// Both ends of a thousand connections are in this process.
fn more_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a7_a_thousand_slow_connections_are_closed_and_nobody_else_notices() {
    more_descriptors();
    let cluster = Cluster::start_unready(1, 1, |_| {}, impatient).await;
    cluster.ready().await;
    let address = cluster.address();
    let slow: [(&[u8], &[u8]); 6] = [
        (b"", b""),
        (b"GET /he", b"a"),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nx-more: ", b"a"),
        (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{", b" "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", b""),
        // A PING now and then is no request.
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
            b"\x00\x00\x08\x06\x00\x00\x00\x00\x00pingpong",
        ),
    ];
    let connections: JoinSet<()> =
        (0..1000).map(|number| slow[number % slow.len()]).map(|(start, more)| drip(address, start, more)).collect();
    let bystander = async {
        loop {
            let answer = post(address, "/v1/completions", json!({"prompt": "hello", "max_tokens": 3})).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    };
    tokio::select! {
        _ = connections.join_all() => {}
        () = bystander => {}
    }
    idle(&cluster).await;
}

#[tokio::test]
async fn a7_connections_that_wait_between_requests_are_closed_when_idle() {
    let cluster = Cluster::start_unready(0, 0, |_| {}, impatient).await;
    let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
    let mut answers = String::new();
    for _ in 0..3 {
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).await.unwrap();
        answers += &String::from_utf8_lossy(&buffer[..read]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    let end = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("closed when idle");
    assert_eq!(end.unwrap(), 0);
}

#[tokio::test]
async fn a8_streams_that_nobody_reads_are_cancelled_and_others_go_on() {
    let cluster = Cluster::start_unready(1, 1, |_| {}, impatient).await;
    cluster.ready().await;
    let long = json!({"prompt": "long", "max_tokens": 400, "stream": true});
    let mut bystander = stream(cluster.address(), "/v1/completions", long).await;
    let unread = async || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        let mut stream = socket.connect(cluster.address()).await.unwrap();
        let body = json!({"prompt": "hello", "max_tokens": 300, "logprobs": 5, "stream": true}).to_string();
        let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        stream
    };
    let held = join_all((0..256).map(|_| unread())).await;
    let mut events = 0;
    while let Some(event) = bystander.event().await {
        assert!(!event.contains("error"), "{event}");
        events += 1;
    }
    assert!(events > 10, "{events}");
    idle(&cluster).await;
    drop(held);
}

/// A connection on which the server may send nothing of any answer.
async fn without_window(address: SocketAddr) -> http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.initial_stream_window_size(0).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn completion(body: &Value) -> Request<Full<Bytes>> {
    let request = Request::post("http://x/v1/completions");
    request.body(Full::from(body.to_string())).unwrap()
}

#[tokio::test]
async fn a9_streams_without_a_window_are_cut_one_by_one() {
    let cluster = Cluster::start_unready(1, 1, |_| {}, impatient).await;
    cluster.ready().await;
    let mut sender = without_window(cluster.address()).await;
    let body = json!({"prompt": "hello", "max_tokens": 4000, "stream": true});
    let open = (0..20).map(|_| sender.send_request(completion(&body))).collect::<Vec<_>>();
    let open: Vec<_> = join_all(open).await.into_iter().map(Result::unwrap).collect();
    assert!(open.iter().all(|answer| answer.status() == 200));
    idle(&cluster).await;
    let decode = cluster.worker("decode-0");
    assert_eq!(decode.count("cancel"), 20, "given up while the client held the streams open");
    for mut answer in open {
        // Cut, or never going on: in no case a whole answer.
        let whole = tokio::time::timeout(Duration::from_millis(1), answer.body_mut().collect()).await;
        assert!(!matches!(whole, Ok(Ok(_))));
    }
}

/// Sends `bytes` and reads until the server closes or falls silent; what it said.
async fn talk(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "never closed after {:?}", String::from_utf8_lossy(bytes));
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a10_a_smuggled_request_is_never_answered() {
    let cluster = Cluster::start_unready(0, 0, |_| {}, impatient).await;
    let smuggled = "GET /version HTTP/1.1\r\nhost: x\r\n\r\n";
    let post = "POST /tokenize HTTP/1.1\r\nhost: x\r\n";
    let cases = [
        ("both lengths", format!("{post}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}")),
        (
            "both lengths, other order",
            format!("{post}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n{smuggled}"),
        ),
        ("two lengths", format!("{post}content-length: 2\r\ncontent-length: 0\r\n\r\n{{}}{smuggled}")),
        ("signed length", format!("{post}content-length: +2\r\n\r\n{{}}{smuggled}")),
        ("length with a comma", format!("{post}content-length: 2, 3\r\n\r\n{{}}{smuggled}")),
        ("negative length", format!("{post}content-length: -1\r\n\r\n{smuggled}")),
        ("length too large", format!("{post}content-length: 99999999999999999999999\r\n\r\n{smuggled}")),
        ("unknown coding", format!("{post}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}")),
        ("chunked twice", format!("{post}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}")),
        ("chunk overflow", format!("{post}transfer-encoding: chunked\r\n\r\nfffffffffffffffff1\r\n{smuggled}")),
        ("chunk without end", format!("{post}transfer-encoding: chunked\r\n\r\n2\r\n{{}}xx{smuggled}")),
        ("space before colon", format!("{post}content-length : 2\r\n\r\n{{}}{smuggled}")),
        ("folded header", format!("{post}x: a\r\n b\r\ncontent-length: 2\r\n\r\n{{}}{smuggled}")),
        ("bare CR", format!("{post}x: a\rcontent-length: 50\r\n\r\n{smuggled}")),
        ("NUL in a value", format!("{post}x: a\0b\r\n\r\n{smuggled}")),
        (
            "upgrade",
            format!("GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n{smuggled}"),
        ),
        (
            "HTTP/1.0 chunked",
            format!("POST /tokenize HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        ),
    ];
    for (what, bytes) in cases {
        let answer = talk(cluster.address(), bytes.as_bytes()).await;
        assert!(!answer.contains("\"version\""), "{what}: the smuggled request was answered: {answer}");
        assert!(answer.matches("HTTP/1.").count() <= 1, "{what}: {answer}");
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4");
        assert!(refused || what == "upgrade", "{what}: {answer}");
    }
    assert_eq!(get(cluster.address(), "/health").await.status, 200);
}

#[tokio::test]
async fn a16_overload_is_answered_at_once_and_leaves_nothing_behind() {
    let slow = |fake: &mut crate::support::fake_worker::Fake| fake.step = Duration::from_millis(5);
    let adjust = |config: &mut Config| (config.bounds.requests, config.bounds.waiting) = (8, 4);
    let cluster = Cluster::start_unready(1, 1, slow, adjust).await;
    cluster.ready().await;
    let body = json!({"prompt": "hello", "max_tokens": 20});
    let answers = join_all((0..400).map(|_| post(cluster.address(), "/v1/completions", body.clone()))).await;
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    for answer in &answers {
        let shed = matches!(answer.status, 429 | 503) && answer.headers.contains_key("retry-after");
        assert!(answer.status == 200 || shed, "{}: {}", answer.status, answer.text());
    }
    assert!(served >= 8, "{served} of 400 were served");
    idle(&cluster).await;
    assert_eq!(post(cluster.address(), "/v1/completions", body).await.status, 200);
}

#[tokio::test]
async fn one_connection_too_many_is_told_to_come_back() {
    let cluster = Cluster::start_unready(0, 0, |_| {}, |config| config.bounds.port.connections = 3).await;
    let held = join_all((0..3).map(|_| TcpStream::connect(cluster.address()))).await;
    let more = || async {
        let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.is_ok()
            && answer.starts_with("HTTP/1.1 503")
            && answer.contains("retry-after")
    };
    assert!(tokio::time::timeout(PATIENCE, more()).await.unwrap());
    drop(held);
    let served = async {
        loop {
            let mut stream = TcpStream::connect(cluster.address()).await.unwrap();
            let _ = stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            let mut answer = String::new();
            if stream.read_to_string(&mut answer).await.is_ok() && answer.starts_with("HTTP/1.1 200") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, served).await.is_ok(), "places come back");
}
