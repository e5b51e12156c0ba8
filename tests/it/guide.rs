//! The original guide, steps 5 to 9, as an operator types them: generate tables, start each role by its local table, ask the scheduler.

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
    let held: [_; N] = std::array::from_fn(|_| pdserve::hold_port([127, 0, 0, 1].into()).unwrap());
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

/// Tables with ports in them, one device an instance; in the place of those before, if there are any.
fn generate(dir: &Path, [prefill, decode, scheduler]: [u16; 3]) {
    let generated = Command::new(PDSERVE)
        .args([
            "ranktable",
            "gen",
            "--prefill-server-list=4",
            "--decode-server-list=6",
            "--api-server",
            "--ip=127.0.0.1",
        ])
        .args([format!("--prefill-ports={prefill}"), format!("--decode-ports={decode}")])
        .arg(format!("--scheduler-port={scheduler}"))
        .arg(format!("--save-dir={}", dir.display()))
        .output()
        .unwrap();
    assert!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));
}

/// A role that finds everything in its tables.
fn start(tables: &Path, role: &str, local: &str, flags: &[String]) -> Role {
    let child = Command::new(PDSERVE)
        .arg(role)
        .env("GLOBAL_RANK_TABLE_FILE_PATH", tables.join("global_ranktable_127.0.0.1.json"))
        .env("RANK_TABLE_FILE_PATH", tables.join(local))
        .env_remove("NODE_PORTS")
        .arg(format!("--model={}", demo_model().display()))
        .args(flags)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Role(child)
}

/// Waits until the decode instance of this port is ready.
async fn wait_decode(client: &Client, port: u16) {
    let address = format!("127.0.0.1:{port}");
    for _ in 0..600 {
        let ready = client.try_get("/ready").await;
        let instances = ready.iter().flat_map(|ready| ready.body["instances"].as_array()).flatten();
        if instances.filter(|instance| instance["state"] == "ready").any(|instance| instance["address"] == address) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{address} is not ready: {}", client.get("/ready").await.body);
}

/// A decode instance comes back on another port: its new line in the table is all that is needed. Nobody else is started anew, and
/// a scheduler that is finds those that were not.
#[tokio::test(flavor = "multi_thread")]
async fn f18_a_worker_that_comes_back_on_another_port_is_found_by_its_new_line() {
    let dir = tempfile::tempdir().unwrap();
    let [prefill_port, decode_port, moved_port, scheduler_port] = free_ports();
    generate(dir.path(), [prefill_port, decode_port, scheduler_port]);
    let scheduler_flags = [format!("--port={scheduler_port}"), "--local-prefill=never".to_owned()];
    let scheduler = |dir| start(dir, "scheduler", "local_ranktable_127.0.0.1_host.json", &scheduler_flags);
    let running = scheduler(dir.path());
    let mut prefill = start(dir.path(), "prefill-worker", "local_ranktable_127.0.0.1_4.json", &[]);
    let decode = start(dir.path(), "decode-worker", "local_ranktable_127.0.0.1_6.json", &[]);
    let client = Client::new(format!("http://127.0.0.1:{scheduler_port}"));
    wait_decode(&client, decode_port).await;
    let question = "What is prefill?";
    let expected = Oracle::load(&demo_model()).answer(question, 60);
    let body = json!({"messages": [{"role": "user", "content": question}], "max_tokens": 60, "temperature": 0});
    assert_eq!(client.post("/v1/chat/completions", &body).await.text(), expected);

    drop(decode);
    generate(dir.path(), [prefill_port, moved_port, scheduler_port]);
    let _moved = start(dir.path(), "decode-worker", "local_ranktable_127.0.0.1_6.json", &[]);
    wait_decode(&client, moved_port).await;
    assert_eq!(client.post("/v1/chat/completions", &body).await.text(), expected);

    drop(running);
    let _scheduler = scheduler(dir.path());
    wait_decode(&client, moved_port).await;
    assert_eq!(client.post("/v1/chat/completions", &body).await.text(), expected);
    assert!(prefill.0.try_wait().unwrap().is_none(), "the same process all the time");
}
