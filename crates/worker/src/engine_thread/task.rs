//! The engine as a task of the runtime instead of a thread: under simulated time a step takes as long as it says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kv::BlockPool;
use telemetry::WorkerMetrics;
use tokio::time::{sleep, timeout};

use super::{Command, EngineHandle, EngineThread, STALLED, Shared};
use crate::{Runner, Stepper};

impl EngineHandle {
    /// As [`EngineHandle::start`], but on the runtime that this is called in.
    pub fn start_task(
        runner: Runner,
        stepper: impl Stepper + Send + 'static,
        pool: BlockPool,
        metrics: WorkerMetrics,
    ) -> Self {
        let (handle, thread) = Self::new(runner, stepper, pool, metrics);
        tokio::spawn(thread.live());
        handle
    }
}

impl EngineThread {
    async fn live(mut self) {
        let mut stalled = false;
        while let Some(commands) = heard(&self.shared, self.runner.is_idle(), stalled).await {
            let stepped = self.step(commands);
            stalled = stepped.is_stalled();
            sleep(Duration::from_micros(stepped.cost.map_or(0, |cost| cost.micros))).await;
            self.tell(stepped);
        }
        self.shared.close();
    }
}

/// As [`EngineThread::commands`].
async fn heard(shared: &Arc<Shared>, is_idle: bool, stalled: bool) -> Option<VecDeque<Command>> {
    loop {
        {
            let mut inbox = shared.inbox.lock();
            if inbox.stopping {
                return None;
            }
            if !inbox.commands.is_empty() || !(is_idle || stalled) {
                return Some(std::mem::take(&mut inbox.commands));
            }
        }
        let rung = shared.bell.heard_by_task.notified();
        if is_idle {
            rung.await;
        } else if timeout(STALLED, rung).await.is_err() {
            return Some(VecDeque::new());
        }
    }
}
