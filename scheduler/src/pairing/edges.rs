//! What is known of a prefill and a decode instance together. Most pairs have nothing to tell and are not in here.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::Slot;
use super::breaker::Breaker;
use super::price::Fading;

/// Consecutive failures that open a pair's breaker.
pub(super) const PAIR_FAILURES: u32 = 2;
/// Assumed until a pair has handed over once: two round trips and the last layer's bytes.
const EXPOSED_SECONDS: f64 = 2e-3;
/// Pairs remembered, about 40 MB by the size of an entry; beyond it those that only tell how long they take are forgotten.
const EDGES_MAX: usize = 1 << 18;

type Pair = (Slot, Slot);

pub(super) struct Edges {
    known: HashMap<Pair, Edge, RandomState>,
    /// No pair has ever been expected to take less.
    least_exposed: f64,
}

struct Edge {
    /// Seconds by which the hand-over outlasts the computation.
    exposed: Fading,
    breaker: Breaker,
}

impl Default for Edges {
    fn default() -> Self {
        Self { known: HashMap::default(), least_exposed: EXPOSED_SECONDS }
    }
}

impl Edges {
    /// An instance is new: what its pairs were is forgotten.
    pub(super) fn forget(&mut self, slot: Slot) {
        self.known.retain(|&(prefill, decode), _| prefill != slot && decode != slot);
    }

    /// Seconds by which any hand-over will outlast the computation, at least.
    pub(super) fn least_exposed(&self) -> f64 {
        self.least_exposed
    }

    /// Seconds by which a hand-over will outlast the computation; `None` where the pair's breaker is open and that `matters`.
    pub(super) fn exposed(&self, pair: Pair, breaker_matters: bool, now: Instant) -> Option<f64> {
        let Some(edge) = self.known.get(&pair) else { return Some(EXPOSED_SECONDS) };
        (!breaker_matters || edge.breaker.allows(now)).then(|| edge.exposed.get().unwrap_or(EXPOSED_SECONDS))
    }

    pub(super) fn handed_over(&mut self, pair: Pair, exposed: f64) {
        let edge = self.edge(pair);
        edge.exposed.observe(exposed);
        let expected = edge.exposed.get().unwrap_or(exposed);
        self.least_exposed = self.least_exposed.min(expected);
    }

    pub(super) fn tried(&mut self, pair: Pair, now: Instant) {
        if let Some(edge) = self.known.get_mut(&pair) {
            edge.breaker.tried(now);
        }
    }

    pub(super) fn succeeded(&mut self, pair: Pair) {
        if let Some(edge) = self.known.get_mut(&pair) {
            edge.breaker.succeeded();
        }
    }

    pub(super) fn failed(&mut self, pair: Pair, now: Instant) {
        self.edge(pair).breaker.failed(now);
    }

    fn edge(&mut self, pair: Pair) -> &mut Edge {
        if self.known.len() >= EDGES_MAX && !self.known.contains_key(&pair) {
            self.known.retain(|_, edge| edge.breaker.has_failures());
        }
        self.known
            .entry(pair)
            .or_insert_with(|| Edge { exposed: Fading::default(), breaker: Breaker::new(PAIR_FAILURES) })
    }
}
