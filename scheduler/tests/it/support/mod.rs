//! What the scheduler's tests share: a model directory, fake workers, a client, and a whole loopback cluster of them.

pub(crate) mod client;
pub(crate) mod fake_worker;

use std::net::SocketAddr;
use std::time::Duration;

use fake_worker::{Fake, FakeWorker};
use scheduler::{Config, LocalPrefill, Running, Target};
use serde_json::{Value, json};
use tempfile::TempDir;
use types::{InstanceId, Role, TokenId};

pub(crate) const TABLE_HASH: &str = "table";
/// Long enough for a loaded machine, short enough to fail in.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A scheduler in front of fake workers. Dropping it stops everything.
pub(crate) struct Cluster {
    pub(crate) scheduler: Running,
    pub(crate) workers: Vec<FakeWorker>,
    _model: TempDir,
}

/// Timings for tests: nothing waits for seconds unless a test is about it.
pub(crate) fn config(model: &TempDir, targets: Vec<Target>) -> Config {
    let mut config = Config::new(model.path(), targets, TABLE_HASH);
    config.served_names = vec!["fake".into(), "alias".into()];
    config.local_prefill = LocalPrefill::Never;
    config.timings.stall = Duration::from_millis(600);
    config.timings.canary = Duration::from_millis(20);
    config.timings.absent = Duration::from_millis(300);
    config.timings.absent_resume = Duration::from_millis(600);
    config.timings.drain = Duration::from_secs(5);
    config
}

impl Cluster {
    /// `prefill` and `decode` fakes, configured one by one; returns when a canary came back through each of them.
    pub(crate) async fn start(prefill: usize, decode: usize, shape: impl Fn(&mut Fake)) -> Self {
        let cluster = Self::start_unready(prefill, decode, shape, |_| {}).await;
        cluster.ready().await;
        cluster
    }

    pub(crate) async fn start_unready(
        prefill: usize,
        decode: usize,
        shape: impl Fn(&mut Fake),
        adjust: impl FnOnce(&mut Config),
    ) -> Self {
        let model = model_dir();
        let names = |role: Role, count| (0..count).map(move |index| (role, format!("{role}-{index}")));
        let mut workers = Vec::new();
        for (role, name) in names(Role::Prefill, prefill).chain(names(Role::Decode, decode)) {
            let mut fake = Fake::new(role, &name);
            shape(&mut fake);
            workers.push(FakeWorker::start(fake).await);
        }
        let targets = workers.iter().map(|worker| target(&worker.fake.name, worker.fake.role, worker.address));
        let mut config = config(&model, targets.collect());
        adjust(&mut config);
        let scheduler = scheduler::start(config).await.unwrap();
        Self { scheduler, workers, _model: model }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.scheduler.address
    }

    /// Until every canary is back: while they run, they make an instance look busy.
    pub(crate) async fn ready(&self) {
        let proven = || async {
            let answer = client::get(self.address(), "/ready").await;
            answer.status == 200 && !answer.text().contains(r#""state":"connected""#)
        };
        self.until("ready", proven).await;
    }

    pub(crate) fn worker(&self, name: &str) -> &FakeWorker {
        self.workers.iter().find(|worker| worker.fake.name == name).unwrap()
    }

    /// What `/ready` says of an instance.
    pub(crate) async fn instance(&self, name: &str) -> Value {
        let json = client::get(self.address(), "/ready").await.json();
        let instances = json["instances"].as_array().unwrap();
        instances.iter().find(|instance| instance["instance"] == name).unwrap().clone()
    }

    /// Waits for a condition; the bound is only there to fail in.
    pub(crate) async fn until<F: Future<Output = bool>>(&self, what: &str, condition: impl Fn() -> F) {
        let met = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let ready = async { client::get(self.address(), "/ready").await.text() };
        if tokio::time::timeout(PATIENCE, met).await.is_err() {
            panic!("never {what}: {}", ready.await);
        }
    }
}

pub(crate) fn target(name: &str, role: Role, address: SocketAddr) -> Target {
    Target { id: InstanceId::from(name), role, address }
}

/// Id of the token that ends a text.
pub(crate) const EOS: TokenId = 256;

/// A tokenizer with one token per byte, and a chat template that shows every message on a line.
pub(crate) fn model_dir() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..=255u8).map(|byte| (byte_symbol(byte).to_string(), json!(byte))).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let eos = json!({"id": EOS, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [eos], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []},
    });
    let template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
    let write = |name: &str, content: serde_json::Value| {
        std::fs::write(directory.path().join(name), content.to_string()).unwrap();
    };
    write("tokenizer.json", tokenizer);
    write("tokenizer_config.json", json!({"chat_template": template, "eos_token": "<|end|>"}));
    write("config.json", json!({"max_position_embeddings": 4096}));
    directory
}

/// The printable character that byte-level tokenizers write for a byte.
fn byte_symbol(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&byte| !printable(byte)).count();
    char::from_u32(256 + before as u32).unwrap()
}

/// Token ids of a text under the test tokenizer.
pub(crate) fn ids(text: &str) -> Vec<TokenId> {
    text.bytes().map(TokenId::from).collect()
}
