//! Clients that send or read too slowly: cut off, and nothing of theirs stays on the workers.

use std::net::SocketAddr;
use std::time::Duration;

use scheduler::Config;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{Cluster, PATIENCE};

fn impatient(config: &mut Config) {
    config.bounds.port.header_read = Duration::from_millis(200);
    config.bounds.body_read = Duration::from_millis(200);
    config.bounds.port.write_progress = Duration::from_millis(200);
}

/// Sends `bytes`, then nothing; what comes back until the connection is closed.
async fn answer_to(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "never closed after {:?}", String::from_utf8_lossy(bytes));
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_connection_that_stops_sending_is_closed() {
    let cluster = Cluster::start_unready(0, 0, |_| {}, impatient).await;
    let check = async |bytes: &[u8], expected: &str| {
        let answer = answer_to(cluster.address(), bytes).await;
        assert!(answer.starts_with(expected), "{:?}: {answer}", String::from_utf8_lossy(bytes));
    };
    check(b"", "").await;
    check(b"PRI * HTTP/2.0", "").await;
    check(b"GET /health HTTP/1.1\r\nhost: x\r\nx-more: ", "").await;
    let half_a_body = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    check(half_a_body, "HTTP/1.1 400 Bad Request").await;
    let large = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "x".repeat(70_000));
    check(large.as_bytes(), "HTTP/1.1 431").await;
    let declared = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000000\r\n\r\n{";
    check(declared, "HTTP/1.1 413").await;
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_cancelled() {
    let cluster = Cluster::start_unready(1, 1, |_| {}, impatient).await;
    cluster.ready().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(cluster.address()).await.unwrap();
    let body = json!({"prompt": "hello", "max_tokens": 4000, "n": 8, "logprobs": 1, "stream": true}).to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let decode = cluster.worker("decode-0");
    cluster.until("generating", || async { decode.count("generate") == 1 }).await;
    cluster.until("cancelled", || async { decode.count("cancel") == 1 && decode.held() == 0 }).await;
}

#[tokio::test]
async fn one_request_too_many_is_turned_away_at_once() {
    let slow = |fake: &mut crate::support::fake_worker::Fake| fake.step = Duration::from_millis(20);
    let cluster = Cluster::start_unready(1, 1, slow, |config| config.bounds.requests = 2).await;
    cluster.ready().await;
    let body = json!({"prompt": "hello", "max_tokens": 4000, "stream": true});
    let open = || crate::support::client::stream(cluster.address(), "/v1/completions", body.clone());
    let (first, second) = (open().await, open().await);
    assert_eq!((first.status, second.status), (200, 200));
    let third = crate::support::client::post(cluster.address(), "/v1/completions", body.clone()).await;
    assert_eq!(third.status, 429);
    assert_eq!(third.headers["retry-after"], "1");
    drop(first);
    cluster.until("a place is free", || async { open().await.status == 200 }).await;
}

#[tokio::test]
async fn a_stream_that_is_silent_for_long_says_that_it_is_still_there() {
    let slow = |fake: &mut crate::support::fake_worker::Fake| fake.step = Duration::from_millis(300);
    let cluster = Cluster::start_unready(1, 1, slow, |config| config.bounds.silence = Duration::from_millis(50)).await;
    cluster.ready().await;
    for path in ["/v1/completions", "/v1/chat/completions"] {
        let body = json!({"prompt": "hello", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "stream": true});
        let mut open = crate::support::client::stream(cluster.address(), path, body).await;
        let mut last = String::new();
        while let Some(event) = open.event().await {
            last = event;
        }
        assert_eq!(last, "[DONE]");
        assert!(open.comments > 0, "{path}");
    }
}

/// The first token may be long in coming: the silence counts from the start.
#[tokio::test]
async fn a_stream_that_waits_for_its_first_token_says_so() {
    let slow = |fake: &mut crate::support::fake_worker::Fake| fake.swallows = Some("reserve");
    let cluster = Cluster::start_unready(1, 1, slow, |config| config.bounds.silence = Duration::from_millis(50)).await;
    cluster.ready().await;
    let bodies = [
        ("/v1/completions", json!({"prompt": "hello", "stream": true})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "hello"}], "stream": true})),
        ("/v1/responses", json!({"input": "hello", "stream": true})),
    ];
    for (path, body) in bodies {
        let mut open = crate::support::client::stream(cluster.address(), path, body).await;
        assert_eq!(open.status, 200, "{path}");
        open.comment().await;
    }
}
