//! Workers that die in the middle: the text goes on elsewhere, unchanged, and what they held comes back.

#![expect(clippy::unwrap_used, reason = "a failing unwrap fails the test")]

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{Client, Oracle, ProcessCluster, demo_model};

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

/// T_lease of the reliability goals: after it nothing may be held for work that is gone.
const LEASE: Duration = Duration::from_secs(10);

/// The workers of a cluster with their own ports.
struct Workers(Vec<(String, Client)>);

impl Workers {
    async fn of(cluster: &ProcessCluster) -> Self {
        let ready = cluster.client().get("/ready").await.body;
        let worker = |instance: &Value| {
            let text = |key: &str| instance[key].as_str().unwrap().to_owned();
            (text("instance"), Client::new(format!("http://{}", text("address"))))
        };
        Self(ready["instances"].as_array().unwrap().iter().map(worker).collect())
    }

    /// The client of the ledger of one instance.
    fn ledger(&self, instance: &str) -> &Client {
        let found = self.0.iter().find(|(name, _)| name == instance);
        &found.expect("it is in the table").1
    }

    /// Waits until an instance has blocks in a phase.
    async fn holds(&self, instance: &str, phase: &str) {
        for _ in 0..4000 {
            if self.ledger(instance).get("/kv").await.body["phases"][phase] != 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{instance} never had a block in phase {phase}");
    }

    /// Waits until no worker but `except` holds a block or runs anything, by their own metrics; not longer than the lease.
    async fn settle(&self, except: &str) {
        let started = Instant::now();
        for (name, client) in self.0.iter().filter(|(name, _)| name != except) {
            loop {
                let metrics = client.get("/metrics").await.body;
                let held = gauges(metrics.as_str().unwrap_or_default());
                if held.iter().all(|(_, value)| *value == 0.0) {
                    break;
                }
                let ledger = client.get("/kv").await.body;
                assert!(started.elapsed() < LEASE, "{name} still holds after the lease: {held:?} {ledger}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let blocks = client.get("/kv").await.body["blocks"].clone();
            let sum = ["free", "cached", "leased"].map(|state| blocks[state].as_u64().unwrap()).iter().sum::<u64>();
            assert_eq!(blocks["total"], sum, "{name}: {blocks}");
        }
    }
}

/// Leased blocks and running and waiting sequences out of a worker's metrics.
fn gauges(metrics: &str) -> Vec<(&str, f64)> {
    let wanted = |line: &&str| {
        !line.starts_with('#')
            && (line.starts_with("pdserve_blocks{") && line.contains("state=\"leased\"")
                || line.starts_with("pdserve_running")
                || line.starts_with("pdserve_waiting"))
    };
    let found: Vec<_> = metrics.lines().filter(wanted).collect();
    assert!(found.iter().any(|line| line.starts_with("pdserve_blocks{")), "no block gauge in {metrics:?}");
    found.iter().filter_map(|line| line.rsplit_once(' ')).map(|(n, v)| (n, v.parse().unwrap())).collect()
}

/// A prompt of some hundred tokens, so that computing and pushing take a while.
fn long_prompt(i: usize) -> String {
    format!("Number {i}. {}", "How does a prefill instance hand its blocks over? ".repeat(20))
}

/// Kills `victim` once `watched` has blocks in `phase`, under 16 long prompts: all texts are right and nothing stays held. (F6, F7)
async fn nothing_is_held_after(victim: &str, watched: &str, phase: &str) {
    let args = ["--prefill", "2", "--decode", "2", "--max-num-batched-tokens", "2048", "--kv-transports", "tcp"];
    let cluster = ProcessCluster::up(PDSERVE, &args);
    let workers = Workers::of(&cluster).await;
    workers.settle("").await;
    let prompts: Vec<_> = (0..16).map(long_prompt).collect();
    let asked = prompts.iter().map(|prompt| {
        let client = cluster.client();
        let body = long_request(prompt, 8);
        async move { client.post("/v1/chat/completions", &body).await.text().to_owned() }
    });
    let killed = async {
        workers.holds(watched, phase).await;
        cluster.signal(victim, Signal::KILL);
    };
    let (texts, ()) = tokio::join!(futures::future::join_all(asked), killed);
    workers.settle(victim).await;
    let mut oracle = Oracle::load(&demo_model());
    for (prompt, text) in prompts.iter().zip(texts) {
        assert_eq!(text, long_answer(&mut oracle, prompt, 8), "{prompt}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f6_a_prefill_instance_killed_while_it_pushes_leaves_nothing_held() {
    nothing_is_held_after("prefill-0", "prefill-0", "hand_over").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f7_a_decode_instance_killed_while_it_waits_for_kv_leaves_nothing_held() {
    nothing_is_held_after("decode-0", "decode-0", "landing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f8_clients_that_leave_at_any_moment_leave_nothing_held() {
    let cluster = ProcessCluster::up(PDSERVE, &["--max-num-batched-tokens", "2048", "--max-num-seqs", "8"]);
    let workers = Workers::of(&cluster).await;
    // From before the request is parsed to deep in decoding: spread evenly over the time that all of them take.
    let leave = |i: usize| {
        let client = cluster.client();
        async move {
            let asking = async {
                let mut stream = client.stream("/v1/chat/completions", &long_request(&long_prompt(i), 400)).await;
                while stream.next().await.is_some() {}
            };
            let _ = tokio::time::timeout(Duration::from_millis(20 * i as u64), asking).await;
        }
    };
    futures::future::join_all((0..100).map(leave)).await;
    workers.settle("").await;
    let mut oracle = Oracle::load(&demo_model());
    let shown = std::process::Command::new(PDSERVE).args(["kv", "--url", &cluster.url]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let idle = |name: &str| shown.lines().any(|line| line.starts_with(name) && line.contains("leased 0"));
    assert!(shown.lines().count() == 2 && idle("prefill-0") && idle("decode-0"), "{shown}");
    let question = "What is decode?";
    let reply = cluster.client().post("/v1/chat/completions", &long_request(question, 8)).await;
    assert_eq!(reply.text(), long_answer(&mut oracle, question, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn f16_a_frozen_scheduler_s_work_is_given_up_within_the_lease() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let workers = Workers::of(&cluster).await;
    let client = cluster.client();
    // Far more work than could end by itself before the lease does.
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(client.stream("/v1/chat/completions", &long_request("What is decode?", 1500)).await);
    }
    workers.holds("decode-0", "decoding").await;
    cluster.signal("scheduler", Signal::STOP);
    workers.settle("").await;
    let log = std::fs::read_to_string(cluster.log("decode-0")).unwrap();
    assert!(log.contains("scheduler disconnected"), "it was given up, not finished: {log}");
    // A frozen process cannot be asked to stop.
    cluster.signal("scheduler", Signal::KILL);
}
