//! A server under measurement: its process, where it listens, and the processor time it has taken.

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::param::clock_ticks_per_second;
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::time::{Instant, sleep};

const READY_POLL: Duration = Duration::from_millis(50);
const READY_MAX: Duration = Duration::from_secs(60);

/// Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Server {
    /// For reports and errors.
    pub(super) name: String,
    pub(super) url: String,
    child: Child,
}

impl Server {
    /// Of a process that was started with `kill_on_drop`; waits until `is_ready` says so.
    pub(super) async fn new(
        name: &str,
        url: String,
        child: Child,
        is_ready: impl AsyncFn(&str) -> bool,
    ) -> anyhow::Result<Self> {
        let mut server = Self { name: name.to_owned(), url, child };
        let until = Instant::now() + READY_MAX;
        while !is_ready(&server.url).await {
            if let Some(status) = server.child.try_wait()? {
                bail!("{name} ended before it was ready ({status})");
            }
            ensure!(Instant::now() < until, "{name} was not ready within {} s", READY_MAX.as_secs());
            sleep(READY_POLL).await;
        }
        Ok(server)
    }

    /// What all its threads have computed so far.
    pub(super) fn processor(&self) -> anyhow::Result<Processor> {
        let pid = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        spent(&format!("/proc/{pid}/stat"))
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

/// What a thread of this process has computed so far.
pub(super) fn thread_processor(thread: i32) -> anyhow::Result<Processor> {
    spent(&format!("/proc/self/task/{thread}/stat"))
}

fn spent(path: &str) -> anyhow::Result<Processor> {
    let stat = fs::read_to_string(path).context("needs Linux' /proc")?;
    let (user, kernel) = ticks(&stat).with_context(|| format!("{path} has another form than Linux'"))?;
    let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second() as f64;
    Ok(Processor { seconds: seconds(user + kernel), kernel: seconds(kernel) })
}

/// utime and stime of a line of /proc/PID/stat. The program's name may hold anything, so fields count from its closing bracket.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11).map(str::parse::<u64>);
    Some((times.next()?.ok()?, times.next()?.ok()?))
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
}
