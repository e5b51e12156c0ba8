//! One host: its own runtime, its own clock, and the role that runs on it.

use std::future::Future;
use std::time::Duration;

use net::sim::Network;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::plan::Place;

/// What runs on a host.
pub(crate) enum Role {
    Scheduler { _running: scheduler::Running },
    Worker { running: Option<worker::Running> },
    Clients,
}

pub(crate) struct Host {
    pub(crate) place: Place,
    network: Network,
    up: Option<Up>,
    /// Started so often.
    pub(crate) lives: u32,
}

/// A host that runs. Dropping it ends everything on it at once, as SIGKILL does.
struct Up {
    // Before the runtime: what it holds may need it.
    role: Role,
    runtime: Runtime,
    /// The host's clock at its start, and the world's.
    clock: Instant,
    born: Duration,
    frozen_since: Option<Duration>,
}

impl Host {
    pub(crate) fn new(place: Place, network: &Network) -> Self {
        Self { place, network: network.clone(), up: None, lives: 0 }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// Up and not frozen.
    pub(crate) fn is_running(&self) -> bool {
        self.up.as_ref().is_some_and(|up| up.frozen_since.is_none())
    }

    pub(crate) fn worker(&self) -> Option<&worker::Running> {
        match &self.up.as_ref()?.role {
            Role::Worker { running } => running.as_ref(),
            Role::Scheduler { .. } | Role::Clients => None,
        }
    }

    /// Starts the role on a fresh runtime; nothing happens if the host is up.
    pub(crate) fn start(
        &mut self,
        now: Duration,
        role: impl Future<Output = anyhow::Result<Role>>,
    ) -> anyhow::Result<()> {
        if self.is_up() {
            return Ok(());
        }
        self.network.light(self.place.address());
        let _entered = self.network.enter(self.place.address());
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let (clock, role) = runtime.block_on(async { (Instant::now(), role.await) });
        self.up = Some(Up { role: role?, runtime, clock, born: now, frozen_since: None });
        self.lives += 1;
        Ok(())
    }

    /// Runs the host until the world's `now`.
    pub(crate) fn step(&mut self, now: Duration) {
        let Some(up) = self.up.as_ref().filter(|up| up.frozen_since.is_none()) else { return };
        let _entered = self.network.enter(self.place.address());
        let until = up.clock + (now - up.born);
        up.runtime.block_on(async { tokio::time::sleep_until(until).await });
    }

    pub(crate) fn kill(&mut self) {
        let _entered = self.network.enter(self.place.address());
        self.up = None;
    }

    pub(crate) fn power_off(&mut self) {
        self.network.darken(self.place.address());
        self.kill();
    }

    pub(crate) fn freeze(&mut self, now: Duration) {
        if let Some(up) = &mut self.up {
            up.frozen_since.get_or_insert(now);
        }
    }

    /// Time has gone on for the clock, though not for the code.
    pub(crate) fn wake(&mut self, now: Duration) {
        let Some(up) = &mut self.up else { return };
        let Some(since) = up.frozen_since.take() else { return };
        let _entered = self.network.enter(self.place.address());
        up.runtime.block_on(tokio::time::advance(now - since));
    }

    /// SIGTERM: the worker goes on until it is drained.
    pub(crate) fn drain(&mut self) {
        let Some(up) = &mut self.up else { return };
        let Role::Worker { running } = &mut up.role else { return };
        if let Some(running) = running.take() {
            up.runtime.spawn(running.drain());
        }
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(up) = &self.up {
            up.runtime.spawn(task);
        }
    }
}
