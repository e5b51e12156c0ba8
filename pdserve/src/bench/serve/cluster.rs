//! A cluster of our own to load: this very program as `pdserve up`, which ends with us.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::target::Target;
use crate::parent::PARENT_PID_ENV;
use crate::{ports, web};

const POLL: Duration = Duration::from_millis(100);
/// Above what `up` grants its roles.
const DRAIN_GRACE: Duration = Duration::from_secs(80);

/// A running `pdserve up`. Dropping it kills the process, and the roles end with it.
#[derive(Debug)]
pub(super) struct OwnCluster {
    child: Child,
    pub(super) url: String,
}

impl OwnCluster {
    /// Starts `pdserve up ARGS` on a free port and waits until it serves. `up` itself decides how long that may take, and says on
    /// standard error why it failed.
    pub(super) async fn start(args: &[String]) -> anyhow::Result<Self> {
        for taken in ["--port", "--host"] {
            let used = args.iter().any(|arg| arg == taken || arg.starts_with(&format!("{taken}=")));
            ensure!(!used, "{taken} after -- is not needed: bench takes a free port of its own");
        }
        let port = ports::hold_port(Ipv4Addr::LOCALHOST.into())?.local_addr()?.port();
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let child = Command::new(program)
            .arg("up")
            .args(args)
            .arg(format!("--port={port}"))
            .env(PARENT_PID_ENV, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start pdserve up")?;
        let mut cluster = Self { child, url: format!("http://127.0.0.1:{port}") };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let web = web::client(None)?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("pdserve up ended before it was ready ({status})");
            }
            // Ready means that a prompt went through; the list of models alone would be there earlier.
            if let Ok(target) = Target::connect(String::new(), String::new(), &self.url, None, web.clone()).await
                && target.get("/ready").await.is_ok()
            {
                return Ok(());
            }
            sleep(POLL).await;
        }
    }

    /// Drains it as Ctrl-C would.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // It may have ended this instant, which is what we want anyway.
            kill_process(pid, Signal::TERM).ok();
        }
        timeout(DRAIN_GRACE, self.child.wait()).await.context("pdserve up did not drain in time: killed")??;
        Ok(())
    }
}
