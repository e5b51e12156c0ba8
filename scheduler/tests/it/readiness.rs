//! Who is taken into the cluster, and what `/ready` says about everyone else.

use scheduler::{Config, LocalPrefill};
use serde_json::{Value, json};

use crate::support::client::{get, post};
use crate::support::fake_worker::{Fake, FakeWorker, continuation};
use crate::support::{Cluster, TABLE_HASH};

async fn instance(cluster: &Cluster, name: &str) -> Value {
    let json = get(cluster.address(), "/ready").await.json();
    let instances = json["instances"].as_array().unwrap().clone();
    instances.into_iter().find(|instance| instance["instance"] == name).unwrap()
}

async fn reason(cluster: &Cluster, name: &str) -> String {
    instance(cluster, name).await["reason"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_model_mismatch_names_the_field_and_both_values() {
    let other_rope = |fake: &mut Fake| {
        if fake.name == "decode-0" {
            fake.model.rope = "theta=500000".into();
        }
    };
    let cluster = Cluster::start_unready(1, 1, other_rope, |_| {}).await;
    let expected = "rope: prefill-0 has none, decode-0 has theta=500000";
    cluster.until("refused", || async { reason(&cluster, "decode-0").await == expected }).await;
    assert_eq!(instance(&cluster, "decode-0").await["state"], "not_ready");
    assert_eq!(get(cluster.address(), "/ready").await.status, 503);
    let answer = post(cluster.address(), "/v1/completions", json!({"prompt": "x"})).await;
    assert_eq!(answer.status, 503);
}

#[tokio::test]
async fn the_majority_says_which_model_is_right() {
    let odd_one = |fake: &mut Fake| {
        if fake.name == "prefill-0" {
            fake.model.digest = "other".into();
        }
    };
    let cluster = Cluster::start_unready(2, 1, odd_one, |_| {}).await;
    cluster.ready().await;
    let expected = "digest: prefill-1 has digest, prefill-0 has other";
    cluster.until("refused", || async { reason(&cluster, "prefill-0").await == expected }).await;
    let json = post(cluster.address(), "/v1/completions", json!({"prompt": "hello", "max_tokens": 5})).await.json();
    assert_eq!(json["choices"][0]["text"], continuation("hello", 0, 5));
    assert_eq!(cluster.worker("prefill-0").seen(), []);
}

#[tokio::test]
async fn another_table_is_refused_with_both_hashes() {
    let cluster = Cluster::start_unready(0, 1, |_| {}, |config| config.table_hash = "ours".into()).await;
    let expected =
        format!("table_hash: ours is ours, theirs is {TABLE_HASH}; give every role the same global rank table");
    cluster.until("refused", || async { reason(&cluster, "decode-0").await == expected }).await;
    assert_eq!(instance(&cluster, "decode-0").await["state"], "not_ready");
}

#[tokio::test]
async fn without_workers_requests_are_refused_soon() {
    let cluster = Cluster::start_unready(0, 0, |_| {}, |_| {}).await;
    let answer = post(cluster.address(), "/v1/completions", json!({"prompt": "x"})).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.json()["error"]["message"], "no decode instance is available; try again soon");
    assert_eq!(get(cluster.address(), "/ready").await.status, 503);
    assert_eq!(get(cluster.address(), "/health").await.status, 200);
}

#[tokio::test]
async fn a_cluster_without_prefill_computes_prompts_on_decode() {
    let cluster = Cluster::start(0, 1, |_| {}).await;
    let json = post(cluster.address(), "/v1/completions", json!({"prompt": "hello", "max_tokens": 9})).await.json();
    assert_eq!(json["choices"][0]["text"], continuation("hello", 0, 9));
    let kinds: Vec<_> = cluster.worker("decode-0").seen().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["generate"]);
}

#[tokio::test]
async fn local_prefill_can_be_forced() {
    let always = |config: &mut Config| config.local_prefill = LocalPrefill::Always;
    let cluster = Cluster::start_unready(1, 1, |_| {}, always).await;
    cluster.ready().await;
    let json = post(cluster.address(), "/v1/completions", json!({"prompt": "hello", "max_tokens": 9})).await.json();
    assert_eq!(json["choices"][0]["text"], continuation("hello", 0, 9));
    assert_eq!(cluster.worker("prefill-0").seen(), []);
}

#[tokio::test]
async fn a_worker_that_comes_back_is_used_again() {
    let mut cluster = Cluster::start(1, 1, |_| {}).await;
    let old = cluster.workers.pop().unwrap();
    let (fake, address) = (old.fake.clone(), old.address);
    drop(old);
    cluster.until("absent", || async { instance(&cluster, "decode-0").await["state"] == "absent" }).await;
    assert_eq!(get(cluster.address(), "/ready").await.status, 503);
    cluster.workers.push(FakeWorker::start_at(fake, address).await);
    cluster.ready().await;
    let answer = post(cluster.address(), "/v1/completions", json!({"prompt": "hello", "max_tokens": 5})).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn draining_lets_streams_finish() {
    let cluster = Cluster::start(1, 1, |fake| fake.step = std::time::Duration::from_millis(10)).await;
    let body = json!({"prompt": "hello", "max_tokens": 50, "stream": true});
    let mut open = crate::support::client::stream(cluster.address(), "/v1/completions", body).await;
    open.event().await.unwrap();
    let address = cluster.address();
    let Cluster { scheduler, workers, .. } = cluster;
    let (events, ()) = tokio::join!(open.events(), scheduler.shutdown());
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the port is closed");
    drop(workers);
}
