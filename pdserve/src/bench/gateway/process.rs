//! The scheduler under measurement: this very program as `pdserve scheduler`, on loopback.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use ranktable::{GlobalRankTable, HostPlan, PlannedInstance};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::mock::{self, Streams};
use super::server::Server;
use crate::bench::serve::Target;
use crate::parent::PARENT_PID_ENV;
use crate::{ports, web};

pub(super) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The name that it serves.
pub(super) const MODEL: &str = "bench";
/// Tokens of prompt and answer, so that no prompt of ours is too long.
pub(super) const CONTEXT: u32 = 1 << 20;

/// A running scheduler and its workers. Dropping it kills the process and removes the tables.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) server: Server,
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
        let bind = || ports::hold_port(LOOPBACK).context("no free port");
        let workers = (0..=decode).map(|_| bind()).collect::<Result<Vec<_>, _>>()?;
        let ports = workers.iter().map(|worker| Ok(worker.local_addr()?.port())).collect::<anyhow::Result<Vec<_>>>()?;
        let listen = bind()?.local_addr()?;
        let (tables, hash) = Tables::write(listen, &ports)?;
        let streams = Streams::new(streams_max);
        for (number, worker) in workers.into_iter().enumerate() {
            mock::serve(worker, number, hash.clone(), streams.clone())?;
        }
        let child = spawn(&tables, model, listen)?;
        let is_ready = async |url: &str| ready_instances(url).await.is_ok_and(|count| count == decode + 1);
        let server = Server::new("pdserve", format!("http://{listen}"), child, is_ready).await?;
        let gateway = Self { server, streams, _tables: tables };
        gateway.check_text().await?;
        Ok(gateway)
    }

    /// For questions beside the measurement. Dropping it closes its connection: as many streams as the scheduler takes connections
    /// leave no room for another.
    pub(super) async fn target(&self) -> anyhow::Result<Target> {
        connect(&self.server.url).await
    }

    /// Streams are counted by the characters of their text.
    async fn check_text(&self) -> anyhow::Result<()> {
        let body = json!({ "prompt": "a", "max_tokens": 3, "ignore_eos": true });
        let answer = self.target().await?.post("/v1/completions", &body).await?;
        let text = answer["choices"][0]["text"].as_str().unwrap_or_default();
        ensure!(text.chars().count() == 3, "this tokenizer cannot be used: its token {} is no character", mock::TOKEN);
        Ok(())
    }
}

async fn connect(url: &str) -> anyhow::Result<Target> {
    Target::connect(String::new(), String::new(), url, Some(MODEL), web::client(None)?).await
}

/// Workers that are known and through which a prompt went.
async fn ready_instances(url: &str) -> anyhow::Result<usize> {
    let report = connect(url).await?.get("/ready").await?;
    let instances = report["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(instances.iter().filter(|instance: &&Value| instance["state"] == "ready").count())
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
    fn tables_go_with_the_run() {
        let (tables, hash) = Tables::write("127.0.0.1:9".parse().unwrap(), &[1, 2, 3]).unwrap();
        let dir = tables.dir.clone();
        assert!(tables.global.is_file() && tables.scheduler.is_file() && !hash.is_empty());
        drop(tables);
        assert!(!dir.exists());
    }
}
