//! Workers that die in the middle: the text goes on elsewhere, unchanged, and what they held comes back.

#![expect(clippy::unwrap_used, reason = "a failing unwrap fails the test")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal};
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

/// Starts 32 streams, does something once each has its first event, and compares every text with the oracle's. Says how long the
/// longest pause in a stream was (`--nocapture` shows it).
async fn streams_survive(cluster: &ProcessCluster, what: &str, hurt: impl FnOnce()) {
    let mut oracle = Oracle::load(&demo_model());
    let client = cluster.client();
    let questions: Vec<_> = (0..32).map(|i| format!("What is prefill? Tell me {i} things.")).collect();
    let mut streams = Vec::new();
    for question in &questions {
        let mut stream = client.stream("/v1/chat/completions", &long_request(question, 100)).await;
        assert!(stream.next().await.is_some(), "the role chunk");
        streams.push(stream);
    }
    hurt();
    let texts = futures::future::join_all(streams.iter_mut().map(|stream| stream.text(0))).await;
    let worst = streams.iter().map(|stream| stream.worst_gap).max().unwrap_or_default();
    println!("{what}: worst gap {:.3} s", worst.as_secs_f64());
    for (question, text) in questions.iter().zip(texts) {
        assert_eq!(text, long_answer(&mut oracle, question, 100), "{question}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f1_a_killed_decode_instance_costs_no_stream_its_text() {
    let cluster = ProcessCluster::up(PDSERVE, &["--prefill", "2", "--decode", "2"]);
    streams_survive(&cluster, "SIGKILL decode-0", || cluster.signal("decode-0", Signal::KILL)).await;
    // What the scheduler cannot know beforehand: this one has no memory left for what it is given next.
    let starved = || starve(&cluster, "decode-1");
    streams_survive(&cluster, "F21: no memory for decode-1", starved).await;
}

/// F21: no byte of address space more than it has now. It dies when it wants one; the cluster does not.
fn starve(cluster: &ProcessCluster, role: &str) {
    let pid = cluster.pid(role).expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let bytes = size.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024;
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    rustix::process::prlimit(Some(pid), Resource::As, limit).expect("the process is ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn f2_a_frozen_decode_instance_counts_as_dead_and_may_wake_up() {
    let cluster = ProcessCluster::up(PDSERVE, &["--prefill", "2", "--decode", "2"]);
    streams_survive(&cluster, "SIGSTOP decode-0", || cluster.signal("decode-0", Signal::STOP)).await;
    cluster.signal("decode-0", Signal::CONT);
    ready(&cluster).await;
    streams_survive(&cluster, "after SIGCONT", || {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f6_a_killed_prefill_instance_costs_no_stream_its_text() {
    let cluster = ProcessCluster::up(PDSERVE, &["--prefill", "2", "--decode", "2"]);
    streams_survive(&cluster, "SIGKILL prefill-0", || cluster.signal("prefill-0", Signal::KILL)).await;
}

/// Waits until every instance is proven.
async fn ready(cluster: &ProcessCluster) {
    let client = cluster.client();
    for _ in 0..3000 {
        // While the scheduler itself is away, nobody answers.
        if let Some(report) = client.try_get("/ready").await {
            let instances = report.body["instances"].as_array().unwrap().iter();
            if instances.map(|instance| &instance["state"]).all(|state| state == "ready") {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the cluster never became ready again: {}", cluster.output());
}

/// Waits until another process than `old` has the role, and until every instance is proven.
async fn restarted(cluster: &ProcessCluster, role: &str, old: Option<Pid>) {
    while cluster.pid(role) == old {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ready(cluster).await;
}

/// All workers one after the other, then the scheduler: nobody notices, and each ends as told. (The drill does it with 64 clients.)
#[tokio::test(flavor = "multi_thread")]
async fn f15_f17_every_role_drains_on_sigterm_under_load() {
    let cluster = ProcessCluster::up(PDSERVE, &["--prefill", "2", "--decode", "2"]);
    let question = "What does a decode instance do?";
    let expected = long_answer(&mut Oracle::load(&demo_model()), question, 40);
    let stop = AtomicBool::new(false);
    let ask = async |number: usize| {
        let mut asked = 0;
        while !stop.load(Relaxed) {
            let reply = cluster.client().post("/v1/chat/completions", &long_request(question, 40)).await;
            assert_eq!(reply.text(), expected, "client {number}");
            asked += 1;
        }
        asked
    };
    let restart_all = async {
        for role in ["prefill-0", "decode-0", "prefill-1", "decode-1"] {
            let old = cluster.pid(role);
            cluster.signal(role, Signal::TERM);
            restarted(&cluster, role, old).await;
        }
        stop.store(true, Relaxed);
    };
    let (asked, ()) = tokio::join!(futures::future::join_all((0..12).map(ask)), restart_all);
    assert!(asked.iter().all(|&asked| asked > 0), "{asked:?}");
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = cluster.client().stream("/v1/chat/completions", &long_request(question, 40)).await;
        assert!(stream.next().await.is_some(), "the role chunk");
        streams.push(stream);
    }
    let old = cluster.pid("scheduler");
    cluster.signal("scheduler", Signal::TERM);
    for text in futures::future::join_all(streams.iter_mut().map(|stream| stream.text(0))).await {
        assert_eq!(text, expected);
    }
    restarted(&cluster, "scheduler", old).await;
    let output = cluster.output();
    for role in ["prefill-0", "decode-0", "prefill-1", "decode-1", "scheduler"] {
        assert!(output.contains(&format!("{role} ended (exit status: 0)")), "{role}: {output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f16_a_killed_scheduler_cuts_its_streams_and_the_next_one_serves() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let workers = Workers::of(&cluster).await;
    let mut streams = Vec::new();
    for _ in 0..16 {
        let mut stream = cluster.client().stream("/v1/chat/completions", &long_request("Go on.", 1500)).await;
        assert!(stream.next().await.is_some(), "the role chunk");
        streams.push(stream);
    }
    let old = cluster.pid("scheduler");
    cluster.signal("scheduler", Signal::KILL);
    for stream in &mut streams {
        while let Some(event) = stream.next().await {
            assert!(event["choices"][0]["finish_reason"].is_null(), "a cut stream must not look whole: {event}");
        }
        assert!(!stream.done, "a cut stream must not look whole");
    }
    restarted(&cluster, "scheduler", old).await;
    workers.settle("").await;
    let reply = cluster.client().post("/v1/chat/completions", &long_request("Hello!", 8)).await;
    assert_eq!(reply.text(), long_answer(&mut Oracle::load(&demo_model()), "Hello!", 8));
}

/// Every process's log ends on a disk without room.
#[tokio::test(flavor = "multi_thread")]
async fn f22_a_full_disk_under_the_logs_stops_nothing() {
    let full = |run_dir: &Path| {
        let logs = run_dir.join("logs");
        std::fs::create_dir(&logs).unwrap();
        for role in ["scheduler", "prefill-0", "decode-0"] {
            std::os::unix::fs::symlink("/dev/full", logs.join(format!("{role}.log"))).unwrap();
        }
    };
    let cluster = ProcessCluster::up_in(PDSERVE, &[], full);
    let mut oracle = Oracle::load(&demo_model());
    for question in ["Hello!", "What is a ticket?"] {
        let reply = cluster.client().post("/v1/chat/completions", &long_request(question, 20)).await;
        assert_eq!(reply.text(), long_answer(&mut oracle, question, 20));
    }
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
