//! Which of a machine's cores an instance runs on.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::thread;

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Some cores, written as `taskset` does: `0-3,8`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuList(Vec<usize>);

impl CpuList {
    /// From now on every thread of this process, and whatever they start, runs on these cores only.
    ///
    /// # Errors
    /// The machine does not have them, or this process may not use them.
    pub fn apply(&self) -> io::Result<()> {
        let cores = self.set();
        for thread in std::fs::read_dir("/proc/self/task")? {
            let thread = thread?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            match sched_setaffinity(thread, &cores) {
                // It has ended meanwhile.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Calls `start` on a thread that keeps to these cores: threads that it starts do so, too.
    ///
    /// # Errors
    /// As of [`CpuList::apply`], or there is no thread to be had.
    pub fn start<T: Send>(&self, start: impl FnOnce() -> T + Send) -> io::Result<T> {
        let kept = || {
            sched_setaffinity(None, &self.set())?;
            Ok(start())
        };
        thread::scope(|scope| {
            let started = thread::Builder::new().spawn_scoped(scope, kept)?.join();
            started.unwrap_or_else(|_| Err(io::Error::other("what was started on these cores has panicked")))
        })
    }

    fn set(&self) -> CpuSet {
        let mut cores = CpuSet::new();
        self.0.iter().for_each(|core| cores.set(*core));
        cores
    }
}

impl FromIterator<usize> for CpuList {
    /// Of these cores those that a machine can have.
    fn from_iter<I: IntoIterator<Item = usize>>(cores: I) -> Self {
        Self(cores.into_iter().filter(|core| *core < CpuSet::MAX_CPU).collect())
    }
}

impl FromStr for CpuList {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        let core = |text: &str| {
            let core = text.trim().parse::<usize>().ok().filter(|core| *core < CpuSet::MAX_CPU);
            core.ok_or_else(|| format!("`{text}` is not the number of a core, expected a list like 0-3,8"))
        };
        let mut cores = Vec::new();
        for part in list.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = core(first)?..=core(last)?;
            if range.is_empty() {
                return Err(format!("`{part}` ends before it begins"));
            }
            cores.extend(range);
        }
        Ok(Self(cores))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores: Vec<_> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&cores.join(","))
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn what_is_started_keeps_to_its_cores() {
        let mine = sched_getaffinity(None).unwrap();
        let last = (0..CpuSet::MAX_CPU).rfind(|core| mine.is_set(*core)).unwrap();
        let seen = || thread::Builder::new().spawn(|| sched_getaffinity(None).unwrap()).unwrap().join().unwrap();
        let seen = CpuList::from_iter([last]).start(seen).unwrap();
        assert_eq!((seen.count(), seen.is_set(last)), (1, true));
        assert_eq!(sched_getaffinity(None).unwrap(), mine, "who asked for it goes on as before");
    }

    #[test]
    fn lists_are_read_as_taskset_reads_them() {
        for (text, expected) in [("0", "0"), ("0-3,8", "0,1,2,3,8"), (" 5 , 2-2", "5,2")] {
            assert_eq!(text.parse::<CpuList>().unwrap().to_string(), expected);
        }
        for (text, reason) in [("", "a list like"), ("a", "`a`"), ("3-1", "ends before"), ("0-99999", "`99999`")] {
            let error = text.parse::<CpuList>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
