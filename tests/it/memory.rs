//! What hostile clients may cost the scheduler in memory, on real processes, by the ids of our abuse scenarios; another client's
//! answers stay what they were all the while.

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tests::ProcessCluster;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const PDSERVE: &str = env!("CARGO_BIN_EXE_pdserve-under-test");
const COMPLETIONS: &str = "/v1/completions";
const BODY_BYTES: usize = 4 << 20;
/// The scheduler may grow by so much whatever is sent to it.
const GROWTH_KIB_MAX: u64 = 64 << 10;

/// Does `hostile` beside a client whose question must be answered as before. What the scheduler's peak is above its size before, in KiB.
async fn growth_during(cluster: &ProcessCluster, hostile: impl Future<Output = ()>) -> u64 {
    let client = cluster.client();
    let question = json!({"prompt": "What is prefill?", "max_tokens": 8, "temperature": 0});
    let expected = client.post(COMPLETIONS, &question).await.text().to_owned();
    let growth = cluster.growth("scheduler");
    let bystander = async {
        loop {
            assert_eq!(client.post(COMPLETIONS, &question).await.text(), expected);
        }
    };
    tokio::select! {
        () = hostile => {}
        () = bystander => {}
    }
    assert_eq!(client.post(COMPLETIONS, &question).await.text(), expected);
    growth.kib()
}

/// The drill sends ten thousand.
const MUTANTS: usize = 2000;
const AT_ONCE: usize = 16;

#[tokio::test(flavor = "multi_thread")]
async fn a1_every_mutant_is_answered_without_5xx_and_leaves_no_memory_behind() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let client = cluster.client();
    let message = json!([{"role": "user", "content": "hi"}]);
    let bodies = [
        ("/v1/chat/completions", json!({"messages": message, "max_tokens": 2, "stop": ["x"], "seed": 5})),
        (COMPLETIONS, json!({"prompt": ["a", "b"], "max_tokens": 2, "logit_bias": {"5": 1}, "n": 2})),
        ("/v1/responses", json!({"input": "hello", "max_output_tokens": 2, "temperature": 0.5})),
        ("/tokenize", json!({"prompt": "hello", "add_special_tokens": true})),
    ];
    let mut random = StdRng::seed_from_u64(1);
    let mutants: Vec<(&str, Vec<u8>)> = (0..MUTANTS)
        .map(|number| {
            let (path, body) = &bodies[number % bodies.len()];
            (*path, pdserve::mutate(&mut random, body.to_string().into_bytes()))
        })
        .collect();
    let hostile = async {
        let client = &client;
        let sent = mutants.into_iter().map(|(path, body)| async move {
            let shown = String::from_utf8_lossy(&body).into_owned();
            let reply = client.post_bytes(path, body).await;
            assert!(reply.status < 500, "{path} {shown}: {} {}", reply.status, reply.body);
        });
        futures::stream::iter(sent).buffer_unordered(AT_ONCE).collect::<()>().await;
    };
    let grown = growth_during(&cluster, hostile).await;
    assert!(grown <= GROWTH_KIB_MAX, "{MUTANTS} mutants took {grown} KiB, at most {GROWTH_KIB_MAX}");
}

/// One step of a body that is sent in step with its reader.
const STEP: usize = 16 << 10;

/// Sends `head` and then `part` again and again, each when the one before has been read, until an answer comes. Bytes of the body
/// that the server read at most, and its answer.
async fn read_before_answer(address: SocketAddr, head: &str, part: &[u8]) -> (usize, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let near = stream.local_addr().unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut sent, mut first) = (0, [0]);
    loop {
        let answered = tokio::time::timeout(Duration::from_millis(1), stream.peek(&mut first)).await;
        if answered.is_ok() {
            break;
        }
        if is_read(near, address) {
            if stream.write_all(part).await.is_err() {
                break;
            }
            sent += part.len();
            assert!(sent < 2 * BODY_BYTES, "a body without end is still read");
        }
    }
    let mut answer = vec![0; 4096];
    let count = stream.read(&mut answer).await.unwrap_or(0);
    (sent, String::from_utf8_lossy(&answer[..count]).into_owned())
}

/// Whether the kernel holds nothing between both ends of a connection, or does not know it any more.
fn is_read(near: SocketAddr, far: SocketAddr) -> bool {
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).all(|line| {
        let fields: Vec<&str> = line.split_whitespace().take(5).collect();
        let ports = [port(fields[1]), port(fields[2])];
        let ours = ports == [near.port(), far.port()] || ports == [far.port(), near.port()];
        !ours || fields[4] == "00000000:00000000"
    })
}

/// Bodies within the bound on bytes that want something out of bounds.
fn too_much() -> Vec<Value> {
    let bias: serde_json::Map<_, _> = (0..200_000).map(|id| (id.to_string(), json!(1))).collect();
    vec![
        json!({"prompt": "x", "stop": vec!["s"; 1_000_000]}),
        json!({"prompt": "x", "stop": "s".repeat(1 << 20)}),
        json!({"prompt": "x", "logit_bias": bias}),
        json!({"prompt": vec![1; 1_000_000]}),
        json!({"prompt": "word ".repeat(700_000)}),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a4_no_more_than_the_bound_is_read_of_a_body_and_nothing_is_kept() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let address: SocketAddr = cluster.url.trim_start_matches("http://").parse().unwrap();
    let head = |more: &str| format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\n{more}\r\n\r\n");
    let part = [format!("{STEP:x}\r\n").as_bytes(), &[b' '; STEP], b"\r\n"].concat();
    let hostile = async {
        let (read, answer) = read_before_answer(address, &head("transfer-encoding: chunked"), &part).await;
        assert!(read <= BODY_BYTES + (64 << 10) && answer.starts_with("HTTP/1.1 413"), "{read} read: {answer}");
        assert!(read >= BODY_BYTES, "{read} bytes are within the bound: {answer}");
        for announced in [200 << 20, 10_000_000_000_000_u64] {
            let head = head(&format!("content-length: {announced}"));
            let (read, answer) = read_before_answer(address, &head, &[b' '; STEP]).await;
            assert!(read <= 64 << 10 && answer.starts_with("HTTP/1.1 413"), "{announced}, {read} read: {answer}");
        }
        let client = cluster.client();
        for body in too_much() {
            let body = body.to_string();
            let shown: String = body.chars().take(40).collect();
            let reply = client.post_bytes(COMPLETIONS, body.into_bytes()).await;
            assert!(matches!(reply.status, 400 | 413), "{shown}: {} {}", reply.status, reply.body);
        }
    };
    let grown = growth_during(&cluster, hostile).await;
    assert!(grown <= GROWTH_KIB_MAX, "bodies that are too large took {grown} KiB, at most {GROWTH_KIB_MAX}");
}

const UNREAD: usize = 256;
const UNREAD_KIB_MAX: u64 = 256;

#[tokio::test(flavor = "multi_thread")]
async fn a8_a_stream_that_nobody_reads_costs_little_memory() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let address: SocketAddr = cluster.url.trim_start_matches("http://").parse().unwrap();
    let body =
        json!({"prompt": "Go on.", "max_tokens": 400, "ignore_eos": true, "logprobs": 20, "stream": true}).to_string();
    let request = format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let unread = async || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        // The answer has begun.
        stream.peek(&mut [0]).await.unwrap();
        stream
    };
    let hostile = async {
        let streams = join_all((0..UNREAD).map(|_| unread())).await;
        drop(streams);
    };
    let grown = growth_during(&cluster, hostile).await;
    assert!(grown <= UNREAD_KIB_MAX * UNREAD as u64, "{UNREAD} unread streams took {grown} KiB");
}
