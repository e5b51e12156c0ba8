//! `USE_OPENAI=0`: vLLM's plain server.

use scheduler::{Delimiter, Protocol};
use serde_json::{Value, json};

use crate::support::Cluster;
use crate::support::client::{Answer, get, post};
use crate::support::fake_worker::continuation;

async fn cluster(delimiter: Delimiter) -> Cluster {
    let adjust = |config: &mut scheduler::Config| config.protocol = Protocol::Plain { delimiter };
    let cluster = Cluster::start_unready(1, 1, |_| {}, adjust).await;
    cluster.ready().await;
    cluster
}

async fn generate(cluster: &Cluster, body: Value) -> Answer {
    post(cluster.address(), "/generate", body).await
}

fn expected(choices: u32, tokens: usize) -> Vec<String> {
    (0..choices).map(|choice| format!("hello{}", continuation("hello", choice, tokens))).collect()
}

#[tokio::test]
async fn texts_begin_with_the_prompt() {
    let cluster = cluster(Delimiter::Nul).await;
    let check = async |body: Value, texts: Vec<String>| {
        let answer = generate(&cluster, body.clone()).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"text": texts})), "{body}");
    };
    check(json!({"prompt": "hello", "max_tokens": 4}), expected(1, 4)).await;
    check(json!({"prompt": "hello", "n": 2, "max_tokens": 4, "model": "whatever"}), expected(2, 4)).await;
    check(json!({"prompt": "hello"}), expected(1, 16)).await;
    check(json!({"prompt": "hello", "n": 1, "best_of": 2, "max_tokens": 4}), expected(1, 4)).await;
    // As vLLM's own example client asks.
    let searched = json!({"prompt": "hello", "n": 4, "use_beam_search": true, "temperature": 0.0, "max_tokens": 16});
    check(searched.clone(), expected(4, 16)).await;
    let mut streamed = searched;
    streamed["stream"] = json!(true);
    let records = generate(&cluster, streamed).await.text();
    let last: Value = serde_json::from_str(records.split('\0').rfind(|record| !record.is_empty()).unwrap()).unwrap();
    assert_eq!(last, json!({"text": expected(4, 16)}));
}

#[tokio::test]
async fn a_stream_grows_record_by_record() {
    for (delimiter, byte) in [(Delimiter::Nul, '\0'), (Delimiter::Newline, '\n')] {
        let cluster = cluster(delimiter).await;
        let answer = generate(&cluster, json!({"prompt": "hello", "n": 2, "max_tokens": 6, "stream": true})).await;
        let body = answer.text();
        let records = body.strip_suffix(byte).unwrap().split(byte);
        let records: Vec<Value> = records.map(|record| serde_json::from_str(record).unwrap()).collect();
        assert_eq!(records.last().unwrap(), &json!({"text": expected(2, 6)}));
        for pair in records.windows(2) {
            for choice in 0..2 {
                let [before, after] = [&pair[0], &pair[1]].map(|record| record["text"][choice].as_str().unwrap());
                assert!(after.starts_with(before) && before.starts_with("hello"), "{before:?} {after:?}");
            }
        }
    }
}

#[tokio::test]
async fn there_is_nothing_else_and_mistakes_are_400() {
    let cluster = cluster(Delimiter::Nul).await;
    for path in ["/v1/models", "/v1/completions", "/tokenize", "/version"] {
        assert_eq!(get(cluster.address(), path).await.status, 404, "{path}");
    }
    for path in ["/health", "/metrics"] {
        assert_eq!(get(cluster.address(), path).await.status, 200, "{path}");
    }
    for (body, param) in [
        (json!({"max_tokens": 4}), "prompt"),
        (json!({"prompt": "x", "top_p": 0}), "top_p"),
        (json!({"prompt": "x", "use_beam_search": true, "temperature": 0.0}), "use_beam_search"),
        (json!({"prompt": "x", "use_beam_search": true, "n": 4}), "temperature"),
        (json!({"prompt": "x", "guided_json": {}}), "guided_json"),
    ] {
        let answer = generate(&cluster, body.clone()).await;
        assert_eq!((answer.status, answer.json()["error"]["param"].as_str()), (400, Some(param)), "{body}");
    }
}
