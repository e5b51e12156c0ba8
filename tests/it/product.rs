//! The product as a user meets it: `pdserve up` with real processes, talked to over HTTP.

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tests::{Client, Oracle, ProcessCluster, demo_model};
use types::SamplingParams;

const PDSERVE: &str = env!("CARGO_BIN_EXE_pdserve-under-test");
const CHAT: &str = "/v1/chat/completions";

/// Documented questions with their answers.
fn questions() -> Vec<(String, String)> {
    let file = std::fs::read_to_string(demo_model().join("questions.json")).unwrap();
    let list: Vec<serde_json::Value> = serde_json::from_str(&file).unwrap();
    list.iter().map(|q| (q["question"].as_str().unwrap().into(), q["answer"].as_str().unwrap().into())).collect()
}

fn greedy(question: &str) -> serde_json::Value {
    json!({"model": "pdserve-demo", "temperature": 0, "max_tokens": 200, "messages": [{"role": "user", "content": question}]})
}

async fn ask(client: &Client, question: &str) -> String {
    client.post(CHAT, &greedy(question)).await.text().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_model_answers_its_questions_and_ctrl_c_ends_everything() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let client = cluster.client();
    let all = questions();
    assert!(all.len() >= 150, "{} documented questions", all.len());
    for (question, answer) in all.iter().step_by(8) {
        assert_eq!(&ask(&client, question).await, answer, "{question}");
    }
    let (question, answer) = &all[0];
    let mut stream = client.stream(CHAT, &greedy(question)).await;
    assert_eq!(&stream.text(0).await, answer, "streamed");
    let pids: Vec<_> = ["scheduler", "prefill-0", "decode-0"].iter().filter_map(|role| cluster.pid(role)).collect();
    assert_eq!(pids.len(), 3);
    assert_eq!(cluster.interrupt(), Some(0));
    for pid in pids {
        assert!(rustix::process::test_kill_process(pid).is_err(), "process {pid:?} is still there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_2p2d_cluster_gives_64_concurrent_streams_the_single_process_texts() {
    let cluster = ProcessCluster::up(PDSERVE, &["--prefill", "2", "--decode", "2"]);
    let mut oracle = Oracle::load(&demo_model());
    let asked: Vec<_> = questions().into_iter().take(64).map(|(question, _)| question).collect();
    let streams = asked.iter().map(|question| {
        let client = cluster.client();
        async move { client.stream(CHAT, &greedy(question)).await.text(0).await }
    });
    let texts = futures::future::join_all(streams).await;
    for (question, text) in asked.iter().zip(texts) {
        assert_eq!(text, oracle.answer(question, 200), "{question}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregated_instance_and_tensor_parallel_pairs_give_the_same_texts() {
    let mut oracle = Oracle::load(&demo_model());
    let asked: Vec<_> = questions().into_iter().step_by(31).map(|(question, _)| question).collect();
    for args in [
        &["--prefill", "0", "--decode", "1"][..],
        &["--tensor-parallel-size", "2", "--kv-transports", "tcp"][..],
        &["--kv-transports", "grpc", "--block-size", "32", "--max-num-batched-tokens", "16"][..],
    ] {
        let cluster = ProcessCluster::up(PDSERVE, args);
        for question in &asked {
            assert_eq!(ask(&cluster.client(), question).await, oracle.answer(question, 200), "{args:?}: {question}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn seeded_choices_are_those_of_one_process() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let mut oracle = Oracle::load(&demo_model());
    let sampling = SamplingParams {
        temperature: 1.5,
        top_p: 0.9,
        seed: 42,
        presence_penalty: 0.3,
        max_tokens: 40,
        ..SamplingParams::default()
    };
    let question = "Tell me a short story.";
    let expected = oracle.generate(oracle.chat_prompt(question), &sampling, 3);
    let mut body = greedy(question);
    for (key, value) in [("temperature", json!(1.5)), ("top_p", json!(0.9)), ("seed", json!(42)), ("n", json!(3))] {
        body[key] = value;
    }
    body["presence_penalty"] = json!(0.3);
    body["max_tokens"] = json!(40);
    let reply = cluster.client().post(CHAT, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let texts: Vec<_> = (0..3).map(|i| reply.body["choices"][i]["message"]["content"].as_str().unwrap()).collect();
    let expected: Vec<_> = expected.iter().map(|choice| oracle.text(choice)).collect();
    assert_eq!(texts, expected);
    assert!(expected[0] != expected[1], "the draws differ, else this proves nothing: {expected:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_too_small_for_all_preempts_and_changes_no_text() {
    // 12 sequences grow to about 20 blocks each; there are 64.
    let cluster = ProcessCluster::up(PDSERVE, &["--prefill", "0", "--decode", "1", "--kv-cache-memory", "3MiB"]);
    let mut oracle = Oracle::load(&demo_model());
    let client = cluster.client();
    let sampling = SamplingParams { max_tokens: 280, ignore_eos: true, ..SamplingParams::default() };
    let questions: Vec<_> = (0..12).map(|i| format!("What is a block? Example {i}.")).collect();
    let texts = questions.iter().map(|question| {
        let mut body = greedy(question);
        body["max_tokens"] = json!(280);
        body["ignore_eos"] = json!(true);
        let client = client.clone();
        async move { client.stream(CHAT, &body).await.text(0).await }
    });
    for (question, text) in questions.iter().zip(futures::future::join_all(texts).await) {
        let expected = oracle.generate(oracle.chat_prompt(question), &sampling, 1);
        assert_eq!(text, oracle.text(&expected[0]), "{question}");
    }
    let metrics = client.get("/metrics").await.body;
    let preempted = metrics.as_str().unwrap().lines().find(|line| line.starts_with("vllm:num_preemptions_total"));
    let count = preempted.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    assert!(count.is_some_and(|count| count > 0.0), "nothing was preempted: {preempted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_every_block() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let client = cluster.client();
    let ready = client.get("/ready").await.body;
    let address = |instance: &serde_json::Value| format!("http://{}", instance["address"].as_str().unwrap());
    let ledgers: Vec<_> = ready["instances"].as_array().unwrap().iter().map(|at| Client::new(address(at))).collect();
    let until = async |wanted: &str, met: fn(u64) -> bool| {
        for _ in 0..1500 {
            let found = futures::future::join_all(ledgers.iter().map(|ledger| ledger.get("/kv"))).await;
            if met(found.iter().map(|ledger| ledger.body["blocks"]["leased"].as_u64().unwrap()).sum()) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("blocks were never {wanted}");
    };
    // Each goes on for far longer than the client stays.
    let question = "What is a block?";
    let long = json!({"messages": [{"role": "user", "content": question}], "prompt": question, "max_tokens": 1500, "ignore_eos": true});
    for (path, more) in [
        (CHAT, json!({"temperature": 0, "prompt_logprobs": 2})),
        (CHAT, json!({"temperature": 0, "use_beam_search": true, "n": 2, "best_of": 8})),
        ("/v1/completions", json!({"n": 3, "best_of": 5, "echo": true, "logprobs": 1})),
    ] {
        let mut body = long.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let client = client.clone();
        let asking = tokio::spawn(async move { client.post(path, &body).await.status });
        until("leased", |leased| leased > 0).await;
        assert!(!asking.is_finished(), "{path} {more}: it ended by itself");
        asking.abort();
        until("given back", |leased| leased == 0).await;
    }
}

/// Certificates from `pdserve certs`, HTTPS for clients, and pieces over gRPC on the control port: the same answer.
#[tokio::test(flavor = "multi_thread")]
async fn everything_inside_tls_gives_the_same_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let certs = ["certs", "--save-dir", &path(""), "--https-name", "localhost"];
    assert!(std::process::Command::new(PDSERVE).args(certs).output().unwrap().status.success());
    let (cert, key) = (path("https/tls.crt"), path("https/tls.key"));
    let flags = ["--cluster-tls-dir", &path(""), "--tls-cert", &cert, "--tls-key", &key, "--kv-transports", "grpc"];
    let cluster = ProcessCluster::up(PDSERVE, &flags);
    let address = cluster.url.strip_prefix("https://").expect("up says that it serves HTTPS").to_owned();
    let (question, answer) = questions().remove(0);
    let pinned = edge::Pinned::load(cert.as_ref()).unwrap();
    let stream = pinned.connect(address.parse().unwrap()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(CHAT)
        .header("host", "localhost")
        .body(Full::new(bytes::Bytes::from(greedy(&question).to_string())))
        .unwrap();
    let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], answer.as_str(), "{body}");

    // Our own clients believe the CA that they are given, and nothing without one.
    let (url, ca) = (format!("https://localhost:{}", address.rsplit(':').next().unwrap()), path("ca/ca.crt"));
    let kv = ["kv", "--url", &url];
    let bench =
        ["bench", "serve", "fixed", "--requests=2", "--concurrency=1", "--input=8", "--output=4", "--url", &url];
    let commands: [(&[&str], &str); 2] = [(&kv, "decode-0  total"), (&bench, "output tok/s")];
    for (command, expected) in commands {
        let run = |more: &[&str]| std::process::Command::new(PDSERVE).args(command).args(more).output().unwrap();
        let (trusting, bare) = (run(&["--cacert", &ca]), run(&[]));
        let said = String::from_utf8_lossy(&trusting.stdout);
        let complaint = String::from_utf8_lossy(&trusting.stderr);
        assert!(trusting.status.success() && said.contains(expected), "{command:?}: {said} {complaint}");
        let refused = String::from_utf8_lossy(&bare.stderr);
        assert!(!bare.status.success() && refused.contains("--cacert"), "{command:?}: {refused}");
    }
}
