//! Ties the processes of `pdserve up` to it: if it is killed outright, none of them stays behind.

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Names the process id of the `up` that started this one.
pub(crate) const PARENT_PID_ENV: &str = "PDSERVE_PARENT_PID";

/// In a process started by `up`: asks the kernel for SIGTERM when `up` dies. Elsewhere does nothing.
pub(crate) fn die_with_parent() -> anyhow::Result<()> {
    let Ok(value) = std::env::var(PARENT_PID_ENV) else { return Ok(()) };
    let expected = value.parse().ok().and_then(Pid::from_raw);
    let expected = expected.with_context(|| format!("{PARENT_PID_ENV}={value} is not a process id; unset it"))?;
    set_parent_process_death_signal(Some(Signal::TERM)).context("cannot ask to end with the parent process")?;
    // The parent may have died before the call above took effect.
    ensure!(getppid() == Some(expected), "the process that started this one ({value}) is gone");
    Ok(())
}
