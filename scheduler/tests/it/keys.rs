//! API keys: who comes in, how much each key may do, and whose prefixes are shared.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use scheduler::Access;
use serde_json::{Value, json};

use crate::support::Cluster;
use crate::support::client::{get, open, request, send};

async fn cluster(adjust: impl FnOnce(&mut Access)) -> Cluster {
    let adjust = |config: &mut scheduler::Config| {
        config.access.keys = vec!["key-1".to_owned().into(), "key-2".to_owned().into()];
        adjust(&mut config.access);
    };
    let cluster = Cluster::start_unready(1, 1, |_| {}, adjust).await;
    cluster.ready().await;
    cluster
}

fn with_key(key: &str, body: Value) -> Request<Full<Bytes>> {
    let mut request = request("POST", "/v1/completions", body.to_string());
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

#[tokio::test]
async fn without_a_key_nobody_comes_in() {
    let cluster = cluster(|_| {}).await;
    for path in ["/v1/models", "/v1/completions", "/tokenize", "/metrics", "/load", "/nowhere"] {
        let answer = get(cluster.address(), path).await;
        assert_eq!((answer.status, answer.text().as_str()), (401, r#"{"error":"Unauthorized"}"#), "{path}");
        assert!(
            answer.headers.contains_key("x-request-id") && answer.headers.contains_key("access-control-allow-origin")
        );
    }
    assert_eq!(get(cluster.address(), "/health").await.status, 200);
    let preflight = send(cluster.address(), request("OPTIONS", "/v1/completions", "")).await;
    assert_eq!(preflight.status, 200);
    let body = json!({"prompt": "hello", "max_tokens": 2});
    assert_eq!(send(cluster.address(), with_key("key-1", body.clone())).await.status, 200);
    assert_eq!(send(cluster.address(), with_key("key-3", body)).await.status, 401);
}

#[tokio::test]
async fn a_key_has_so_many_requests_at_once() {
    let cluster = cluster(|access| access.requests_per_key = 1).await;
    let long = json!({"prompt": "hello", "max_tokens": 4000, "stream": true, "ignore_eos": true});
    let mut first = open(cluster.address(), with_key("key-1", long)).await;
    first.event().await.unwrap();
    let short = json!({"prompt": "x", "max_tokens": 2});
    let second = send(cluster.address(), with_key("key-1", short.clone())).await;
    assert_eq!(second.status, 429, "{}", second.text());
    assert!(second.headers.contains_key("retry-after"));
    assert_eq!(send(cluster.address(), with_key("key-2", short.clone())).await.status, 200, "another key has its own");
    drop(first);
    let free = || async { send(cluster.address(), with_key("key-1", short.clone())).await.status == 200 };
    cluster.until("free again", free).await;
}

#[tokio::test]
async fn a_key_has_so_many_requests_per_minute() {
    let cluster = cluster(|access| access.per_minute = Some(2)).await;
    let short = json!({"prompt": "x", "max_tokens": 2});
    let mut statuses = Vec::new();
    for key in ["key-1", "key-1", "key-1", "key-2"] {
        let answer = send(cluster.address(), with_key(key, short.clone())).await;
        assert_eq!(answer.headers.contains_key("retry-after"), answer.status == 429);
        statuses.push(answer.status);
    }
    assert_eq!(statuses, [200, 200, 429, 200]);
}
