//! A rank table that changes while requests run: who stays is left alone, who is new is used, who went finishes what it has.

use std::path::{Path, PathBuf};
use std::time::Duration;

use scheduler::TableFile;
use serde_json::{Value, json};
use tempfile::TempDir;
use types::Role;

use crate::failover::check_text;
use crate::support::Cluster;
use crate::support::client::{Open, get, stream};
use crate::support::fake_worker::{Fake, FakeWorker, continuation};

const TOKENS: usize = 150;

/// Puts the table that lists these workers in the place of the one before.
fn write(path: &Path, workers: &[&FakeWorker]) {
    let line = |(number, worker): (usize, &&FakeWorker)| {
        let device = json!({"device_id": number.to_string(), "device_ip": "127.0.0.1", "rank_id": "0"});
        let port = worker.address.port().to_string();
        json!({"server_id": "127.0.0.1", "server_ip": "127.0.0.1", "device": [device], "port": port})
    };
    let lines = |role: Role| -> Vec<Value> {
        workers.iter().enumerate().filter(|(_, worker)| worker.fake.role == role).map(line).collect()
    };
    let group = |id: &str, lines: Vec<Value>| json!({"group_id": id, "server_count": lines.len().to_string(), "server_list": lines});
    let host = vec![json!({"server_id": "127.0.0.1", "server_ip": "127.0.0.1"})];
    let groups = [group("0", host), group("1", lines(Role::Prefill)), group("2", lines(Role::Decode))];
    let table = json!({"version": "1.0", "status": "completed", "server_group_list": groups});
    let whole = path.with_extension("new");
    std::fs::write(&whole, table.to_string()).unwrap();
    let hash = TableFile::new(&whole).read().unwrap().hash;
    // Those that run have no need to know: they are not asked again.
    workers.iter().filter(|worker| worker.hellos() == 0).for_each(|worker| worker.has_read(&hash));
    std::fs::rename(whole, path).unwrap();
}

/// One prefill and two decode instances behind a scheduler that watches the file of the path.
async fn watching(directory: &TempDir) -> (Cluster, PathBuf) {
    let path = directory.path().join("table.json");
    let watch = |config: &mut scheduler::Config| {
        config.table_file = Some(TableFile::new(&path));
        config.timings.table = Duration::from_millis(20);
    };
    // With room for a few streams on each, so that both get some.
    let small = |fake: &mut Fake| {
        fake.step = Duration::from_millis(10);
        fake.limits.blocks_total = 16;
    };
    let cluster = Cluster::start_unready(1, 2, small, watch).await;
    cluster.ready().await;
    (cluster, path)
}

/// Streams until both decode instances have one.
async fn streams_on_both(cluster: &Cluster) -> Vec<Open> {
    let mut open = Vec::new();
    while ["decode-0", "decode-1"].iter().any(|name| cluster.worker(name).held() == 0) {
        assert!(open.len() < 6, "one gets nothing");
        let body = json!({"prompt": "hello", "max_tokens": TOKENS, "stream": true});
        let mut stream = stream(cluster.address(), "/v1/completions", body).await;
        stream.event().await.unwrap();
        open.push(stream);
    }
    open
}

/// What is left of a stream after its first event is what is left of the text.
async fn check_rest(stream: Open) {
    let mut events = stream.events().await;
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let text = |event: &String| serde_json::from_str::<Value>(event).unwrap()["choices"][0]["text"].clone();
    let rest: String = events.iter().map(text).map(|text| text.as_str().unwrap().to_owned()).collect();
    assert!(continuation("hello", 0, TOKENS).ends_with(&rest) && rest.len() > TOKENS / 2, "{rest}");
}

async fn addresses(cluster: &Cluster) -> Vec<(String, String)> {
    let json = get(cluster.address(), "/ready").await.json();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let instances = json["instances"].as_array().unwrap();
    instances.iter().map(|instance| (word(&instance["instance"]), word(&instance["address"]))).collect()
}

/// Whether `/ready` knows it under this name.
async fn is_ready(cluster: &Cluster, name: &str, worker: &FakeWorker) -> bool {
    let json = get(cluster.address(), "/ready").await.json();
    let address = worker.address.to_string();
    let is_it = |instance: &&Value| instance["instance"] == name && instance["address"] == address;
    json["instances"].as_array().unwrap().iter().find(is_it).is_some_and(|instance| instance["state"] == "ready")
}

fn listed(workers: &[(&str, &FakeWorker)]) -> Vec<(String, String)> {
    workers.iter().map(|(name, worker)| ((*name).to_owned(), worker.address.to_string())).collect()
}

#[tokio::test]
async fn f18_an_instance_that_moved_is_used_at_its_new_address_and_the_others_stay() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, path) = watching(&directory).await;
    let open = streams_on_both(&cluster).await;
    let [prefill, old, staying] = ["prefill-0", "decode-0", "decode-1"].map(|name| cluster.worker(name));
    let moved = FakeWorker::start(Fake::new(Role::Decode, "decode-0")).await;
    // A half-written file changes nothing.
    std::fs::write(&path, r#"{"version":"1.0","stat"#).unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    write(&path, &[prefill, &moved, staying]);
    cluster.until("ready", || async { is_ready(&cluster, "decode-0", &moved).await }).await;
    let before = old.count("reserve");
    for stream in open {
        check_text(&cluster, 5, 1).await;
        check_rest(stream).await;
    }
    assert_eq!(old.count("reserve"), before, "the old route is gone");
    // What it had is done: it is let go.
    cluster.until("let go", || async { addresses(&cluster).await.len() == 3 }).await;
    assert_eq!([prefill, old, staying, &moved].map(FakeWorker::hellos), [1; 4], "nobody was connected to twice");
    staying.kill();
    check_text(&cluster, 5, 1).await;
    assert!(moved.count("generate") > 0, "the new route is used");
}

#[tokio::test]
async fn an_instance_that_moves_up_in_the_table_keeps_its_connection_under_its_new_name() {
    let directory = tempfile::tempdir().unwrap();
    let (cluster, path) = watching(&directory).await;
    let open = streams_on_both(&cluster).await;
    let [prefill, leaving, staying] = ["prefill-0", "decode-0", "decode-1"].map(|name| cluster.worker(name));
    write(&path, &[prefill, staying]);
    let now = listed(&[("prefill-0", prefill), ("decode-0", staying)]);
    cluster.until("taken over", || async { addresses(&cluster).await.starts_with(&now) }).await;
    for stream in open {
        check_rest(stream).await;
    }
    cluster.until("let go", || async { addresses(&cluster).await == now }).await;
    check_text(&cluster, 5, 1).await;
    // It comes back, below.
    let back = FakeWorker::start(Fake::new(Role::Decode, "decode-1")).await;
    write(&path, &[prefill, staying, &back]);
    cluster.until("back", || async { is_ready(&cluster, "decode-1", &back).await }).await;
    assert_eq!([prefill, leaving, staying, &back].map(FakeWorker::hellos), [1; 4], "nobody was connected to twice");
}
