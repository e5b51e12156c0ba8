//! What is known of a prefill and a decode instance together. Most pairs have nothing to tell and are not in here.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::Slot;
use super::breaker::Breaker;

/// Consecutive failures that open a pair's breaker.
pub(super) const PAIR_FAILURES: u32 = 2;
/// Assumed until a pair has handed over once: two round trips and the last layer's bytes.
const EXPOSED_SECONDS: f64 = 2e-3;
/// Pairs whose hand-overs are remembered, about 10 MB by the size of an entry; beyond it all are forgotten and learned anew.
const EDGES_MAX: usize = 1 << 18;

type Pair = (Slot, Slot);

pub(super) struct Edges {
    /// Seconds by which hand-overs outlast the computation. Every choice looks some up, so they are small and lie apart from breakers.
    exposed: HashMap<u64, Fading, RandomState>,
    /// Of pairs that have failed and not succeeded since.
    breakers: HashMap<Pair, Breaker, RandomState>,
    /// No pair has ever been expected to take less.
    least_exposed: f64,
}

/// An average in which older observations fade.
#[derive(Clone, Copy, Default)]
struct Fading {
    weight: f32,
    sum: f32,
}

impl Fading {
    fn observe(&mut self, value: f64) {
        self.weight = self.weight * 0.9 + 1.0;
        self.sum = self.sum * 0.9 + value as f32;
    }

    /// After the first observation.
    fn get(&self) -> f64 {
        f64::from(self.sum / self.weight)
    }
}

impl Default for Edges {
    fn default() -> Self {
        Self { exposed: HashMap::default(), breakers: HashMap::default(), least_exposed: EXPOSED_SECONDS }
    }
}

impl Edges {
    /// An instance is new: what its pairs were is forgotten.
    pub(super) fn forget(&mut self, slot: Slot) {
        self.exposed.retain(|key, _| ![key >> 32, key & u64::from(u32::MAX)].contains(&(slot.0 as u64)));
        self.breakers.retain(|&(prefill, decode), _| prefill != slot && decode != slot);
    }

    /// Seconds by which any hand-over will outlast the computation, at least.
    pub(super) fn least_exposed(&self) -> f64 {
        self.least_exposed
    }

    /// Seconds by which a hand-over will outlast the computation; `None` where the pair's breaker is open and that `matters`.
    pub(super) fn exposed(&self, pair: Pair, breaker_matters: bool, now: Instant) -> Option<f64> {
        let open = || self.breakers.get(&pair).is_some_and(|breaker| !breaker.allows(now));
        if breaker_matters && open() {
            return None;
        }
        Some(self.exposed.get(&key(pair)).map_or(EXPOSED_SECONDS, Fading::get))
    }

    pub(super) fn handed_over(&mut self, pair: Pair, exposed: f64) {
        let key = key(pair);
        if self.exposed.len() >= EDGES_MAX && !self.exposed.contains_key(&key) {
            self.exposed.clear();
        }
        let expected = self.exposed.entry(key).or_default();
        expected.observe(exposed);
        self.least_exposed = self.least_exposed.min(expected.get());
    }

    pub(super) fn tried(&mut self, pair: Pair, now: Instant) {
        if let Some(breaker) = self.breakers.get_mut(&pair) {
            breaker.tried(now);
        }
    }

    pub(super) fn succeeded(&mut self, pair: Pair) {
        self.breakers.remove(&pair);
    }

    pub(super) fn failed(&mut self, pair: Pair, now: Instant) {
        self.breakers.entry(pair).or_insert_with(|| Breaker::new(PAIR_FAILURES)).failed(now);
    }
}

fn key((prefill, decode): Pair) -> u64 {
    (prefill.0 as u64) << 32 | decode.0 as u64
}
