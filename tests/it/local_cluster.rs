//! A scheduler and real workers with the demo model in this process, and a fault proxy on every link between them.

use std::net::SocketAddr;
use std::time::Duration;

use decode_worker::DecodePlanner;
use engine::EngineConfig;
use pdserve::FaultProxy;
use scheduler::{LocalPrefill, Target};
use tests::{Client, demo_model};
use transfer::TransportKind;
use types::Role;
use worker::{Config, Running, fake};

/// Dropping it stops everything.
pub(crate) struct LocalCluster {
    pub(crate) client: Client,
    pub(crate) workers: Vec<LocalWorker>,
    _scheduler: scheduler::Running,
}

pub(crate) struct LocalWorker {
    pub(crate) name: String,
    pub(crate) running: Running,
    /// Between the scheduler and it.
    pub(crate) control: FaultProxy,
    /// Between prefill instances and it.
    pub(crate) kv: FaultProxy,
}

const LOOPBACK: [u8; 4] = [127, 0, 0, 1];
/// What workers announce: their KV proxies, on the same ports.
const ANNOUNCED: [u8; 4] = [127, 0, 0, 2];

impl LocalCluster {
    /// Returns when a canary came back through each instance. `kv_bytes`: of each worker.
    pub(crate) async fn start(prefill: usize, decode: usize, kv_bytes: u64) -> Self {
        let names = |role: Role, count| (0..count).map(move |index| (role, format!("{role}-{index}")));
        let mut workers = Vec::new();
        for (role, name) in names(Role::Prefill, prefill).chain(names(Role::Decode, decode)) {
            workers.push(LocalWorker::start(role, &name, kv_bytes).await);
        }
        let target = |worker: &LocalWorker| Target {
            id: worker.name.as_str().into(),
            role: if worker.name.starts_with("prefill") { Role::Prefill } else { Role::Decode },
            address: worker.control.address(),
        };
        let mut config = scheduler::Config::new(demo_model(), workers.iter().map(target).collect(), "table");
        config.local_prefill = LocalPrefill::Never;
        let scheduler = scheduler::start(config).await.unwrap();
        let cluster =
            Self { client: Client::new(format!("http://{}", scheduler.address)), workers, _scheduler: scheduler };
        cluster.until("all ready", || async { cluster.states().await.iter().all(|state| state == "ready") }).await;
        cluster
    }

    pub(crate) fn worker(&self, name: &str) -> &LocalWorker {
        self.workers.iter().find(|worker| worker.name == name).unwrap()
    }

    /// Of every instance, as `/ready` says.
    pub(crate) async fn states(&self) -> Vec<String> {
        let report = self.client.get("/ready").await.body;
        let instances = report["instances"].as_array().unwrap().iter();
        instances.map(|instance| instance["state"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits for a condition; the bound is only there to fail in.
    pub(crate) async fn until<F: Future<Output = bool>>(&self, what: &str, condition: impl Fn() -> F) {
        for _ in 0..2000 {
            if condition().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {what}: {}", self.client.get("/ready").await.body);
    }

    /// Until no worker has a block that is not free or cached.
    pub(crate) async fn settled(&self) {
        let leased = || self.workers.iter().map(|worker| worker.running.pool().stats().leased).sum::<u32>();
        self.until("settled", || async { leased() == 0 }).await;
    }

    /// A counter of the scheduler's, over all its series with `label`.
    pub(crate) async fn count(&self, metric: &str, label: &str) -> f64 {
        sum(&self.client.get("/metrics").await.body, metric, label)
    }
}

impl LocalWorker {
    async fn start(role: Role, name: &str, kv_bytes: u64) -> Self {
        let engine = EngineConfig {
            model_dir: demo_model(),
            kv_bytes: Some(kv_bytes),
            max_num_seqs: 32,
            max_num_batched_tokens: 512,
            ..fake::config(role, name, &[]).engine
        };
        let kv_port = free_port();
        let config =
            Config { engine, kv_port, advertise: ANNOUNCED.into(), ..fake::config(role, name, &[TransportKind::Tcp]) };
        let running = match role {
            Role::Prefill => prefill_worker::start(config).await.unwrap(),
            _ => decode_worker::start(config, DecodePlanner::default()).await.unwrap(),
        };
        let proxy = async |listen: ([u8; 4], u16), to| FaultProxy::start(SocketAddr::from(listen), to).await.unwrap();
        let control = proxy((LOOPBACK, 0), running.address()).await;
        let kv = proxy((ANNOUNCED, kv_port), SocketAddr::from((LOOPBACK, kv_port))).await;
        Self { name: name.to_owned(), running, control, kv }
    }

    /// A counter of this worker's, over all its series.
    pub(crate) async fn count(&self, metric: &str) -> f64 {
        let metrics = Client::new(format!("http://{}", self.running.address())).get("/metrics").await.body;
        sum(&metrics, metric, "")
    }
}

fn sum(metrics: &serde_json::Value, metric: &str, label: &str) -> f64 {
    let lines = metrics.as_str().unwrap().lines();
    let of_metric = lines.filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(label));
    of_metric.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

fn free_port() -> u16 {
    pdserve::hold_port(LOOPBACK.into()).unwrap().local_addr().unwrap().port()
}
