//! Bodies that are too large, too deep, too odd: a small 4xx each, and nothing allocated by their numbers.

use std::fmt::Write;

use hyper::Request;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::Cluster;
use crate::support::client::{Answer, get, post, request, send};

/// Error bodies are JSON, small, and tell nothing about us.
fn is_refusal(answer: &Answer, what: &str) {
    let text = answer.text();
    assert!((400..500).contains(&answer.status), "{what}: {} {text}", answer.status);
    is_proper_error(answer, what);
}

fn is_proper_error(answer: &Answer, what: &str) {
    let text = answer.text();
    assert!(text.len() <= 4096, "{what}: {} bytes", text.len());
    assert!(answer.json()["error"]["message"].is_string(), "{what}: {text}");
    for inner in ["/tmp", "/work", ".rs:", "127.0.0.1", "panicked", "prefill-0", "decode-0"] {
        assert!(!text.contains(inner), "{what} tells {inner}: {text}");
    }
}

/// A seeded change of some bytes, sometimes a cut or a repetition.
fn mutate(random: &mut StdRng, body: &str) -> Vec<u8> {
    let mut bytes = body.as_bytes().to_vec();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..5) {
            0 => bytes[at] = random.random(),
            1 => bytes[at] ^= 1 << random.random_range(0..8),
            2 => drop(bytes.remove(at)),
            3 => bytes.insert(at, *b"{}[]\",:0\\".choose(random).unwrap()),
            _ => bytes.truncate(at.max(1)),
        }
        if bytes.is_empty() {
            bytes.push(b'{');
        }
    }
    bytes
}

/// Thousands more go to a real process (`tests/it/memory.rs`), two thousand to the parsers alone (`crates/openai/src/tests/mutants.rs`), and
/// ten thousand are sent by the drill.
#[tokio::test]
async fn a1_mutated_bodies_get_an_answer_that_is_no_5xx() {
    let cluster = Cluster::start(1, 1, |_| {}).await;
    let chat =
        json!({"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stop": ["x"]});
    let completion = json!({"prompt": ["a", "b"], "max_tokens": 2, "logit_bias": {"5": 1}, "stream": false, "n": 2});
    let bodies = [("/v1/chat/completions", chat.to_string()), ("/v1/completions", completion.to_string())];
    let mut random = StdRng::seed_from_u64(1);
    for round in 0..400 {
        for (path, body) in &bodies {
            let bytes = mutate(&mut random, body);
            let answer = send(cluster.address(), request("POST", path, bytes.clone())).await;
            assert!(
                answer.status < 500,
                "round {round} {path} {:?}: {}",
                String::from_utf8_lossy(&bytes),
                answer.text()
            );
        }
    }
}

#[tokio::test]
async fn a2_malformed_bodies_are_refused_at_any_depth() {
    let cluster = Cluster::start(1, 1, |_| {}).await;
    let deep = |open: &str, close: &str| format!("{{\"prompt\": {}{}}}", open.repeat(100_000), close.repeat(100_000));
    let wide = (0..300_000).fold(String::from("{\"prompt\":\"x\",\"a\":{"), |mut text, key| {
        let _ = write!(text, "\"k{key}\":0,");
        text
    });
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"x\"".to_vec(),
        b"{\"prompt\": \"\xff\xfe\"}".to_vec(),
        b"{\"prompt\": \"\\ud800\"}".to_vec(),
        b"{\"prompt\": \"x\", \"temperature\": NaN}".to_vec(),
        b"{\"prompt\": \"x\", \"temperature\": 1e999}".to_vec(),
        b"{\"prompt\": \"x\"} trailing".to_vec(),
        b"{\"prompt\": \"x\",}".to_vec(),
        deep("[", "]").into_bytes(),
        deep("{\"a\":", "}").into_bytes(),
        deep("[", "").into_bytes(),
        format!("{}\"z\":0}}}}", wide).into_bytes(),
        vec![0; 1000],
    ];
    for body in bodies {
        let answer = send(cluster.address(), request("POST", "/v1/completions", body.clone())).await;
        is_refusal(&answer, &String::from_utf8_lossy(&body[..body.len().min(60)]));
    }
    assert_eq!(get(cluster.address(), "/health").await.status, 200);
}

#[tokio::test]
async fn a3_numbers_out_of_range_are_refused_by_name() {
    let cluster = Cluster::start(1, 1, |_| {}).await;
    let fields = ["n", "best_of", "max_tokens", "temperature", "top_p", "min_p", "logprobs", "repetition_penalty"];
    for field in fields {
        for number in ["-2", "4294967296", "9223372036854775808", "18446744073709551616", "1e308", "1000000.5"] {
            let body = format!(r#"{{"prompt": "x", "{field}": {number}}}"#);
            let answer = send(cluster.address(), request("POST", "/v1/completions", body.clone())).await;
            is_refusal(&answer, &body);
            assert!(answer.text().contains(field), "{body}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn a4_large_bodies_are_refused_before_they_are_computed_on() {
    let cluster = Cluster::start(1, 1, |_| {}).await;
    let text = |bytes: usize| "x".repeat(bytes);
    let bodies = [
        json!({"prompt": "x", "stop": vec!["s"; 100_000]}),
        json!({"prompt": "x", "stop": text(1 << 20)}),
        json!({"prompt": "x", "logit_bias": (0..100_000).map(|id| (id.to_string(), json!(1))).collect::<serde_json::Map<_, _>>()}),
        json!({"prompt": vec![1; 200_000]}),
        json!({"prompt": text(3 << 20)}),
        json!({"prompt": text(5 << 20)}),
    ];
    for body in bodies {
        let what: String = body.to_string().chars().take(40).collect();
        is_refusal(&post(cluster.address(), "/v1/completions", body).await, &what);
    }
    // Endless: what has been read is bounded, whatever is still to come.
    let mut endless = TcpStream::connect(cluster.address()).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    endless.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, text(1 << 16));
    let mut sent = 0;
    while endless.write_all(chunk.as_bytes()).await.is_ok() {
        sent += 1 << 16;
        assert!(sent < 64 << 20, "an endless body is still read");
    }
    let mut answer = Vec::new();
    let _ = endless.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(get(cluster.address(), "/health").await.status, 200);
}

#[tokio::test]
async fn a4_large_bodies_that_arrive_at_once_are_bounded_together_and_small_ones_pass() {
    let adjust = |config: &mut scheduler::Config| config.bounds.arriving_bytes = 1 << 20;
    let cluster = Cluster::start_unready(1, 1, |_| {}, adjust).await;
    cluster.ready().await;
    let mut arriving = TcpStream::connect(cluster.address()).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\n\r\n";
    arriving.write_all(head.as_bytes()).await.unwrap();
    arriving.write_all(&vec![b' '; 1_000_000]).await.unwrap();
    // While these are answered, what has been sent is read.
    for _ in 0..20 {
        assert_eq!(get(cluster.address(), "/health").await.status, 200);
    }
    let large = json!({"prompt": "x".repeat(300_000)});
    let status = || async { post(cluster.address(), "/v1/completions", large.clone()).await.status };
    assert_eq!(status().await, 429);
    let small = json!({"prompt": "x".repeat(1000), "max_tokens": 2});
    assert_eq!(post(cluster.address(), "/v1/completions", small).await.status, 200);
    drop(arriving);
    cluster.until("room again", || async { status().await == 400 }).await;
}

#[tokio::test]
async fn a5_compressed_bodies_are_refused() {
    let cluster = Cluster::start(1, 1, |_| {}).await;
    let body = json!({"prompt": "hello", "max_tokens": 2}).to_string();
    for encoding in ["gzip", "GZIP", "br", "deflate", "zstd", "gzip, gzip", "identity, gzip", "nonsense", "chunked"] {
        let mut request = request("POST", "/v1/completions", body.clone());
        request.headers_mut().insert("content-encoding", encoding.parse().unwrap());
        let answer = send(cluster.address(), request).await;
        assert_eq!(answer.status, 415, "{encoding}: {}", answer.text());
        is_proper_error(&answer, encoding);
    }
    let mut plain = request("POST", "/v1/completions", body);
    plain.headers_mut().insert("content-encoding", "identity".parse().unwrap());
    assert_eq!(send(cluster.address(), plain).await.status, 200);
    // Unannounced, it is only bytes that are no JSON.
    let gzip = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0; 1000]].concat();
    is_refusal(&send(cluster.address(), request("POST", "/v1/completions", gzip)).await, "gzip");
}

#[tokio::test]
async fn a15_every_error_is_small_and_tells_nothing_about_us() {
    let cluster = Cluster::start_unready(1, 1, |_| {}, |config| config.bounds.requests = 1).await;
    cluster.ready().await;
    let address = cluster.address();
    let long = "y".repeat(100_000);
    let posts: [(&str, Value, u16); 9] = [
        ("/v1/completions", json!({"prompt": 5}), 400),
        ("/v1/completions", json!({"prompt": "x", "temperature": long}), 400),
        ("/v1/completions", json!({"prompt": "x", "cache_salt": long}), 400),
        ("/v1/completions", json!({"prompt": "x", "model": long}), 400),
        ("/v1/completions", json!({"prompt": "x", "model": "/etc/passwd"}), 404),
        ("/v1/chat/completions", json!({"messages": [{"role": long, "content": long}]}), 400),
        ("/v1/responses", json!({"input": [{"type": long}]}), 400),
        ("/tokenize", json!({"prompt": [1]}), 400),
        ("/detokenize", json!({"tokens": ["a"]}), 400),
    ];
    for (path, body, status) in posts {
        let what: String = body.to_string().chars().take(60).collect();
        let answer = post(address, path, body).await;
        assert_eq!(answer.status, status, "{path} {what}: {}", answer.text());
        is_proper_error(&answer, &what);
    }
    let others: [(&str, String, u16); 4] = [
        ("GET", "/nowhere".into(), 404),
        ("GET", "/v1/completions".into(), 405),
        ("GET", format!("/{}", "u".repeat(9000)), 414),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd".into(), 404),
    ];
    for (method, path, status) in others {
        let built = Request::builder().method(method).uri(&path).header("host", "x");
        let answer = send(address, built.body(Default::default()).unwrap()).await;
        let what: String = path.chars().take(30).collect();
        assert_eq!(answer.status, status, "{what}");
        is_proper_error(&answer, &what);
    }
    let held = json!({"prompt": "hello", "max_tokens": 4000, "stream": true});
    let open = crate::support::client::stream(address, "/v1/completions", held).await;
    let refused = post(address, "/v1/completions", json!({"prompt": "x"})).await;
    assert_eq!(refused.status, 429);
    is_proper_error(&refused, "429");
    drop(open);
    for worker in &cluster.workers {
        worker.kill();
    }
    cluster
        .until("503", || async { post(address, "/v1/completions", json!({"prompt": "x"})).await.status == 503 })
        .await;
    is_proper_error(&post(address, "/v1/completions", json!({"prompt": "x"})).await, "503");
}
