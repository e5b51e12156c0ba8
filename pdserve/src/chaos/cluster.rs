//! The cluster under the drill: processes of our own, proxies on every link between them, and what can be seen from outside.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::client::Client;
use super::proxy::{Fault, FaultProxy};
use crate::up::{Plan, WORKER_IP};

/// Where the rank table says that the workers are: their proxies. A second loopback address, so that the ports stay the same.
pub(super) const ANNOUNCED_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const POLL: Duration = Duration::from_millis(20);
/// For a worker to start and be proven; far above what a healthy one takes.
const READY_MAX: Duration = Duration::from_secs(60);

/// What the drill does to the cluster and asks of it.
pub(super) struct Site {
    pub(super) client: Client,
    run_dir: PathBuf,
    workers: Vec<Worker>,
    /// How each process ended so far.
    exits: Mutex<BTreeMap<String, Vec<ExitStatus>>>,
}

/// A prefill or decode instance.
pub(super) struct Worker {
    pub(super) name: String,
    /// Its own port, past the proxy.
    http: Client,
    control: FaultProxy,
    kv: FaultProxy,
}

/// What all workers hold and do now.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Held {
    pub(super) leased: f64,
    pub(super) running: f64,
    pub(super) waiting: f64,
}

impl Site {
    /// Puts a proxy before every port of every worker.
    pub(super) async fn new(plan: &Plan) -> anyhow::Result<Self> {
        let mut workers = Vec::new();
        for role in &plan.roles {
            let Some((port, kv_port)) = role.ports else { continue };
            let proxy = async |port| {
                let listen = SocketAddr::new(ANNOUNCED_IP, port);
                let proxy = FaultProxy::start(listen, SocketAddr::new(WORKER_IP, port)).await;
                proxy.with_context(|| format!("cannot listen on {listen}"))
            };
            let http = Client::new(&format!("http://{WORKER_IP}:{port}"), &plan.model_name);
            let (control, kv) = (proxy(port).await?, proxy(kv_port).await?);
            workers.push(Worker { name: role.name.clone(), http, control, kv });
        }
        let client = Client::new(&format!("http://{}", plan.scheduler_address()), &plan.model_name);
        Ok(Self { client, run_dir: plan.run_dir.clone(), workers, exits: Mutex::default() })
    }

    /// A process of the cluster ended.
    pub(super) fn ended(&self, role: &str, status: ExitStatus) {
        self.exits.lock().entry(role.to_owned()).or_default().push(status);
    }

    /// How often `role` ended with another status than 0.
    pub(super) fn bad_exits(&self, role: &str) -> usize {
        self.exits.lock().get(role).map_or(0, |exits| exits.iter().filter(|status| !status.success()).count())
    }

    pub(super) fn worker(&self, name: &str) -> anyhow::Result<&Worker> {
        self.workers.iter().find(|worker| worker.name == name).with_context(|| format!("there is no {name}"))
    }

    pub(super) fn decodes(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|worker| worker.name.starts_with("decode"))
    }

    pub(super) fn prefills(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|worker| worker.name.starts_with("prefill"))
    }

    /// How often the scheduler says that it lost a worker, so far.
    pub(super) fn connections_lost(&self) -> anyhow::Result<usize> {
        let log = self.run_dir.join("logs").join("scheduler.log");
        let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        Ok(String::from_utf8_lossy(&text).lines().filter(|line| line.contains("instance lost")).count())
    }

    pub(super) fn names(&self) -> Vec<String> {
        let workers = self.workers.iter().map(|worker| worker.name.clone());
        std::iter::once("scheduler".to_owned()).chain(workers).collect()
    }

    /// The process of a role, if it is a child of ours and runs.
    pub(super) fn pid(&self, role: &str) -> Option<Pid> {
        let file = fs::read_to_string(self.run_dir.join("pids").join(role)).ok()?;
        let pid = Pid::from_raw(file.trim().parse().ok()?)?;
        let ours = u32::try_from(status_number(pid, "PPid:")?).ok() == Some(std::process::id());
        ours.then_some(pid)
    }

    pub(super) fn signal(&self, role: &str, signal: Signal) -> anyhow::Result<Pid> {
        let pid = self.pid(role).with_context(|| format!("{role} is not running"))?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {role}"))?;
        Ok(pid)
    }

    /// Waits until another process than `old` has the role and every worker is proven.
    pub(super) async fn restarted(&self, role: &str, old: Pid) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_MAX;
        while self.pid(role).is_none_or(|pid| pid == old) {
            ensure!(Instant::now() < deadline, "{role} was not started again");
            sleep(POLL).await;
        }
        self.ready().await
    }

    /// Waits until every instance is ready.
    pub(super) async fn ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_MAX;
        loop {
            let seen = self.client.get("/ready").await;
            let all = |report: &Value| {
                let instances = report["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
                !instances.is_empty() && instances.iter().all(|instance| instance["state"] == "ready")
            };
            match &seen {
                Ok(report) if all(report) => return Ok(()),
                Ok(report) if Instant::now() >= deadline => anyhow::bail!("the cluster is not ready: {report}"),
                Err(error) if Instant::now() >= deadline => anyhow::bail!("the scheduler does not answer: {error:#}"),
                _ => sleep(POLL).await,
            }
        }
    }

    /// Waits until no worker holds or does anything; how long that took, or `None` if it took longer than `limit`.
    pub(super) async fn settled(&self, limit: Duration) -> Option<Duration> {
        let started = Instant::now();
        while started.elapsed() < limit {
            if self.held().await.is_ok_and(|held| held == Held::default()) {
                return Some(started.elapsed());
            }
            sleep(POLL).await;
        }
        None
    }

    /// Over all workers.
    pub(super) async fn held(&self) -> anyhow::Result<Held> {
        let mut sum = Held::default();
        for worker in &self.workers {
            let held = worker.held().await?;
            sum.leased += held.leased;
            sum.running += held.running;
            sum.waiting += held.waiting;
        }
        Ok(sum)
    }

    /// The sum of a metric's series over all workers.
    pub(super) async fn count(&self, metric: &str) -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for worker in &self.workers {
            sum += series(&worker.http.text("/metrics").await?, metric, "");
        }
        Ok(sum)
    }

    /// Attempts after the first, of all requests so far.
    pub(super) async fn retries(&self) -> anyhow::Result<f64> {
        Ok(series(&self.client.text("/metrics").await?, "pdserve_retries_total", ""))
    }

    /// Bytes of memory that are a role's own: mapped weights are shared and belong to the page cache.
    pub(super) fn own_bytes(&self, role: &str) -> Option<u64> {
        Some(status_number(self.pid(role)?, "RssAnon:")? * 1024)
    }

    /// Resident bytes of a role: now, and the most so far.
    pub(super) fn resident(&self, role: &str) -> Option<(u64, u64)> {
        let pid = self.pid(role)?;
        Some((status_number(pid, "VmRSS:")? * 1024, status_number(pid, "VmHWM:")? * 1024))
    }

    /// Open descriptors of a role.
    pub(super) fn descriptors(&self, role: &str) -> Option<usize> {
        let directory = Path::new("/proc").join(self.pid(role)?.as_raw_nonzero().to_string()).join("fd");
        Some(fs::read_dir(directory).ok()?.count())
    }
}

impl Worker {
    /// On the link to the scheduler.
    pub(super) fn on_control(&self, fault: Fault) {
        self.control.set(fault);
    }

    /// The scheduler loses it at once and cannot reach it again until another fault is set.
    pub(super) fn cut_off(&self) {
        self.control.set(Fault::Hold);
        self.control.cut();
    }

    /// Whether blocks are held there for a request whose id begins like this.
    pub(super) async fn holds(&self, request: &str) -> anyhow::Result<bool> {
        Ok(self.http.text("/kv").await?.contains(&format!("\"{request}")))
    }

    /// On the links from the prefill instances.
    pub(super) fn on_kv(&self, fault: Fault) {
        self.kv.set(fault);
    }

    /// Bits flipped and connections cut on its KV links.
    pub(super) fn damaged(&self) -> u64 {
        self.kv.damaged()
    }

    pub(super) async fn held(&self) -> anyhow::Result<Held> {
        let metrics = self.http.text("/metrics").await?;
        let one = |metric, label| series(&metrics, metric, label);
        Ok(Held {
            leased: one("pdserve_blocks", "state=\"leased\""),
            running: one("pdserve_running", ""),
            waiting: one("pdserve_waiting", ""),
        })
    }
}

/// The sum of a metric's series that have a label, out of Prometheus' text.
fn series(metrics: &str, name: &str, label: &str) -> f64 {
    let of_metric = |line: &&str| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
    };
    let value = |line: &str| line.rsplit_once(' ')?.1.parse::<f64>().ok();
    metrics.lines().filter(of_metric).filter_map(value).sum()
}

/// A line of `/proc/PID/status`.
fn status_number(pid: Pid, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_label() {
        let metrics = "# HELP a x\na{state=\"free\"} 3\na{state=\"leased\"} 4\nab{state=\"leased\"} 8\nb 2\n";
        assert_eq!(
            [series(metrics, "a", ""), series(metrics, "a", "leased"), series(metrics, "b", "")],
            [7.0, 4.0, 2.0]
        );
    }
}
