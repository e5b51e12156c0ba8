//! HTTPS: clients that trust the certificate are served, others are told why not, and a changed certificate is taken over.

use std::net::SocketAddr;
use std::time::Duration;

use edge::{AuthError, Authority, CERTIFICATE_FILE, KEY_FILE, Pinned, ServerTls};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::Cluster;
use crate::support::client::{open_on, request};

/// A new certificate in the directory.
fn issue(directory: &TempDir) -> Pinned {
    let ca = Authority::new().unwrap();
    let issued = ca.issue_server(vec!["localhost".into()], Duration::from_secs(3600)).unwrap();
    ca.save(&issued, directory.path()).unwrap();
    Pinned::load(&directory.path().join(CERTIFICATE_FILE)).unwrap()
}

async fn cluster(directory: &TempDir) -> Cluster {
    let path = |name| directory.path().join(name);
    let tls = ServerTls::load(&path(CERTIFICATE_FILE), &path(KEY_FILE)).unwrap();
    let adjust = |config: &mut scheduler::Config| {
        config.tls = Some(tls);
        config.timings.certificates = Duration::from_millis(20);
    };
    Cluster::start_unready(1, 1, |_| {}, adjust).await
}

async fn status(address: SocketAddr, pinned: &Pinned, path: &str) -> Result<u16, AuthError> {
    let stream = pinned.connect(address).await?;
    Ok(open_on(stream, request("GET", path, "")).await.status)
}

#[tokio::test]
async fn requests_go_over_https() {
    let directory = tempfile::tempdir().unwrap();
    let pinned = issue(&directory);
    let cluster = cluster(&directory).await;
    let address = cluster.address();
    cluster.until("ready", || async { status(address, &pinned, "/ready").await == Ok(200) }).await;
    let stream = pinned.connect(address).await.unwrap();
    let body = json!({"prompt": "hello", "max_tokens": 5, "stream": true}).to_string();
    let events = open_on(stream, request("POST", "/v1/completions", body)).await.events().await;
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with("this port speaks HTTPS\n"), "{answer}");
}

#[tokio::test]
async fn a_changed_certificate_is_taken_over_and_a_bad_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let old = issue(&directory);
    let cluster = cluster(&directory).await;
    let address = cluster.address();
    assert_eq!(status(address, &old, "/health").await, Ok(200));
    let new = issue(&directory);
    cluster.until("taken over", || async { status(address, &new, "/health").await == Ok(200) }).await;
    assert!(status(address, &old, "/health").await.is_err());
    std::fs::write(directory.path().join(CERTIFICATE_FILE), "rubbish").unwrap();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(status(address, &new, "/health").await, Ok(200), "the last good one stays");
    }
    let newest = issue(&directory);
    cluster.until("taken over", || async { status(address, &newest, "/health").await == Ok(200) }).await;
}
