//! `pdserve up`: a cluster on this machine. Plans it, starts one process per role, waits until a request went through, then watches.
//!
//! ```text
//! plan (ports, rank tables, threads) -> spawn roles -> wait until /ready -> print how to talk to it -> supervise until Ctrl-C -> drain
//! ```
//! A worker that dies later is started again; one that dies before the cluster was ready ends `up` with the end of its log.

/// `println!`, but nobody listening any more is no reason to stop: the cluster serves on.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        writeln!(std::io::stdout(), $($text)*).ok();
    }};
}

mod args;
mod plan;
mod ready;
mod role_process;
mod supervise;
mod tables;

use std::time::Instant;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use args::Args;
pub(crate) use plan::{Plan, WORKER_IP, demo_model_dir};
pub(crate) use ready::wait as wait_until_ready;
pub(crate) use supervise::Cluster;

/// Starts the cluster, stays until Ctrl-C or SIGTERM, then drains it.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let started = Instant::now();
    let plan = Plan::new(&args)?;
    say!("starting {} ...", plan.describe());
    let mut stop = StopSignals::new()?;
    let mut cluster = Cluster::spawn(&plan)?;
    let outcome = tokio::select! {
        ready = ready::wait(&plan, &mut cluster) => ready,
        () = stop.recv() => {
            say!("stopping before it was ready ...");
            return cluster.drain(&mut stop).await;
        }
    };
    if let Err(error) = outcome {
        cluster.kill().await;
        return Err(error);
    }
    say!("{}", plan.welcome(started.elapsed()).trim_end());
    tokio::select! {
        result = cluster.supervise(|role, status| say!("{role} ended ({status}); starting it again")) => result?,
        () = stop.recv() => say!("draining: running requests finish, new ones are refused (Ctrl-C again ends at once)"),
    }
    cluster.drain(&mut stop).await
}

/// Ctrl-C and SIGTERM alike.
pub(crate) struct StopSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl StopSignals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    pub(crate) async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
