//! Clients that leave at every phase: what they held is given back, and nobody else notices.

use std::time::Duration;

use scheduler::{Delimiter, Protocol};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::Cluster;
use crate::support::client::{Open, get, post, stream};
use crate::support::fake_worker::{Fake, continuation};

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
async fn a_client_may_leave_any_endpoint() {
    let slow = |fake: &mut Fake| fake.step = Duration::from_millis(200);
    let openai = Cluster::start(1, 1, slow).await;
    let plain = |config: &mut scheduler::Config| config.protocol = Protocol::Plain { delimiter: Delimiter::Nul };
    let plain = Cluster::start_unready(1, 1, slow, plain).await;
    plain.ready().await;
    let messages = json!([{"role": "user", "content": "x"}]);
    let searched = json!({"prompt": "x", "max_tokens": 4000, "use_beam_search": true, "temperature": 0, "n": 2});
    for (cluster, path, body) in [
        (&openai, "/v1/completions", json!({"prompt": ["x", "y"], "max_tokens": 4000, "n": 2, "best_of": 3})),
        (&openai, "/v1/completions", json!({"prompt": "xyz", "max_tokens": 4000, "echo": true, "logprobs": 1})),
        (&openai, "/v1/completions", searched.clone()),
        (&openai, "/v1/chat/completions", json!({"messages": messages, "stream": true})),
        (&openai, "/v1/chat/completions", json!({"messages": messages, "prompt_logprobs": 1})),
        (&openai, "/v1/responses", json!({"input": "x"})),
        (&openai, "/v1/embeddings", json!({"input": ["x", "y"]})),
        (&plain, "/generate", searched),
        (&plain, "/generate", json!({"prompt": "x", "max_tokens": 4000, "stream": true})),
    ] {
        let cancels = || cluster.workers.iter().map(|worker| worker.count("cancel")).sum::<usize>();
        let before = cancels();
        let asking = tokio::spawn(post(cluster.address(), path, body.clone()));
        let held = || async { cluster.workers.iter().any(|worker| worker.held() > 0) };
        cluster.until("begun", held).await;
        asking.abort();
        idle(cluster).await;
        assert!(cancels() > before, "{path} {body}: the workers were not told");
    }
}

/// Reads the text of a stream until told to stop, and then ten events more.
async fn read_on(mut open: Open, stop: CancellationToken) -> String {
    let (mut text, mut left) = (String::new(), 10);
    while left > 0 {
        let event = open.event().await.expect("the stream is never cut");
        let chunk: serde_json::Value = serde_json::from_str(&event).expect("a chunk, not the end");
        text += chunk["choices"][0]["text"].as_str().expect("text, not an error");
        left -= usize::from(stop.is_cancelled());
    }
    text
}

/// 2,272 cancels: a connection that counts them as HTTP/2 does would end after some hundred.
#[tokio::test]
async fn f25_bursts_of_cancels_leave_a_long_stream_alone() {
    let cluster = Cluster::start(1, 1, |fake| fake.step = Duration::from_millis(10)).await;
    let body = json!({"prompt": "long", "max_tokens": 4000, "stream": true});
    let long = stream(cluster.address(), "/v1/completions", body).await;
    let stop = CancellationToken::new();
    let reading = tokio::spawn(read_on(long, stop.clone()));
    let leave = async |number: u64| {
        let body = json!({"prompt": "short", "max_tokens": 1000, "stream": true});
        let asking = stream(cluster.address(), "/v1/completions", body);
        // Two of three leave somewhere before the first byte of the answer, the third with the stream before them.
        let patience =
            if number.is_multiple_of(3) { Duration::from_secs(60) } else { Duration::from_millis(number % 8) };
        drop(tokio::time::timeout(patience, asking).await);
    };
    for burst in [1, 2, 16, 64, 256, 1, 256, 64, 256, 16, 256, 256, 256, 256, 64, 256] {
        futures::future::join_all((0..burst).map(leave)).await;
    }
    stop.cancel();
    let text = reading.await.unwrap();
    assert_eq!(text, continuation("long", 0, text.len()));
    assert!(cluster.worker("decode-0").count("generate") > 500, "many of the 2,272 came as far as decoding");
    idle(&cluster).await;
}
