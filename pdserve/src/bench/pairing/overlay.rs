//! A trace laid over itself until it keeps a cluster busy: each copy starts somewhere else in it and has prompts of its own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::instance::prefill_seconds;
use crate::bench::trace::Arrival;

/// Ids of one copy; a trace's own are far below.
const IDS_PER_COPY: u64 = 1 << 32;

/// One request of the replay.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    pub(super) at: f64,
    pub(super) input: u32,
    pub(super) output: u32,
    /// As in the trace, but of this copy.
    pub(super) blocks: Vec<u64>,
}

/// Requests in the order of their times, without end.
#[derive(Clone)]
pub(super) struct Overlay<'a> {
    trace: &'a [Arrival],
    /// By how much the trace's time is made shorter.
    faster: f64,
    /// Seconds that one pass through the trace takes.
    span: f64,
    /// When each copy's next request comes (in nanoseconds), and its place in the trace.
    next: BinaryHeap<Reverse<(u64, usize, usize)>>,
    starts: Vec<usize>,
}

impl<'a> Overlay<'a> {
    /// `load` is the share of the prefill instances' time that all prompts take together if nothing is cached.
    pub(super) fn new(trace: &'a [Arrival], prefills: usize, load: f64, seed: u64) -> Self {
        let span = trace.last().map_or(0.0, |last| last.at_ms / 1e3).max(1e-3) * (1.0 + 1.0 / trace.len() as f64);
        let alone = trace.iter().map(|arrival| prefill_seconds(arrival.input)).sum::<f64>() / span;
        let wanted = load * prefills as f64 / alone;
        let copies = (wanted.round() as usize).max(1);
        let mut rng = StdRng::seed_from_u64(seed);
        let starts = (0..copies).map(|_| rng.random_range(0..trace.len())).collect();
        let mut overlay =
            Self { trace, faster: wanted / copies as f64, span, next: BinaryHeap::with_capacity(copies), starts };
        (0..copies).for_each(|copy| overlay.push(copy, 0));
        overlay
    }

    /// The copy's request of this number, counted from where it started.
    fn push(&mut self, copy: usize, number: usize) {
        let (start, place) = (self.starts[copy], self.starts[copy] + number);
        let passes = (place / self.trace.len()) as f64;
        let since = self.trace[place % self.trace.len()].at_ms - self.trace[start].at_ms;
        let at = (passes * self.span + since / 1e3) / self.faster;
        self.next.push(Reverse(((at * 1e9) as u64, copy, number)));
    }
}

impl Iterator for Overlay<'_> {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        let Reverse((at, copy, number)) = self.next.pop()?;
        self.push(copy, number + 1);
        let arrival = &self.trace[(self.starts[copy] + number) % self.trace.len()];
        let own = |id: &u64| id % IDS_PER_COPY + copy as u64 * IDS_PER_COPY;
        Some(Request {
            at: at as f64 / 1e9,
            input: arrival.input,
            output: arrival.output,
            blocks: arrival.blocks.iter().map(own).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Vec<Arrival> {
        (0..10).map(|n| Arrival { at_ms: f64::from(n) * 1e3, input: 5_000, output: 9, blocks: vec![0, 7] }).collect()
    }

    #[test]
    fn it_is_as_busy_as_asked_in_order_and_copies_share_nothing() {
        let trace = trace();
        for (prefills, load) in [(1, 0.05), (4, 0.5), (16, 1.0)] {
            let requests: Vec<_> = Overlay::new(&trace, prefills, load, 3).take(1_000).collect();
            assert!(requests.is_sorted_by_key(|request| request.at));
            let seconds: f64 = requests.iter().map(|request| prefill_seconds(request.input)).sum();
            let busy = seconds / requests[999].at / prefills as f64;
            assert!((busy / load - 1.0).abs() < 0.05, "{prefills} {load}: {busy}");
            assert!(requests.iter().all(|request| request.blocks[1] == request.blocks[0] + 7));
        }
        let mut firsts: Vec<_> =
            Overlay::new(&trace, 16, 1.0, 3).take(1_000).map(|request| request.blocks[0]).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 32, "0.5 s of computing per second and copy");
    }
}
