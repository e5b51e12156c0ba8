//! The original guide, steps 5 to 9, as an operator types them: generate tables, start each role by its local table, ask the scheduler.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use tests::{Client, Oracle, demo_model};

const PDSERVE: &str = env!("CARGO_BIN_EXE_pdserve-under-test");

/// A role's process; killed when dropped.
struct Role(Child);

impl Drop for Role {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct Guide<'a> {
    tables: &'a Path,
    node_ports: String,
}

impl Guide<'_> {
    fn start(&self, role: &str, local: &str, port: u16) -> Role {
        let child = Command::new(PDSERVE)
            .arg(role)
            .env("GLOBAL_RANK_TABLE_FILE_PATH", self.tables.join("global_ranktable_127.0.0.1.json"))
            .env("RANK_TABLE_FILE_PATH", self.tables.join(local))
            .env("NODE_PORTS", &self.node_ports)
            .env("USE_OPENAI", "1")
            .arg(format!("--model={}", demo_model().display()))
            .args(["--tensor-parallel-size", "2", "--max-model-len=1024", "--max-num-seqs", "16"])
            .args(["--max-num-batched-tokens", "1024", "--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--served-model-name", "demo"])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Role(child)
    }
}

fn free_ports<const N: usize>() -> [u16; N] {
    let held: [_; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

async fn wait_ready(client: &Client, port: u16) {
    for _ in 0..600 {
        let listening = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        if listening && client.get("/ready").await.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not ready: {}", client.get("/ready").await.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_prefill_and_one_decode_of_two_ranks_start_from_generated_tables_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let generated = Command::new(PDSERVE)
        .args([
            "ranktable",
            "--mode",
            "gen",
            "--prefill-server-list",
            "4,5",
            "--decode-server-list",
            "6,7",
            "--api-server",
        ])
        .args(["--ip", "127.0.0.1", "--save-dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));
    let [prefill, decode, scheduler] = free_ports();
    let guide = Guide { tables: dir.path(), node_ports: format!("{prefill},{decode}") };
    // The guide starts the scheduler last; any order must do.
    let _scheduler = guide.start("scheduler", "local_ranktable_127.0.0.1_host.json", scheduler);
    let _decode = guide.start("decode-worker", "local_ranktable_127.0.0.1_67.json", decode);
    let _prefill = guide.start("prefill-worker", "local_ranktable_127.0.0.1_45.json", prefill);
    let client = Client::new(format!("http://127.0.0.1:{scheduler}"));
    wait_ready(&client, scheduler).await;

    let question = "What is prefill?";
    let body = json!({
        "model": "demo", "messages": [{"role": "user", "content": question}],
        "max_tokens": 100, "top_k": -1, "top_p": 1, "temperature": 0, "ignore_eos": false, "stream": false,
    });
    let reply = client.post("/v1/chat/completions", &body).await;
    assert_eq!(reply.text(), Oracle::load(&demo_model()).answer(question, 100));
    let models = client.get("/v1/models").await;
    assert_eq!(models.body["data"][0]["id"], "demo");
}

#[test]
fn a_decode_worker_handed_a_prefill_table_stops_before_it_listens() {
    let dir = tempfile::tempdir().unwrap();
    let generated = Command::new(PDSERVE)
        .args([
            "ranktable",
            "gen",
            "--prefill-server-list=0",
            "--decode-server-list=1",
            "--api-server",
            "--ip=127.0.0.1",
        ])
        .arg(format!("--save-dir={}", dir.path().display()))
        .status()
        .unwrap();
    assert!(generated.success());
    let out = Command::new(PDSERVE)
        .arg("decode-worker")
        .env("GLOBAL_RANK_TABLE_FILE_PATH", dir.path().join("global_ranktable_127.0.0.1.json"))
        .env("RANK_TABLE_FILE_PATH", dir.path().join("local_ranktable_127.0.0.1_0.json"))
        .args(["--model", demo_model().to_str().unwrap(), "--port", "18089"])
        .output()
        .unwrap();
    assert!(!out.status.success());
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("prefill") && text.contains("decode"), "{text}");
}
