//! One role's process: its log goes to a file (and to the terminal on request), its end is noticed, SIGTERM drains it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use super::plan::{Plan, RolePlan};
use crate::parent::PARENT_PID_ENV;

/// Lines kept for the message that says why a process ended.
const TAIL_LINES: usize = 12;

/// A running role. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct RoleProcess {
    pub(super) name: String,
    child: Child,
    tail: Arc<Mutex<VecDeque<String>>>,
}

impl RoleProcess {
    /// Re-runs this very program as the given role.
    pub(super) fn spawn(role: &RolePlan, plan: &Plan) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut child = Command::new(program)
            .args(&role.args)
            .envs(role.env.iter().map(|(name, value)| (name, value)))
            .env(PARENT_PID_ENV, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in the terminal must reach `up` alone, which then drains the roles in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", role.name))?;
        if let Some(pid) = child.id() {
            let file = plan.run_dir.join("pids").join(&role.name);
            fs::write(&file, format!("{pid}\n")).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let path = plan.run_dir.join("logs").join(format!("{}.log", role.name));
        let log = Arc::new(Mutex::new(Log::open(&role.name, path, plan.verbose)?));
        let tail = log.lock().tail.clone();
        if let Some(out) = child.stdout.take() {
            tokio::spawn(copy_lines(out, log.clone()));
        }
        if let Some(err) = child.stderr.take() {
            tokio::spawn(copy_lines(err, log));
        }
        Ok(Self { name: role.name.clone(), child, tail })
    }

    /// Waits for the process to end by itself.
    pub(super) async fn exited(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.wait().await.with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Asks it to drain: finish what runs, refuse what is new, exit 0.
    pub(super) fn terminate(&self) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            // It may have ended this instant, which is what we want anyway.
            kill_process(pid, Signal::TERM).ok();
        }
    }

    /// Waits up to `grace` after [`terminate`](Self::terminate), then kills.
    pub(super) async fn ended_within(&mut self, grace: Duration) -> anyhow::Result<()> {
        if tokio::time::timeout(grace, self.child.wait()).await.is_err() {
            say!("{} did not drain within {} s: killed", self.name, grace.as_secs());
            self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))?;
        }
        Ok(())
    }

    pub(super) async fn kill(&mut self) {
        self.child.kill().await.ok();
    }

    /// The last lines it logged, for a message to the user.
    pub(super) fn log_tail(&self) -> String {
        self.tail.lock().iter().fold(String::new(), |text, line| text + "    " + line + "\n")
    }
}

#[derive(Debug)]
struct Log {
    name: String,
    file: File,
    verbose: bool,
    tail: Arc<Mutex<VecDeque<String>>>,
}

impl Log {
    fn open(name: &str, path: PathBuf, verbose: bool) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { name: name.to_owned(), file, verbose, tail: Arc::default() })
    }

    fn line(&mut self, line: String) {
        if self.verbose {
            say!("[{}] {line}", self.name);
        }
        // A full disk must not stop serving.
        writeln!(self.file, "{line}").ok();
        let mut tail = self.tail.lock();
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
}

async fn copy_lines(from: impl AsyncRead + Unpin, log: Arc<Mutex<Log>>) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.lock().line(line);
    }
}
