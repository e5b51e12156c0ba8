//! Keeps the roles running: restarts what dies, drains in the order that loses nothing.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::bail;
use futures::FutureExt;
use futures::future::{join_all, select_all, try_join_all};
use tokio::time::sleep;

use super::StopSignals;
use super::plan::{Plan, RolePlan};
use super::role_process::RoleProcess;

/// A little above the workers' own drain limit of 30 s.
const DRAIN_GRACE: Duration = Duration::from_secs(35);
const RESTART_DELAY_FIRST: Duration = Duration::from_millis(250);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(10);

/// The processes of one `up`, scheduler first. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct Cluster<'a> {
    plan: &'a Plan,
    processes: Vec<RoleProcess>,
}

impl<'a> Cluster<'a> {
    pub(crate) fn spawn(plan: &'a Plan) -> anyhow::Result<Self> {
        let processes = plan.roles.iter().map(|role| RoleProcess::spawn(role, plan)).collect::<Result<_, _>>()?;
        Ok(Self { plan, processes })
    }

    /// Returns only with an error: the first process that ends, and the end of its log.
    pub(super) async fn first_exit(&mut self) -> anyhow::Error {
        match self.wait_any().await {
            Err(error) => error,
            Ok((index, status)) => {
                let process = &self.processes[index];
                anyhow::anyhow!("{} ended ({status}); the end of its log:\n{}", process.name, process.log_tail())
            }
        }
    }

    /// Starts again whatever dies, and tells `ended` of it first. Returns only when a process cannot be started.
    pub(crate) async fn supervise(&mut self, ended: impl Fn(&str, ExitStatus)) -> anyhow::Result<()> {
        let keepers = self.processes.iter_mut().zip(&self.plan.roles);
        let keepers = keepers.map(|(process, role)| keep_running(process, role, self.plan, &ended));
        try_join_all(keepers).await.map(drop)
    }

    /// Scheduler first, so that requests in flight still have their workers; a second signal ends everything at once.
    pub(crate) async fn drain(mut self, stop: &mut StopSignals) -> anyhow::Result<()> {
        tokio::select! {
            drained = self.drain_in_order() => drained,
            () = stop.recv() => {
                self.kill().await;
                bail!("ended at once on the second signal; requests in flight were cut")
            }
        }
    }

    async fn drain_in_order(&mut self) -> anyhow::Result<()> {
        let (scheduler, workers) = self.processes.split_at_mut(1);
        for group in [scheduler, workers] {
            group.iter().for_each(RoleProcess::terminate);
            for ended in join_all(group.iter_mut().map(|process| process.ended_within(DRAIN_GRACE))).await {
                ended?;
            }
        }
        Ok(())
    }

    pub(crate) async fn kill(&mut self) {
        join_all(self.processes.iter_mut().map(RoleProcess::kill)).await;
    }

    async fn wait_any(&mut self) -> anyhow::Result<(usize, ExitStatus)> {
        let exits = self.processes.iter_mut().map(|process| process.exited().boxed());
        let (status, index, _) = select_all(exits).await;
        Ok((index, status?))
    }
}

/// Waits longer each time while the role keeps dying soon.
async fn keep_running(
    process: &mut RoleProcess,
    role: &RolePlan,
    plan: &Plan,
    ended: &impl Fn(&str, ExitStatus),
) -> anyhow::Result<()> {
    let mut delay = RESTART_DELAY_FIRST;
    loop {
        let started = tokio::time::Instant::now();
        let status = process.exited().await?;
        ended(&role.name, status);
        if started.elapsed() > RESTART_DELAY_MAX {
            delay = RESTART_DELAY_FIRST;
        }
        sleep(delay).await;
        delay = (delay * 2).min(RESTART_DELAY_MAX);
        *process = RoleProcess::spawn(role, plan)?;
    }
}
