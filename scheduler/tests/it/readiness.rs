//! Who is taken into the cluster, and what `/ready` says about everyone else.

use std::sync::{Arc, Mutex};

use scheduler::{Config, LocalPrefill};
use serde_json::json;

use crate::support::client::{get, post};
use crate::support::fake_worker::{Fake, continuation};
use crate::support::{Cluster, TABLE_HASH};

async fn reason(cluster: &Cluster, name: &str) -> String {
    cluster.instance(name).await["reason"].as_str().unwrap_or_default().to_owned()
}

/// How decode-0 differs from prefill-0, and what `/ready` says of it.
type Difference = (fn(&mut Fake), &'static str);

const DIFFERENCES: [Difference; 12] = [
    (|fake| fake.model.digest = "other".into(), "digest: prefill-0 has digest, decode-0 has other"),
    (|fake| fake.model.architecture = "other".into(), "architecture: prefill-0 has fake, decode-0 has other"),
    (|fake| fake.model.dtype = "bf16".into(), "dtype: prefill-0 has f32, decode-0 has bf16"),
    (|fake| fake.model.kv_dtype = "bf16".into(), "kv_dtype: prefill-0 has f32, decode-0 has bf16"),
    (|fake| fake.model.layers = 2, "layers: prefill-0 has 1, decode-0 has 2"),
    (|fake| fake.model.heads = 2, "heads: prefill-0 has 1, decode-0 has 2"),
    (|fake| fake.model.kv_heads = 2, "kv_heads: prefill-0 has 1, decode-0 has 2"),
    (|fake| fake.model.head_dim = 16, "head_dim: prefill-0 has 8, decode-0 has 16"),
    (|fake| fake.model.vocab_size = 9, "vocab_size: prefill-0 has 257, decode-0 has 9"),
    (|fake| fake.model.rope = "theta=500000".into(), "rope: prefill-0 has none, decode-0 has theta=500000"),
    (|fake| fake.model.sliding_window = 4, "sliding_window: prefill-0 has 0, decode-0 has 4"),
    (|fake| fake.model.max_model_len = 5, "max_model_len: prefill-0 has 4096, decode-0 has 5"),
];

#[tokio::test]
async fn f11_a_mismatch_in_any_field_is_refused_with_both_values() {
    let refused = async |(differ, expected): Difference| {
        let shape = |fake: &mut Fake| {
            if fake.name == "decode-0" {
                differ(fake);
            }
        };
        let cluster = Cluster::start_unready(1, 1, shape, |_| {}).await;
        cluster.until("refused", || async { reason(&cluster, "decode-0").await == expected }).await;
        assert_eq!(cluster.instance("decode-0").await["state"], "not_ready");
        assert_eq!(get(cluster.address(), "/ready").await.status, 503);
        let answer = post(cluster.address(), "/v1/completions", json!({"prompt": "x"})).await;
        assert_eq!(answer.status, 503);
        assert_eq!(cluster.worker("decode-0").seen(), [], "no request ever went there");
    };
    futures::future::join_all(DIFFERENCES.map(refused)).await;
}

/// What was logged on this thread.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Levels may differ, since text goes on all the same; but it shows.
#[tokio::test]
async fn instructions_may_differ_and_show() {
    let logged = Logged::default();
    let writer = logged.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _log = tracing::subscriber::set_default(log);
    let other = |fake: &mut Fake| {
        if fake.name == "decode-0" {
            fake.limits.instructions = "amx".into();
        }
    };
    let cluster = Cluster::start_unready(1, 1, other, |_| {}).await;
    cluster.ready().await;
    assert_eq!(cluster.instance("prefill-0").await["instructions"], "none");
    assert_eq!(cluster.instance("decode-0").await["instructions"], "amx");
    let said = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    let warnings = said.lines().filter(|line| line.contains("instances compute on different instructions"));
    assert_eq!(warnings.count(), 1, "{said}");
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
async fn f11_another_table_is_refused_with_both_hashes() {
    let cluster = Cluster::start_unready(0, 1, |_| {}, |config| config.table.hash = "ours".into()).await;
    let expected =
        format!("table_hash: ours is ours, theirs is {TABLE_HASH}; give every role the same global rank table");
    cluster.until("refused", || async { reason(&cluster, "decode-0").await == expected }).await;
    assert_eq!(cluster.instance("decode-0").await["state"], "not_ready");
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
