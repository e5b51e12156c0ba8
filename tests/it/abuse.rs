//! Hostile clients against real processes, by the ids of our abuse scenarios; `scheduler/tests/it/abuse` has those that need fakes.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tests::{ProcessCluster, raw_h2};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PDSERVE: &str = env!("CARGO_BIN_EXE_pdserve-under-test");
/// Generous: only there to fail in.
const PATIENCE: Duration = Duration::from_secs(60);
const ROLES: [&str; 3] = ["scheduler", "prefill-0", "decode-0"];

/// Status and text of an answer; `key` goes along if there is one.
async fn ask(method: Method, url: &str, key: Option<&str>, body: String) -> (u16, String) {
    let client = HttpClient::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut request = Request::builder().method(method).uri(url).header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let answer = client.request(request.body(Full::from(body)).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&bytes).into_owned())
}

async fn post(cluster: &ProcessCluster, key: Option<&str>, path: &str, body: &Value) -> (u16, String) {
    ask(Method::POST, &format!("{}{path}", cluster.url), key, body.to_string()).await
}

/// The control ports of the workers, as the scheduler tells them.
async fn worker_addresses(cluster: &ProcessCluster) -> Vec<String> {
    let (_, report) = ask(Method::GET, &format!("{}/ready", cluster.url), None, String::new()).await;
    let report: Value = serde_json::from_str(&report).unwrap();
    let instances = report["instances"].as_array().unwrap();
    instances.iter().map(|instance| instance["address"].as_str().unwrap().to_owned()).collect()
}

/// Writes until all is written or the peer has closed, reading along; whether it closed.
async fn flood(address: SocketAddr, start: Vec<u8>, more: impl Fn(u32) -> Vec<u8>, count: u32) -> bool {
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    let write = async {
        writer.write_all(&start).await?;
        for number in 0..count {
            writer.write_all(&more(number)).await?;
        }
        Ok::<(), std::io::Error>(())
    };
    let read = async {
        let mut buffer = [0; 4096];
        while !matches!(reader.read(&mut buffer).await, Ok(0) | Err(_)) {}
    };
    let outcome = async {
        tokio::select! {
            () = read => true,
            written = write => match written {
                // A server that still serves never closes.
                Ok(()) => { tokio::time::sleep(Duration::from_millis(200)).await; false }
                Err(_) => true,
            },
        }
    };
    tokio::time::timeout(PATIENCE, outcome).await.expect("a flood ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn a9_http2_floods_end_and_the_ports_serve_on() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let public: SocketAddr = cluster.url.trim_start_matches("http://").parse().unwrap();
    let mut ports = vec![public];
    ports.extend(worker_addresses(&cluster).await.iter().map(|address| address.parse::<SocketAddr>().unwrap()));
    for port in ports {
        let start = || [raw_h2::PREFACE, &raw_h2::settings()].concat();
        let rapid = |number: u32| [raw_h2::get(2 * number + 1, "/health"), raw_h2::reset(2 * number + 1)].concat();
        flood(port, start(), rapid, 20_000).await;
        let head = [start(), raw_h2::endless_headers(1, "/health")].concat();
        assert!(flood(port, head, |_| raw_h2::continuation(1), 20_000).await, "{port}: endless continuations");
        flood(port, start(), |_| raw_h2::settings(), 5_000).await;
        flood(port, start(), |_| raw_h2::ping(), 5_000).await;
        let (status, _) = ask(Method::GET, &format!("http://{port}/health"), None, String::new()).await;
        assert_eq!(status, 200, "{port} serves on");
    }
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
    assert_eq!(post(&cluster, None, "/v1/chat/completions", &chat).await.0, 200);
}

/// Requests of one connection that are refused while `count` are open.
async fn refused_streams(address: SocketAddr, path: &str, count: u32) -> Vec<u32> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let open = (0..count).flat_map(|number| raw_h2::open_post(2 * number + 1, path));
    let bytes = [raw_h2::PREFACE, &raw_h2::settings(), &open.collect::<Vec<u8>>(), &raw_h2::ping()].concat();
    stream.write_all(&bytes).await.unwrap();
    let mut refused = Vec::new();
    loop {
        let (kind, flags, number, payload) = raw_h2::read_frame(&mut stream).await;
        match (kind, payload.as_slice()) {
            (raw_h2::RESET, [0, 0, 0, raw_h2::REFUSED_STREAM]) => refused.push(number),
            // What was answered before it, was answered before it.
            (raw_h2::PING, _) if flags == raw_h2::ACK => return refused,
            (raw_h2::GOAWAY, reason) => panic!("the connection ended: {reason:?}"),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a9_a_connection_has_256_streams_and_a_head_100_lines() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let public: SocketAddr = cluster.url.trim_start_matches("http://").parse().unwrap();
    let mut ports = vec![(public, "/v1/completions")];
    for instance in ["prefill-0", "decode-0"] {
        ports.push((cluster.control_address(instance).await, "/pdserve.control.v1.Worker/Control"));
    }
    for (port, path) in ports {
        let refused = tokio::time::timeout(PATIENCE, refused_streams(port, path, 260)).await.unwrap();
        assert_eq!(refused, [513, 515, 517, 519], "{port}");
        for (lines, expected) in [(100, "HTTP/1.1 200"), (101, "HTTP/1.1 431")] {
            let more: String = (2..lines).map(|line| format!("x-{line}: x\r\n")).collect();
            let head = format!("GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n");
            let mut stream = TcpStream::connect(port).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&answer), expected, "{port}: {lines} lines");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a12_no_field_makes_us_connect_anywhere_or_read_a_file() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = canary.local_addr().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "canary-in-a-file").unwrap();
    let (url, path) = (format!("http://{address}/x"), file.path().display().to_string());
    let transfer = json!({"remote_host": address.ip(), "remote_port": address.port(), "remote_block_ids": [1, 2], "tp_size": 100_000, "do_remote_prefill": true});
    let fields = [
        ("kv_transfer_params", transfer),
        ("kv_transfer_config", json!({"kv_ip": address.ip(), "kv_port": address.port()})),
        ("chat_template", json!(path)),
        ("chat_template", json!(format!("{{% include '{path}' %}}"))),
        ("chat_template_kwargs", json!({"path": path, "url": url})),
        ("documents", json!([{"title": "x", "text": url, "url": url, "path": path}])),
        ("response_format", json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}})),
        ("guided_json", json!({"$ref": url})),
        ("guided_grammar", json!(format!("start: %import {path}"))),
        (
            "tools",
            json!([{"type": "function", "function": {"name": "f", "parameters": {"$ref": format!("file://{path}")}}}]),
        ),
        ("model", json!(path)),
        ("logits_processors", json!([path])),
        ("user", json!(url)),
        ("metadata", json!({"webhook": url})),
        ("callback_url", json!(url)),
    ];
    for (field, value) in fields {
        for message in [
            "hi".into(),
            json!([{"type": "image_url", "image_url": {"url": url}}]),
            json!([{"type": "file", "file": {"file_id": path}}]),
        ] {
            let body = json!({"messages": [{"role": "user", "content": message}], "max_tokens": 2, field: value});
            let (status, text) = post(&cluster, None, "/v1/chat/completions", &body).await;
            assert!(status < 500, "{field}: {status} {text}");
            assert!(!text.contains("canary-in-a-file"), "{field}: {text}");
        }
    }
    let came = tokio::time::timeout(Duration::from_millis(50), canary.accept()).await;
    assert!(came.is_err(), "someone connected");
}

const KEY: &str = "canary-key-5f3a9c";
const OTHER: &str = "canary-key-77e1b0";
const PROMPT: &str = "canary-prompt-d81c44";

/// A cluster with two API keys in a file.
fn with_keys() -> (ProcessCluster, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{KEY}\n{OTHER}\n")).unwrap();
    let variables = [("PDSERVE_API_KEY_FILE", file.path().display().to_string())];
    (ProcessCluster::up_with(PDSERVE, &["--block-size", "16"], &variables), file)
}

#[tokio::test(flavor = "multi_thread")]
async fn a13_keys_and_prompts_appear_nowhere() {
    let (cluster, _file) = with_keys();
    let message = |text: &str| json!([{"role": "user", "content": text}]);
    let good = json!({"messages": message(PROMPT), "max_tokens": 4, "temperature": 0});
    let bad = json!({"messages": message(PROMPT), "max_tokens": -1});
    let worse = json!({"messages": PROMPT, "stop": [PROMPT]});
    let mut texts = Vec::new();
    assert_eq!(post(&cluster, Some(KEY), "/v1/chat/completions", &good).await.0, 200);
    for (body, key) in [(&bad, Some(KEY)), (&worse, Some(KEY)), (&good, Some("canary-key-5f3a9d")), (&good, None)] {
        let (status, text) = post(&cluster, key, "/v1/chat/completions", body).await;
        assert!((400..500).contains(&status), "{status}");
        texts.push(("an error", text));
    }
    let broken = format!("{{\"messages\": \"{PROMPT}");
    texts.push((
        "a JSON error",
        ask(Method::POST, &format!("{}/v1/chat/completions", cluster.url), Some(KEY), broken).await.1,
    ));
    for path in ["/metrics", "/ready", "/load", "/v1/models"] {
        texts.push((path, ask(Method::GET, &format!("{}{path}", cluster.url), Some(KEY), String::new()).await.1));
    }
    for address in worker_addresses(&cluster).await {
        for path in ["metrics", "kv"] {
            texts.push((path, ask(Method::GET, &format!("http://{address}/{path}"), None, String::new()).await.1));
        }
    }
    for role in ROLES {
        texts.push((role, std::fs::read_to_string(cluster.log(role)).unwrap()));
        let pid = cluster.pid(role).unwrap().as_raw_nonzero();
        texts.push(("ps", std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap()));
    }
    for (what, text) in texts {
        assert!(!text.contains("canary-key") && !text.contains("canary-prompt"), "{what}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a14_one_key_s_cached_prefixes_do_not_exist_for_another() {
    let (cluster, _file) = with_keys();
    let text = "The same long beginning of a prompt, which fills some blocks of the cache. ".repeat(4);
    let body = json!({"prompt": text, "max_tokens": 2, "temperature": 0});
    let cached = async |key| {
        let (status, text) = post(&cluster, Some(key), "/v1/completions", &body).await;
        assert_eq!(status, 200, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        let tokens = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
        (tokens, answer["choices"][0]["text"].as_str().unwrap().to_owned())
    };
    let (first, answer) = cached(KEY).await;
    assert_eq!(first, 0);
    let (again, same) = cached(KEY).await;
    assert!(again >= 16 && same == answer, "a key's own prefixes are reused: {again}");
    let (foreign, same) = cached(OTHER).await;
    assert_eq!((foreign, same), (0, answer.clone()), "another key's are not");
    let salted = json!({"prompt": text, "max_tokens": 2, "temperature": 0, "cache_salt": "x"});
    let (_, text) = post(&cluster, Some(KEY), "/v1/completions", &salted).await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    let tokens = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
    assert_eq!(tokens, 0, "nor under another salt");
}
