//! Where the two ends of a hand-over run: each on cores of its own, as `pdserve up` keeps its workers.

use std::fmt;
use std::io;

use worker::CpuList;

use crate::shares::Shares;

/// Cores of P and of D; none where the machine has too few for that.
#[derive(Default)]
pub(super) struct Ends(Option<[CpuList; 2]>);

impl Ends {
    /// From now on this process is P: it keeps to P's cores, except for what [`Ends::start_d`] starts.
    pub(super) fn begin() -> io::Result<Self> {
        let shares = Shares::of_this_machine(2);
        let cores = shares.cores(0).zip(shares.cores(1)).map(|(p, d)| [p, d]);
        if let Some([p, _]) = &cores {
            p.apply()?;
        }
        Ok(Self(cores))
    }

    /// Threads that `start` starts keep to D's cores.
    pub(super) fn start_d<T: Send>(&self, start: impl FnOnce() -> T + Send) -> io::Result<T> {
        match &self.0 {
            Some([_, d]) => d.start(start),
            None => Ok(start()),
        }
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("both in this process, loopback")?;
        match &self.0 {
            Some([p, d]) => write!(f, "; P on cores {p}, D on cores {d}"),
            None => f.write_str("; too few cores to keep them apart"),
        }
    }
}
