//! Clients that leave at every phase: what they held is given back, and nobody else notices.

use std::time::Duration;

use serde_json::json;

use crate::support::Cluster;
use crate::support::client::{get, stream};
use crate::support::fake_worker::continuation;

async fn idle(cluster: &Cluster) {
    let nothing_held = || async { cluster.workers.iter().all(|worker| worker.held() == 0) };
    cluster.until("given back", nothing_held).await;
    let json = get(cluster.address(), "/ready").await.json();
    assert_eq!(json["requests_in_flight"], 0);
    for instance in json["instances"].as_array().unwrap() {
        assert_eq!((&instance["load"]["booked_choices"], &instance["load"]["booked_tokens"]), (&json!(0), &json!(0)));
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_work() {
    let cluster = Cluster::start(1, 1, |fake| fake.step = Duration::from_millis(20)).await;
    let body = json!({"prompt": "hello", "max_tokens": 4000, "stream": true});
    let mut open = stream(cluster.address(), "/v1/completions", body).await;
    open.event().await.unwrap();
    assert_eq!(cluster.worker("decode-0").held(), 1);
    drop(open);
    idle(&cluster).await;
    assert_eq!(cluster.worker("decode-0").count("cancel"), 1);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_cancels_the_work() {
    let cluster = Cluster::start(1, 1, |_| {}).await;
    cluster.worker("prefill-0").freeze();
    let body = json!({"prompt": "hello", "max_tokens": 4000});
    let left = tokio::time::timeout(Duration::from_millis(100), stream(cluster.address(), "/v1/completions", body));
    assert!(left.await.is_err());
    idle(&cluster).await;
}

#[tokio::test]
async fn two_thousand_quick_cancels_leave_a_long_stream_alone() {
    let cluster = Cluster::start(1, 1, |fake| fake.step = Duration::from_millis(5)).await;
    let body = json!({"prompt": "long", "max_tokens": 2000, "stream": true, "n": 1});
    let long = stream(cluster.address(), "/v1/completions", body).await;
    let reading = tokio::spawn(long.events());
    for _ in 0..32 {
        let leave = async || {
            let body = json!({"prompt": "short", "max_tokens": 1000, "stream": true});
            drop(stream(cluster.address(), "/v1/completions", body).await);
        };
        futures::future::join_all((0..64).map(|_| leave())).await;
    }
    let events = reading.await.unwrap();
    assert_eq!(events.last().unwrap(), "[DONE]");
    let text: String = events
        .iter()
        .filter_map(|event| serde_json::from_str::<serde_json::Value>(event).ok())
        .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(text, continuation("long", 0, 2000));
    let reconnects = cluster.workers.iter().filter(|worker| worker.is_down()).count();
    assert_eq!(reconnects, 0);
    idle(&cluster).await;
}
