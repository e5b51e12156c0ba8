//! What a figure was measured on: without it a figure cannot be compared with anything.

use std::fs;

use serde_json::{Value, json};

/// The machine and the build, as found when the measurement started.
#[derive(Debug, Clone)]
pub(crate) struct Conditions {
    rows: Vec<(&'static str, String)>,
}

impl Conditions {
    /// Reads what this machine says of itself; what it does not say is left out.
    pub(crate) fn gather() -> Self {
        let command: Vec<_> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
        let mut rows = vec![("command", format!("pdserve {}", command.join(" "))), ("pdserve", build())];
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cpu = proc_value("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        rows.push(("cpu", format!("{cpu}, {cores} cores")));
        let memory =
            proc_value("/proc/meminfo", "MemTotal").and_then(|total| total.split(' ').next()?.parse::<f64>().ok());
        rows.extend(memory.map(|kib| ("memory", format!("{:.1} GiB", kib / f64::from(1 << 20)))));
        let system = fs::read_to_string("/proc/sys/kernel/osrelease");
        rows.extend(system.ok().map(|release| ("system", format!("{} {}", std::env::consts::OS, release.trim()))));
        let load = fs::read_to_string("/proc/loadavg").ok();
        let load = load.and_then(|line| line.split(' ').next().map(str::to_owned));
        rows.extend(load.map(|load| ("load before", load)));
        Self { rows }
    }

    /// Adds a condition of this measurement, such as the number of threads.
    pub(crate) fn and(mut self, name: &'static str, value: impl ToString) -> Self {
        self.rows.push((name, value.to_string()));
        self
    }

    pub(crate) fn rows(&self) -> &[(&'static str, String)] {
        &self.rows
    }

    pub(crate) fn text(&self) -> String {
        self.rows.iter().fold(String::new(), |text, (name, value)| text + &format!("{name:<12} {value}\n"))
    }

    pub(crate) fn json(&self) -> Value {
        self.rows
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

fn build() -> String {
    let kind = if cfg!(debug_assertions) { "debug build: not worth comparing" } else { "release build" };
    format!("{} ({kind})", env!("CARGO_PKG_VERSION"))
}

/// The value of the first `key : value` line of a file below /proc.
fn proc_value(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
}
