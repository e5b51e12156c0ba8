//! The scheduler under measurement: this very program as `pdserve scheduler`, on loopback, and the processor time it has taken.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ranktable::{GlobalRankTable, HostPlan, PlannedInstance};
use rustix::param::clock_ticks_per_second;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::mock::{self, Streams};
use crate::bench::serve::Target;
use crate::parent::PARENT_PID_ENV;
use crate::web;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const READY_POLL: Duration = Duration::from_millis(50);
const READY_MAX: Duration = Duration::from_secs(60);
/// The name that it serves.
pub(super) const MODEL: &str = "bench";
/// Tokens of prompt and answer, so that no prompt of ours is too long.
pub(super) const CONTEXT: u32 = 1 << 20;

/// A running scheduler and its workers. Dropping it kills the process and removes the tables.
#[derive(Debug)]
pub(super) struct Gateway {
    child: Child,
    pub(super) url: String,
    /// What the decode instances send, token by token.
    pub(super) streams: Streams,
    _tables: Tables,
}

/// The directory with the rank tables; dropping it removes it.
#[derive(Debug)]
struct Tables {
    dir: PathBuf,
    global: PathBuf,
    scheduler: PathBuf,
}

impl Gateway {
    /// Starts one prefill and `decode` decode instances that answer at once, and a scheduler in front of them that serves the
    /// tokenizer of `model`.
    pub(super) async fn start(model: &Path, decode: usize, streams_max: usize) -> anyhow::Result<Self> {
        let bind = || TcpListener::bind((LOOPBACK, 0)).context("no free port");
        let workers = (0..=decode).map(|_| bind()).collect::<Result<Vec<_>, _>>()?;
        let ports = workers.iter().map(|worker| Ok(worker.local_addr()?.port())).collect::<anyhow::Result<Vec<_>>>()?;
        let listen = bind()?.local_addr()?;
        let (tables, hash) = Tables::write(listen, &ports)?;
        let streams = Streams::new(streams_max);
        for (number, worker) in workers.into_iter().enumerate() {
            mock::serve(worker, number, hash.clone(), streams.clone())?;
        }
        let mut child = spawn(&tables, model, listen)?;
        let url = format!("http://{listen}");
        ready(&mut child, &url, decode + 1).await?;
        let gateway = Self { child, url, streams, _tables: tables };
        gateway.check_text().await?;
        Ok(gateway)
    }

    /// For questions beside the measurement. Dropping it closes its connection: as many streams as the scheduler takes connections
    /// leave no room for another.
    pub(super) async fn target(&self) -> anyhow::Result<Target> {
        connect(&self.url).await
    }

    /// Streams are counted by the characters of their text.
    async fn check_text(&self) -> anyhow::Result<()> {
        let body = json!({ "prompt": "a", "max_tokens": 3, "ignore_eos": true });
        let answer = self.target().await?.post("/v1/completions", &body).await?;
        let text = answer["choices"][0]["text"].as_str().unwrap_or_default();
        ensure!(text.chars().count() == 3, "this tokenizer cannot be used: its token {} is no character", mock::TOKEN);
        Ok(())
    }

    /// What all threads of the scheduler have computed so far.
    pub(super) fn processor(&self) -> anyhow::Result<Processor> {
        let pid = self.child.id().context("the scheduler has ended")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("needs Linux' /proc")?;
        let (user, kernel) = ticks(&stat).with_context(|| format!("/proc/{pid}/stat has another form than Linux'"))?;
        let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second() as f64;
        Ok(Processor { seconds: seconds(user + kernel), kernel: seconds(kernel) })
    }
}

/// Processor time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processor {
    pub(super) seconds: f64,
    /// Of them in the kernel.
    pub(super) kernel: f64,
}

impl Processor {
    pub(super) fn since(self, before: Self) -> Self {
        Self { seconds: self.seconds - before.seconds, kernel: self.kernel - before.kernel }
    }

    /// So many of something per second of it.
    pub(super) fn per_second(self, count: f64) -> Option<f64> {
        (self.seconds > 0.0).then(|| count / self.seconds)
    }

    pub(super) fn kernel_percent(self) -> Option<f64> {
        self.per_second(100.0 * self.kernel)
    }

    pub(super) fn json(self) -> Value {
        json!({ "seconds": self.seconds, "kernel_seconds": self.kernel })
    }
}

async fn connect(url: &str) -> anyhow::Result<Target> {
    Target::connect(String::new(), String::new(), url, Some(MODEL), web::client(None)?).await
}

/// Waits until every worker is known and a prompt went through each.
async fn ready(child: &mut Child, url: &str, workers: usize) -> anyhow::Result<()> {
    let until = Instant::now() + READY_MAX;
    let is_ready = |instances: &Value| {
        let instances = instances.as_array().map(Vec::as_slice).unwrap_or_default();
        instances.iter().filter(|instance| instance["state"] == "ready").count() == workers
    };
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("the scheduler ended before it was ready ({status})");
        }
        if let Ok(target) = connect(url).await
            && let Ok(report) = target.get("/ready").await
            && is_ready(&report["instances"])
        {
            return Ok(());
        }
        ensure!(Instant::now() < until, "the scheduler was not ready within {} s", READY_MAX.as_secs());
        sleep(READY_POLL).await;
    }
}

/// utime and stime of a line of /proc/PID/stat. The program's name may hold anything, so fields count from its closing bracket.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11).map(str::parse::<u64>);
    Some((times.next()?.ok()?, times.next()?.ok()?))
}

fn spawn(tables: &Tables, model: &Path, listen: SocketAddr) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    Command::new(program)
        .arg("scheduler")
        .args(["--local-prefill=never", "--max-concurrent-requests=8192"])
        .arg(format!("--served-model-name={MODEL}"))
        .args([format!("--model={}", model.display()), format!("--max-model-len={CONTEXT}")])
        .args([format!("--host={}", listen.ip()), format!("--port={}", listen.port())])
        .arg(format!("--global-rank-table={}", tables.global.display()))
        .arg(format!("--rank-table={}", tables.scheduler.display()))
        .env(PARENT_PID_ENV, std::process::id().to_string())
        .stdin(Stdio::null())
        // Two lines per request; writing them is measured, keeping them is not.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start pdserve scheduler")
}

impl Tables {
    /// One prefill instance on the first port, decode instances on the others. Returns the table's hash, too.
    fn write(listen: SocketAddr, ports: &[u16]) -> anyhow::Result<(Self, String)> {
        let dir = std::env::temp_dir().join(format!("pdserve-gateway-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let (global, scheduler) = (dir.join("global_ranktable.json"), dir.join("local_ranktable.json"));
        let tables = Self { dir, global, scheduler };
        let instance = |(device, &port)| PlannedInstance { devices: vec![(device, LOOPBACK)], port: Some(port) };
        let mut prefill: Vec<_> = (0..).zip(ports).map(instance).collect();
        let decode = prefill.split_off(1);
        let plan = HostPlan { ip: LOOPBACK, scheduler: Some(Some(listen.port())), prefill, decode };
        let table = plan.build()?.into_global()?;
        table.save(&tables.global)?;
        let (_, local) = table.local_tables().into_iter().next().context("the plan has a scheduler")?;
        local.save(&tables.scheduler)?;
        let hash = GlobalRankTable::load(&tables.global)?.hash();
        Ok((tables, hash))
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        // What is left behind is two small files in the temporary directory.
        fs::remove_dir_all(&self.dir).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 250 50 7 7";
        for name in ["pdserve", "a) S 1 (b", ""] {
            assert_eq!(ticks(&format!("17 ({name}) {fields}")), Some((250, 50)), "{name}");
        }
        assert_eq!(ticks("17 (pdserve) S 1 2"), None);
    }

    #[test]
    fn tables_go_with_the_run() {
        let (tables, hash) = Tables::write("127.0.0.1:9".parse().unwrap(), &[1, 2, 3]).unwrap();
        let dir = tables.dir.clone();
        assert!(tables.global.is_file() && tables.scheduler.is_file() && !hash.is_empty());
        drop(tables);
        assert!(!dir.exists());
    }
}
