//! How the workers of one machine share its cores.

use rustix::thread::{CpuSet, sched_getaffinity};
use worker::CpuList;

/// Evenly, and each keeps to its own, so that a prompt on P takes nothing from D's tokens.
pub(crate) struct Shares {
    /// Those that this process may use.
    cores: Vec<usize>,
    workers: usize,
    pub(crate) threads: usize,
}

impl Shares {
    pub(crate) fn of_this_machine(workers: usize) -> Self {
        let cores = match sched_getaffinity(None) {
            Ok(set) => (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect(),
            Err(_) => Vec::new(),
        };
        // A container may have the time of fewer cores than it sees.
        let usable = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { cores, workers, threads: (usable / workers).max(1) }
    }

    /// A worker's own; none when there are not enough for all, when their time is limited, or when there is nobody to share with.
    pub(crate) fn cores(&self, worker: usize) -> Option<CpuList> {
        let all_usable = self.threads == self.cores.len() / self.workers;
        if self.workers == 1 || !all_usable {
            return None;
        }
        Some(self.cores.iter().skip(worker * self.threads).take(self.threads).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_keep_to_cores_of_their_own_where_there_are_enough() {
        let shares = |cores: usize, workers, threads| Shares { cores: (10..10 + cores).collect(), workers, threads };
        let of = |shares: Shares| {
            [0, 1].map(|worker| shares.cores(worker).map(|cores| cores.to_string()).unwrap_or_default())
        };
        assert_eq!(of(shares(2, 2, 1)), ["10", "11"]);
        assert_eq!(of(shares(5, 2, 2)), ["10,11", "12,13"]);
        assert_eq!(of(shares(1, 2, 1)), ["", ""], "fewer cores than workers");
        assert_eq!(of(shares(8, 2, 1)), ["", ""], "the time of two cores of eight");
        assert_eq!(shares(4, 1, 4).cores(0), None);
    }
}
