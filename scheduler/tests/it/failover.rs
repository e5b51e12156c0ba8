//! Workers that die, freeze or refuse: the text stays the same, or the error is clean.

use std::time::Duration;

use proto::control::FailCode;
use serde_json::{Value, json};

use crate::support::Cluster;
use crate::support::client::{post, stream};
use crate::support::fake_worker::{Fake, continuation};

/// One completion of `tokens` tokens; its text must be what undisturbed workers make.
pub(crate) async fn check_text(cluster: &Cluster, tokens: usize, n: u32) {
    let body = json!({"prompt": "hello", "max_tokens": tokens, "n": n});
    let answer = post(cluster.address(), "/v1/completions", body).await;
    let json = answer.json();
    assert_eq!(answer.status, 200, "{json}");
    for choice in 0..n {
        assert_eq!(json["choices"][choice as usize]["text"], continuation("hello", choice, tokens));
    }
    assert_eq!(json["usage"]["completion_tokens"], tokens * n as usize);
}

pub(crate) fn only(name: &'static str, change: impl Fn(&mut Fake)) -> impl Fn(&mut Fake) {
    move |fake| {
        if fake.name == name {
            change(fake);
        }
    }
}

#[tokio::test]
async fn a_decode_worker_that_dies_at_any_token_changes_nothing() {
    for k in [0, 1, 2, 7, 18] {
        let cluster = Cluster::start(1, 2, only("decode-0", |fake| fake.dies_after = Some(k))).await;
        check_text(&cluster, 20, 1).await;
        assert!(cluster.worker("decode-0").is_down(), "k = {k}: it was used");
    }
}

#[tokio::test]
async fn scores_of_a_prompt_are_told_once_whoever_dies_in_between() {
    for k in [0, 1, 2] {
        let cluster = Cluster::start(2, 1, only("prefill-0", |fake| fake.dies_after = Some(k))).await;
        let body = json!({"prompt": "hello", "max_tokens": 3, "prompt_logprobs": 0});
        let json = post(cluster.address(), "/v1/completions", body).await.json();
        let scores = json["choices"][0]["prompt_logprobs"].as_array().unwrap().iter().skip(1);
        let ranks: Vec<_> =
            scores.map(|entry| entry.as_object().unwrap().values().next().unwrap()["rank"].clone()).collect();
        assert_eq!(json!(ranks), json!([2, 3, 4, 5]), "k = {k}: {json}");
        assert!(cluster.worker("prefill-0").is_down(), "k = {k}: it was used");
        check_text(&cluster, 20, 1).await;
    }
}

#[tokio::test]
async fn a_vector_is_computed_elsewhere_after_a_death() {
    let cluster = Cluster::start(2, 1, only("prefill-0", |fake| fake.dies_after = Some(0))).await;
    let answer = post(cluster.address(), "/v1/embeddings", json!({"input": "hello"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(cluster.worker("prefill-0").is_down(), "it was used");
}

#[tokio::test]
async fn a_search_begins_anew_after_a_death() {
    // It takes 40 tokens to find the texts, and as many again to tell them.
    for k in [0, 5, 41, 70] {
        let cluster = Cluster::start(1, 2, only("decode-0", |fake| fake.dies_after = Some(k))).await;
        let body = json!({"prompt": "hello", "max_tokens": 20, "use_beam_search": true, "temperature": 0, "n": 2, "best_of": 3});
        let json = post(cluster.address(), "/v1/completions", body).await.json();
        for choice in 0..2 {
            assert_eq!(json["choices"][choice]["text"], continuation("hello", choice as u32, 20), "k = {k}: {json}");
        }
        assert_eq!(json["usage"]["completion_tokens"], 40);
        assert!(cluster.worker("decode-0").is_down(), "k = {k}: it was used");
    }
}

#[tokio::test]
async fn both_choices_go_on_after_a_death() {
    let cluster = Cluster::start(1, 2, only("decode-0", |fake| fake.dies_after = Some(11))).await;
    check_text(&cluster, 20, 2).await;
    assert!(cluster.worker("decode-0").is_down());
    assert_eq!(cluster.worker("decode-1").count("generate"), 2, "each choice by itself");
}

/// What a client sees of a request with everything that could be lost on the way: the choices and the usage, and the streamed texts.
async fn seen_whole(cluster: &Cluster, stop: Option<&str>) -> (Value, Value, Vec<String>) {
    let mut body = json!({
        "prompt": "é", "max_tokens": 40, "n": 2, "temperature": 1, "seed": 7, "logprobs": 2,
        "presence_penalty": 0.5, "frequency_penalty": 0.25, "repetition_penalty": 1.5, "stop": stop,
    });
    let answer = post(cluster.address(), "/v1/completions", body.clone()).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    let whole = answer.json();
    body["stream"] = json!(true);
    let events = stream(cluster.address(), "/v1/completions", body).await.events().await;
    assert_eq!(events.last().unwrap(), "[DONE]", "{stop:?}");
    let mut texts = vec![String::new(); 2];
    for chunk in events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok()) {
        for choice in chunk["choices"].as_array().unwrap() {
            texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
        }
    }
    (whole["choices"].clone(), whole["usage"].clone(), texts)
}

/// Inside characters, inside the stop string, with everything that a sampler keeps. (On the real engine: `resume` of the product tests.)
#[tokio::test]
async fn f3_f4_a_death_at_every_token_of_wide_characters_and_stop_strings_changes_nothing() {
    for stop in [None, Some("Over!")] {
        let undisturbed = seen_whole(&Cluster::start(1, 2, |_| {}).await, stop).await;
        let texts = &undisturbed.2;
        assert!(texts[0].starts_with("aé🎉 b€ — ü. ") && texts[1].starts_with("€ — ü. "), "{texts:?}");
        assert_eq!(texts[0].contains("Over"), stop.is_none(), "{texts:?}");
        // Two choices: a death after each second token is one at each position.
        for k in (0..=48).step_by(2) {
            let cluster = Cluster::start(1, 2, only("decode-0", |fake| fake.dies_after = Some(k))).await;
            assert_eq!(seen_whole(&cluster, stop).await, undisturbed, "k = {k}, stop {stop:?}");
            assert!(cluster.worker("decode-0").is_down(), "k = {k}: it was used");
        }
    }
}

#[tokio::test]
async fn a_prefill_worker_that_dies_before_the_first_token_is_replaced() {
    let cluster = Cluster::start(2, 1, only("prefill-0", |fake| fake.dies_after = Some(0))).await;
    check_text(&cluster, 20, 2).await;
    assert!(cluster.worker("prefill-0").is_down());
    assert_eq!(cluster.worker("prefill-1").count("prefill"), 1);
}

#[tokio::test]
async fn a_frozen_worker_is_taken_for_dead() {
    for (name, after) in [("decode-0", 5), ("prefill-0", 0)] {
        let cluster = Cluster::start(2, 2, only(name, |fake| fake.freezes_after = Some(after))).await;
        check_text(&cluster, 20, 1).await;
        assert!(cluster.worker(name).is_down(), "{name} was used");
    }
}

#[tokio::test]
async fn streams_survive_a_death_and_say_nothing_twice() {
    let cluster = Cluster::start(1, 2, only("decode-0", |fake| fake.dies_after = Some(200))).await;
    let one = async |prompt: String| {
        let body = json!({"prompt": prompt, "max_tokens": 60, "stream": true});
        let events = stream(cluster.address(), "/v1/completions", body).await.events().await;
        assert_eq!(events.last().unwrap(), "[DONE]");
        let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
        let text: String = chunks.map(|chunk| chunk["choices"][0]["text"].as_str().unwrap().to_owned()).collect();
        assert_eq!(text, continuation(&prompt, 0, 60));
    };
    futures::future::join_all((0..16).map(|number| one(format!("prompt {number}")))).await;
    assert!(cluster.worker("decode-0").is_down());
}

#[tokio::test]
async fn a_full_worker_is_passed_over_and_asked_again() {
    let cluster = Cluster::start(1, 2, only("decode-0", |fake| fake.fails = Some(FailCode::FailNoBlocks))).await;
    check_text(&cluster, 10, 1).await;
    let busy = |fake: &mut Fake| {
        if fake.name == "decode-0" {
            fake.fails = Some(FailCode::FailQueueFull);
        }
    };
    let wait = |config: &mut scheduler::Config| config.timings.wait = Duration::from_millis(300);
    let cluster = Cluster::start_unready(1, 1, busy, wait).await;
    cluster.ready().await;
    let answer = post(cluster.address(), "/v1/completions", json!({"prompt": "x"})).await;
    assert_eq!(answer.status, 503);
    assert!(answer.json()["error"]["message"].as_str().unwrap().starts_with("no room"), "{}", answer.text());
    assert!(cluster.worker("decode-0").count("reserve") > 1, "it was asked again while waiting");
}

#[tokio::test]
async fn a_lost_stream_ends_with_an_error_and_no_done() {
    let cluster = Cluster::start(1, 1, only("decode-0", |fake| fake.dies_after = Some(10))).await;
    let body = json!({"prompt": "hello", "max_tokens": 60, "stream": true});
    let events = stream(cluster.address(), "/v1/completions", body).await.events().await;
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], 503, "{last}");
    assert!(!events.contains(&"[DONE]".to_owned()));
}
