//! Workers that die in the middle: the text goes on elsewhere, unchanged, and what they held comes back.

use rustix::process::Signal;
use serde_json::json;
use tests::{Oracle, ProcessCluster, demo_model};

const PDSERVE: &str = env!("CARGO_BIN_EXE_pdserve-under-test");

/// A request that runs for `tokens` tokens whatever the model says.
fn long_request(question: &str, tokens: u32) -> serde_json::Value {
    json!({
        "model": "pdserve-demo", "temperature": 0, "max_tokens": tokens, "ignore_eos": true,
        "messages": [{"role": "user", "content": question}],
    })
}

fn long_answer(oracle: &mut Oracle, question: &str, tokens: u32) -> String {
    let prompt = oracle.chat_prompt(question);
    let sampling = types::SamplingParams { max_tokens: tokens, ignore_eos: true, ..Default::default() };
    let choices = oracle.generate(prompt, &sampling, 1);
    oracle.text(&choices[0])
}

/// Starts 16 streams, signals `role` once each has its first event, and compares every text with the oracle's.
async fn streams_survive(role: &str, signal: Signal) {
    let cluster = ProcessCluster::up(PDSERVE, &["--prefill", "2", "--decode", "2"]);
    let mut oracle = Oracle::load(&demo_model());
    let client = cluster.client();
    let questions: Vec<_> = (0..16).map(|i| format!("What is prefill? Tell me {i} things.")).collect();
    let mut streams = Vec::new();
    for question in &questions {
        let mut stream = client.stream("/v1/chat/completions", &long_request(question, 120)).await;
        assert!(stream.next().await.is_some(), "the role chunk");
        streams.push(stream);
    }
    cluster.signal(role, signal);
    let texts = futures::future::join_all(streams.iter_mut().map(|stream| stream.text(0))).await;
    for (question, text) in questions.iter().zip(texts) {
        assert_eq!(text, long_answer(&mut oracle, question, 120), "{question}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_decode_instance_costs_no_stream_its_text() {
    streams_survive("decode-0", Signal::KILL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_prefill_instance_costs_no_stream_its_text() {
    streams_survive("prefill-0", Signal::KILL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_decode_instance_counts_as_dead() {
    streams_survive("decode-0", Signal::STOP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_decode_instance_gone_a_request_ends_in_a_clean_error_and_service_comes_back() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let client = cluster.client();
    cluster.signal("decode-0", Signal::KILL);
    let reply = client.post("/v1/chat/completions", &long_request("Hello!", 8)).await;
    assert!([200, 503].contains(&reply.status), "{} {}", reply.status, reply.body);
    for _ in 0..100 {
        if client.get("/ready").await.status == 200 {
            let reply = client.post("/v1/chat/completions", &long_request("Hello!", 8)).await;
            assert_eq!(reply.status, 200, "{}", reply.body);
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    panic!("the cluster never became ready again: {}", client.get("/ready").await.body);
}
