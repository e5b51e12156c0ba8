//! A cluster of real processes, started as a user starts it: `pdserve up`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::Client;

/// A running `pdserve up`. Dropping it ends all its processes.
#[derive(Debug)]
pub struct ProcessCluster {
    up: Child,
    pub url: String,
    run_dir: TempDir,
}

impl ProcessCluster {
    /// Starts `binary up ARGS` on a free port and returns when it printed that it is ready. Panics with its output if it ends before.
    pub fn up(binary: &str, args: &[&str]) -> Self {
        let run_dir = TempDir::new().expect("a temporary directory");
        let mut up = Command::new(binary)
            .args(["up", "--port", "0", "--run-dir"])
            .arg(run_dir.path())
            .args(args)
            // Short prompts on an idle decode instance would not visit P at all, and the tests are about those that do.
            .env("PDSERVE_LOCAL_PREFILL", "never")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let out = up.stdout.take().expect("stdout is piped");
        let (url, seen) = read_until_url(BufReader::new(out));
        match url {
            Some(url) => Self { up, url, run_dir },
            None => panic!("pdserve up ended before it was ready: {:?}\n{seen}", up.wait()),
        }
    }

    pub fn client(&self) -> Client {
        Client::new(self.url.clone())
    }

    /// Process id of a role, by its name in the rank table (`decode-1`); follows restarts.
    pub fn pid(&self, role: &str) -> Option<Pid> {
        let file = self.run_dir.path().join("pids").join(role);
        std::fs::read_to_string(file).ok()?.trim().parse().ok().and_then(Pid::from_raw)
    }

    /// SIGKILL, SIGSTOP, SIGCONT or SIGTERM to one role.
    pub fn signal(&self, role: &str, signal: Signal) {
        let pid = self.pid(role).unwrap_or_else(|| panic!("{role} is not running"));
        kill_process(pid, signal).expect("the role's process is ours");
    }

    pub fn log(&self, role: &str) -> PathBuf {
        self.run_dir.path().join("logs").join(format!("{role}.log"))
    }

    /// SIGINT, as Ctrl-C does, and its exit code.
    pub fn interrupt(mut self) -> Option<i32> {
        self.send(Signal::INT);
        self.up.wait().expect("its end can be awaited").code()
    }

    fn send(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.up.id().cast_signed()) {
            kill_process(pid, signal).ok();
        }
    }
}

impl Drop for ProcessCluster {
    fn drop(&mut self) {
        if let Ok(None) = self.up.try_wait() {
            // Twice: the second ends it at once. Its children end with it.
            self.send(Signal::TERM);
            self.send(Signal::TERM);
            self.up.wait().ok();
        }
    }
}

/// Reads what `up` prints until its URL line. The rest is drained by a thread, so that `up` never blocks on a full pipe.
fn read_until_url(mut out: impl BufRead + Send + 'static) -> (Option<String>, String) {
    let mut seen = String::new();
    let mut line = String::new();
    while out.read_line(&mut line).is_ok_and(|n| n > 0) {
        seen += &line;
        if let Some(url) = line.trim().strip_prefix("URL ") {
            let url = url.trim().trim_end_matches("/v1").to_owned();
            std::thread::Builder::new()
                .name("drain-up-output".into())
                .spawn(move || std::io::copy(&mut out, &mut std::io::sink()))
                .expect("a thread starts");
            return (Some(url), seen);
        }
        line.clear();
    }
    (None, seen)
}
