//! One peer's process: it loads once, then answers one line of JSON per measurement; it is frozen between its turns.
//!
//! To it: `{"rows": 1, "before": 0, "new": 512}`. From it: `{"ready": "..."}` once, then `{"seconds": 0.25}` or `{"error": "..."}`.
//! Everything else that it prints goes to standard error.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use std::os::unix::process::CommandExt;

use super::super::engine::Work;
use super::side::Program;

const LOOP: &str = include_str!("drivers/loop.py");

/// What every driver is told.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) model: PathBuf,
    pub(super) threads: usize,
    pub(super) rows_max: u32,
    /// Of one sequence.
    pub(super) tokens_max: u32,
    /// Of one step.
    pub(super) batch_tokens_max: u32,
}

/// A peer's process. Dropping it ends the process and those that it started.
pub(super) struct Driver {
    name: String,
    process: Option<Running>,
}

struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Driver {
    /// Starts it and waits until its model is loaded.
    pub(super) fn start(python: &Path, program: Program, setting: &Setting) -> anyhow::Result<Self> {
        let told = json!({
            "model": setting.model, "threads": setting.threads, "rows_max": setting.rows_max,
            "tokens_max": setting.tokens_max, "batch_tokens_max": setting.batch_tokens_max,
        });
        let mut child = Command::new(python)
            .args(["-u", "-c", &format!("{}\n{LOOP}", program.driver()), &told.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {} for {program}; name it with --python", python.display()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { bail!("no pipes") };
        let running = Running { child, input, output: BufReader::new(output) };
        let mut driver = Self { name: program.to_string(), process: Some(running) };
        let ready = driver.answer()?;
        let version = ready["ready"].as_str().with_context(|| format!("{program} did not start: {ready}"))?;
        eprintln!("{version}");
        driver.signal(Signal::STOP)?;
        Ok(driver)
    }

    /// A driver without a process, for tests of what is made of its figures.
    #[cfg(test)]
    pub(super) fn detached() -> Self {
        Self { name: String::new(), process: None }
    }

    /// Its turn: seconds of one step, or why it cannot do this one.
    pub(super) fn seconds_per_step(&mut self, work: Work) -> anyhow::Result<Result<f64, String>> {
        self.signal(Signal::CONT)?;
        let line = json!({ "rows": work.rows, "before": work.before, "new": work.new });
        writeln!(self.running()?.input, "{line}").with_context(|| format!("{} ended", self.name))?;
        let answer = self.answer()?;
        self.signal(Signal::STOP)?;
        match (answer["seconds"].as_f64(), answer["error"].as_str()) {
            (Some(seconds), _) => Ok(Ok(seconds)),
            (None, Some(error)) => Ok(Err(error.to_owned())),
            _ => bail!("{} answered {answer}", self.name),
        }
    }

    fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        let read = self.running()?.output.read_line(&mut line)?;
        if read == 0 {
            bail!("{} ended; what it said is above", self.name);
        }
        serde_json::from_str(&line).with_context(|| format!("{} said {line:?}", self.name))
    }

    fn running(&mut self) -> anyhow::Result<&mut Running> {
        self.process.as_mut().context("the peer was not started")
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        let group = Pid::from_child(&self.running()?.child);
        kill_process_group(group, signal).with_context(|| format!("cannot signal {}", self.name))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.signal(Signal::KILL).is_ok()
            && let Ok(running) = self.running()
        {
            running.child.wait().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A shell script in an interpreter's place: ready, then answers by number of rows.
    fn stand_in(dir: &Path) -> PathBuf {
        let path = dir.join("stand-in");
        let script = "#!/bin/sh\necho '{\"ready\": \"stand-in 1\"}'\nwhile read -r line; do case \"$line\" in \
                      *'\"rows\":1,'*) echo '{\"seconds\": 0.5}';; *) echo '{\"error\": \"one row only\"}';; esac; done\n";
        let written = dir.join("written");
        fs::write(&written, script).unwrap();
        fs::set_permissions(&written, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Command::new("cp").arg("-p").args([&written, &path]).status().unwrap().success());
        path
    }

    #[test]
    fn a_peer_answers_in_its_turn_and_is_gone_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let setting = Setting { model: "model".into(), threads: 1, rows_max: 2, tokens_max: 9, batch_tokens_max: 18 };
        let mut driver = Driver::start(&stand_in(dir.path()), Program::Llama, &setting).unwrap();
        let step = |rows| Work { rows, before: 0, new: 8 };
        assert_eq!(driver.seconds_per_step(step(1)).unwrap(), Ok(0.5));
        assert_eq!(driver.seconds_per_step(step(2)).unwrap(), Err("one row only".to_owned()));
        let pid = Pid::from_child(&driver.running().unwrap().child);
        drop(driver);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let setting = Setting { model: "m".into(), threads: 1, rows_max: 1, tokens_max: 1, batch_tokens_max: 1 };
        let error = Driver::start(Path::new("/no/such/python"), Program::Vllm, &setting).err().unwrap();
        assert!(error.to_string().contains("/no/such/python"), "{error}");
    }
}
