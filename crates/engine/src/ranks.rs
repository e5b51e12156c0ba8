//! Ranks of one instance working in lockstep, and the sum over them.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex, RwLock};

use kernels::tree_sum;

/// Looks at the generation before a rank sleeps: some 20 microseconds; ranks mostly arrive that close together.
const SPINS: u32 = 500;

/// Adds up what the ranks hold, in an order that does not depend on their number.
pub(crate) struct AllReduce {
    /// Two sets, used in turn: a rank may fill the one while a slower rank still reads the other.
    partials: [Vec<RwLock<Vec<f32>>>; 2],
    meeting: Meeting,
}

impl AllReduce {
    pub(crate) fn new(ranks: usize) -> Self {
        let set = || (0..ranks).map(|_| RwLock::new(Vec::new())).collect();
        Self { partials: [set(), set()], meeting: Meeting::new(ranks) }
    }

    /// Replaces `values` by the sum over all ranks' `values`, each as long. Every rank calls it equally often; `turn` is the rank's own
    /// and starts anywhere, the same for all.
    pub(crate) fn sum(&self, rank: usize, turn: &mut usize, values: &mut Vec<f32>) {
        let set = &self.partials[*turn % 2];
        if set.len() == 1 {
            return;
        }
        *turn += 1;
        // The rank gets an old buffer of its own in exchange.
        std::mem::swap(&mut *set[rank].write(), values);
        self.meeting.wait();
        let guards: Vec<_> = set.iter().map(RwLock::read).collect();
        let parts: Vec<&[f32]> = guards.iter().map(|part| part.as_slice()).collect();
        values.resize(parts[rank].len(), 0.0);
        tree_sum(&parts, values);
    }

    /// To hold while a rank works: if the rank panics, the others must not wait for it.
    pub(crate) fn membership(&self) -> Membership<'_> {
        Membership(&self.meeting)
    }
}

/// See [`AllReduce::membership`].
pub(crate) struct Membership<'a>(&'a Meeting);

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.give_up();
        }
    }
}

/// A barrier that can be given up.
struct Meeting {
    members: usize,
    /// Counts meetings; changed under the lock, read without.
    generation: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    arrived: usize,
    given_up: bool,
}

impl Meeting {
    fn new(members: usize) -> Self {
        let (generation, state, changed) = (AtomicUsize::new(0), Mutex::default(), Condvar::new());
        Self { members, generation, state, changed }
    }

    /// Returns when all members have called it. Panics if one never will.
    fn wait(&self) {
        let mut state = self.state.lock();
        let generation = self.generation.load(Ordering::Acquire);
        state.arrived += 1;
        if state.arrived == self.members {
            state.arrived = 0;
            self.generation.store(generation + 1, Ordering::Release);
            self.changed.notify_all();
            return;
        }
        drop(state);
        for _ in 0..SPINS {
            if self.generation.load(Ordering::Acquire) != generation {
                return;
            }
            std::hint::spin_loop();
        }
        let mut state = self.state.lock();
        while self.generation.load(Ordering::Acquire) == generation {
            assert!(!state.given_up, "another rank of this instance failed");
            self.changed.wait(&mut state);
        }
    }

    fn give_up(&self) {
        self.state.lock().given_up = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::Pool;

    #[test]
    fn every_rank_gets_the_sum_many_times_over() {
        for ranks in [1usize, 2, 4] {
            let (all, pool) = (AllReduce::new(ranks), Pool::new("test", ranks).unwrap());
            pool.run(ranks, |rank| {
                let (mut turn, mut values) = (0, Vec::new());
                for round in 0..200 {
                    values.clear();
                    values.extend([rank as f32, round as f32]);
                    all.sum(rank, &mut turn, &mut values);
                    assert_eq!(values, [(ranks * (ranks - 1) / 2) as f32, (ranks * round) as f32]);
                }
            });
        }
    }

    #[test]
    fn a_failed_rank_does_not_leave_the_others_waiting() {
        let (all, pool) = (AllReduce::new(2), Pool::new("test", 2).unwrap());
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(2, |rank| {
                let _member = all.membership();
                assert_ne!(rank, 1, "rank 1 fails");
                all.sum(rank, &mut 0, &mut vec![0.0]);
            });
        }));
        assert!(outcome.is_err());
    }
}
