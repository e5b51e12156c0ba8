//! A cluster of real processes, started as a user starts it: `pdserve up`.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::Client;

/// A running `pdserve up`. Dropping it ends all its processes.
#[derive(Debug)]
pub struct ProcessCluster {
    up: Child,
    pub url: String,
    run_dir: TempDir,
    output: Arc<Mutex<String>>,
}

/// See [`ProcessCluster::growth`].
#[derive(Debug)]
pub struct Growth {
    proc: PathBuf,
    before: u64,
}

impl Growth {
    pub fn kib(&self) -> u64 {
        status_kib(&self.proc, "VmHWM:").saturating_sub(self.before)
    }
}

fn status_kib(proc: &Path, name: &str) -> u64 {
    let status = std::fs::read_to_string(proc.join("status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

impl ProcessCluster {
    /// Starts `binary up ARGS` on a free port and returns when it printed that it is ready. Panics with its output if it ends before.
    pub fn up(binary: &str, args: &[&str]) -> Self {
        Self::start(binary, args, &[], |_| {})
    }

    /// The same in a run directory that is prepared first.
    pub fn up_in(binary: &str, args: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        Self::start(binary, args, &[], prepare)
    }

    /// The same with variables for all its processes.
    pub fn up_with(binary: &str, args: &[&str], variables: &[(&str, String)]) -> Self {
        Self::start(binary, args, variables, |_| {})
    }

    fn start(binary: &str, args: &[&str], variables: &[(&str, String)], prepare: impl FnOnce(&Path)) -> Self {
        let run_dir = TempDir::new().expect("a temporary directory");
        prepare(run_dir.path());
        let mut up = Command::new(binary)
            .args(["up", "--port", "0", "--run-dir"])
            .arg(run_dir.path())
            .args(args)
            // Short prompts on an idle decode instance would not visit P at all, and the tests are about those that do.
            .env("PDSERVE_LOCAL_PREFILL", "never")
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let out = up.stdout.take().expect("stdout is piped");
        let output = Arc::default();
        match read_until_url(BufReader::new(out), &output) {
            Some(url) => Self { up, url, run_dir, output },
            None => panic!("pdserve up ended before it was ready: {:?}\n{}", up.wait(), output.lock()),
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

    /// Where an instance listens for its scheduler.
    pub async fn control_address(&self, instance: &str) -> SocketAddr {
        let report = self.client().get("/ready").await.body;
        let instances = report["instances"].as_array().expect("a list");
        let found = instances.iter().find(|entry| entry["instance"] == instance);
        let address = found.and_then(|entry| entry["address"].as_str()).unwrap_or_else(|| panic!("{report}"));
        address.parse().expect("an address")
    }

    /// Where a decode instance listens for KV.
    pub fn kv_address(&self, instance: &str) -> SocketAddr {
        let log = std::fs::read_to_string(self.log(instance)).expect("it writes a log");
        let line = log.lines().find(|line| line.contains("listening for KV")).unwrap_or_else(|| panic!("{log}"));
        let address = line.split("address=").nth(1).and_then(|rest| rest.split_whitespace().next());
        address.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    }

    /// What a role's resident memory is above its size of now, at most, until [`Growth::kib`] is asked.
    pub fn growth(&self, role: &str) -> Growth {
        let pid = self.pid(role).unwrap_or_else(|| panic!("{role} is not running"));
        let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        // From now on the peak is a new one.
        std::fs::write(proc.join("clear_refs"), "5").expect("the process is ours");
        let before = status_kib(&proc, "VmRSS:");
        Growth { proc, before }
    }

    /// What `up` has printed so far.
    pub fn output(&self) -> String {
        self.output.lock().clone()
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

/// Reads what `up` prints until its URL line. A thread reads the rest, so that `up` never blocks on a full pipe.
fn read_until_url(out: impl BufRead + Send + 'static, output: &Arc<Mutex<String>>) -> Option<String> {
    let mut lines = out.lines().map_while(Result::ok);
    let url = lines.by_ref().find_map(|line| {
        let url = line.trim().strip_prefix("URL ").map(|url| url.trim().trim_end_matches("/v1").to_owned());
        *output.lock() += &(line + "\n");
        url
    })?;
    let output = output.clone();
    std::thread::Builder::new()
        .name("read-up-output".into())
        .spawn(move || lines.for_each(|line| *output.lock() += &(line + "\n")))
        .expect("a thread starts");
    Some(url)
}
