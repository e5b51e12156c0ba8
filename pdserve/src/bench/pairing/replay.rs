//! Replays requests against the scheduler's policy and pretended instances.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use kv::BlockHash;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scheduler::LocalPrefill;
use scheduler::pairing::{Booking, Choice, Excluded, Facts, PREFIX_BLOCK, Pairing, Route, Slot};
use types::Role;

use super::instance::{self, EXPOSED_SECONDS, Instance};
use super::overlay::Request;
use crate::bench::trace::HASH_BLOCK;

/// Who chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Policy {
    Shortlist,
    Exhaustive,
    Random,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shortlist => "as it is",
            Self::Exhaustive => "exhaustive",
            Self::Random => "random",
        })
    }
}

/// Of the second half of the requests.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) choose_us: Vec<f64>,
    pub(super) book_us: Vec<f64>,
    /// Seconds to the first token.
    pub(super) ttft: Vec<f64>,
    /// Seconds per output token after it.
    pub(super) token: Vec<f64>,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
}

/// What happens to a request later, at a time in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Computed(usize),
    Finished(usize),
}

pub(super) struct Replay {
    policy: Policy,
    pairing: Pairing,
    /// By slot: those that prefill first.
    instances: Vec<Instance>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    /// By number of the request; released ones stay, as they are small.
    bookings: Vec<Booking>,
    rng: StdRng,
    outcome: Outcome,
}

impl Replay {
    /// `each` prefill and as many decode instances.
    pub(super) fn new(each: usize, policy: Policy, seed: u64) -> Self {
        let roles = std::iter::repeat_n(Role::Prefill, each).chain(std::iter::repeat_n(Role::Decode, each));
        let mut pairing = Pairing::new(roles, LocalPrefill::Auto);
        for slot in (0..2 * each).map(Slot) {
            pairing.joined(slot, &instance::limits());
            pairing.set_ready(slot, true);
            pairing.loaded(slot, instance::idle(), instance::steps());
        }
        Self {
            policy,
            pairing,
            instances: (0..2 * each).map(|_| Instance::default()).collect(),
            events: BinaryHeap::new(),
            bookings: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            outcome: Outcome::default(),
        }
    }

    pub(super) fn run(mut self, requests: impl Iterator<Item = Request>, count: usize) -> Outcome {
        for (number, request) in requests.take(count).enumerate() {
            if number == count / 2 {
                self.outcome = Outcome::default();
            }
            self.advance(request.at);
            self.serve(&request);
        }
        self.outcome
    }

    /// Everything that happens until `now`.
    fn advance(&mut self, now: f64) {
        while let Some(Reverse((at, event))) = self.events.peek().copied()
            && at <= nanoseconds(now)
        {
            self.events.pop();
            match event {
                Event::Computed(number) => self.pairing.computed(&mut self.bookings[number]),
                Event::Finished(number) => {
                    let booking = &self.bookings[number];
                    self.pairing.release(booking);
                    self.instances[booking.route().decode().0].finish();
                }
            }
        }
    }

    fn serve(&mut self, request: &Request) {
        let (chain, excluded) = (chain(request), Excluded::default());
        let facts =
            Facts { tokens: request.input, chain: &chain, choices: 1, new_tokens: request.output, excluded: &excluded };
        let start = Instant::now();
        let route = black_box(self.choose(&facts, start));
        let chosen = Instant::now();
        let Some(route) = route else { return };
        let booking = black_box(self.pairing.book(route, &facts, start.into()));
        let booked = chosen.elapsed();
        self.outcome.choose_us.push(microseconds(chosen - start));
        self.outcome.book_us.push(microseconds(booked));
        self.bookings.push(booking);
        self.compute(request, route);
    }

    /// `None` when no instance has room now: such a request is left out.
    fn choose(&mut self, facts: &Facts<'_>, now: Instant) -> Option<Route> {
        let each = self.instances.len() / 2;
        let choice = match self.policy {
            Policy::Shortlist => self.pairing.choose(facts, now.into(), &mut self.rng),
            Policy::Exhaustive => self.pairing.choose_among_all(facts, now.into()),
            Policy::Random => Choice::Route(Route::Pair {
                prefill: Slot(self.rng.random_range(0..each)),
                decode: Slot(self.rng.random_range(each..2 * each)),
            }),
        };
        match choice {
            Choice::Route(route) => Some(route),
            _ => None,
        }
    }

    /// What the chosen instances do with it.
    fn compute(&mut self, request: &Request, route: Route) {
        let (number, decode) = (self.bookings.len() - 1, route.decode());
        let computing = route.prefill().unwrap_or(decode);
        let (done, cached) = self.instances[computing.0].compute(request.at, &request.blocks, request.input);
        let first = match route {
            Route::Pair { prefill, decode } => {
                self.pairing.handed_over(prefill, decode, EXPOSED_SECONDS);
                self.instances[decode.0].receive(&request.blocks);
                done + EXPOSED_SECONDS
            }
            Route::Local { .. } => done,
        };
        let token = self.instances[decode.0].decode();
        self.events.push(Reverse((nanoseconds(done), Event::Computed(number))));
        self.events.push(Reverse((nanoseconds(first + token * f64::from(request.output)), Event::Finished(number))));
        self.outcome.ttft.push(first - request.at);
        self.outcome.token.push(token);
        self.outcome.prompt_tokens += u64::from(request.input);
        self.outcome.cached_tokens += u64::from(cached);
    }
}

/// Names of the prompt's full blocks: the trace's ids stand for many tokens each.
fn chain(request: &Request) -> Vec<BlockHash> {
    let parts = HASH_BLOCK as usize / PREFIX_BLOCK;
    let name = |id: u64, part: usize| BlockHash((u128::from(id) << 16 | part as u128).to_le_bytes());
    let names = request.blocks.iter().flat_map(|id| (0..parts).map(move |part| name(*id, part)));
    names.take(request.input as usize / PREFIX_BLOCK).collect()
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::super::overlay::Overlay;
    use super::*;
    use crate::bench::trace::Arrival;

    /// Forty conversations, each prompt of which goes on where the one before ended; all begin alike.
    fn conversations() -> Vec<Arrival> {
        let arrival = |n: u64| {
            let (conversation, turn) = (n % 40, n / 40);
            let own = (0..4 + 2 * turn).map(|block| 1_000 + conversation * 100 + block);
            let blocks: Vec<u64> = std::iter::once(0).chain(own).collect();
            Arrival { at_ms: n as f64 * 100.0, input: blocks.len() as u32 * HASH_BLOCK, output: 100, blocks }
        };
        (0..400).map(arrival).collect()
    }

    #[test]
    fn the_short_list_is_nearly_as_good_as_looking_at_everyone() {
        let trace = conversations();
        let first_token = |policy| {
            let outcome = Replay::new(32, policy, 5).run(Overlay::new(&trace, 32, 0.8, 5), 4_000);
            assert_eq!(outcome.ttft.len(), 2_000, "all were served");
            outcome.ttft.iter().sum::<f64>()
        };
        let exhaustive = first_token(Policy::Exhaustive);
        let quality = exhaustive / first_token(Policy::Shortlist);
        assert!(quality > 0.9, "{quality}");
        let quality = exhaustive / first_token(Policy::Random);
        assert!(quality < 0.6, "choosing at random should be found out: {quality}");
    }
}
