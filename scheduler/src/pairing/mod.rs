//! Chooses which prefill and which decode instance serve a request, together, priced in seconds.
//!
//! A pure core: what happened comes in as method calls, time and randomness are arguments, nothing waits. What is chosen is booked
//! at once ([`Pairing::book`]), so that a burst between two heartbeats spreads.

mod breaker;
mod budget;
mod edges;
mod member;
mod prefix;
mod price;
mod ready;
mod seconds;

use std::collections::HashSet;

use kv::BlockHash;
use tokio::time::Instant;
use types::{Limits, Role};

use crate::LocalPrefill;
use budget::RetryBudget;
use edges::Edges;
use member::{Member, Share};
use prefix::PrefixIndex;
use price::Price;
use ready::Ready;

pub use prefix::PREFIX_BLOCK;
pub use price::Step;

/// An instance's place in the table of instances.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Slot(pub usize);

/// What is known of a request when it is routed.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Tokens to compute: the prompt and, when an attempt resumes, the output so far.
    pub tokens: u32,
    /// Hashes of its full blocks of [`PREFIX_BLOCK`] tokens.
    pub chain: &'a [BlockHash],
    pub choices: u32,
    /// Most tokens that a choice may still produce.
    pub new_tokens: u32,
    pub excluded: &'a Excluded,
}

impl Facts<'_> {
    /// Tokens that an instance has to compute that has so many blocks of the chain.
    fn uncached(&self, blocks: usize) -> u32 {
        // The last token is always computed.
        self.tokens.saturating_sub((blocks * PREFIX_BLOCK) as u32).max(self.tokens.min(1))
    }
}

/// Where this request must not go again.
#[derive(Clone, Debug, Default)]
pub struct Excluded {
    pub instances: HashSet<Slot>,
    pub pairs: HashSet<(Slot, Slot)>,
    /// An open breaker between two instances is no reason to refuse.
    pub despite_pair_breakers: bool,
}

/// Who serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    Pair {
        prefill: Slot,
        decode: Slot,
    },
    /// The decode instance computes the prompt itself.
    Local {
        decode: Slot,
    },
}

impl Route {
    /// Whoever computes the prompt.
    fn computing(self) -> Slot {
        self.prefill().unwrap_or(self.decode())
    }

    fn instances(self) -> impl Iterator<Item = Slot> {
        [Some(self.decode()), self.prefill()].into_iter().flatten()
    }

    fn pair(self) -> Option<(Slot, Slot)> {
        self.prefill().map(|prefill| (prefill, self.decode()))
    }

    pub fn decode(self) -> Slot {
        match self {
            Route::Pair { decode, .. } | Route::Local { decode } => decode,
        }
    }

    pub fn prefill(self) -> Option<Slot> {
        match self {
            Route::Pair { prefill, .. } => Some(prefill),
            Route::Local { .. } => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    Route(Route),
    /// Instances are there, but none has room now.
    Wait,
    /// No instance of this role is there (or every one was tried).
    Absent(Role),
    /// No instance could ever hold it; the largest holds this many tokens.
    TooLong {
        tokens_max: u32,
    },
}

/// An instance's own report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    pub running: u32,
    pub waiting: u32,
    pub waiting_tokens: u32,
    /// Free or reclaimable.
    pub blocks_available: u32,
    pub blocks_total: u32,
    pub draining: bool,
}

/// What a route takes from its instances until it is given back. Not a guard: see `attempt`, which owns it.
#[derive(Clone, Debug, PartialEq)]
pub struct Booking {
    route: Route,
    /// Prompt tokens that whoever computes the prompt has yet to compute.
    prompt_tokens: u32,
    /// Of the decode instance.
    blocks: u32,
    choices: u32,
}

impl Booking {
    pub fn route(&self) -> Route {
        self.route
    }

    /// What of it is on this instance of the route.
    fn share(&self, slot: Slot) -> Share {
        let prompt_tokens = if slot == self.route.computing() { self.prompt_tokens } else { 0 };
        let (blocks, choices) = if slot == self.route.decode() { (self.blocks, self.choices) } else { (0, 0) };
        Share { prompt_tokens, blocks, choices }
    }
}

/// Who is there, how busy each is and what it has cached; see the module.
pub struct Pairing {
    /// By slot.
    members: Vec<Member>,
    /// Those that take requests, by [`side`].
    ready: [Ready; 2],
    prefixes: PrefixIndex,
    edges: Edges,
    /// What steps cost of late, whoever made them.
    typical: Price,
    local_prefill: LocalPrefill,
    retries: RetryBudget,
}

/// Where the one of two things that belongs to this role is.
fn side(role: Role) -> usize {
    usize::from(role == Role::Decode)
}

impl Pairing {
    /// A cluster of these instances, in the order of their slots, none of which is there yet.
    pub fn new(roles: impl IntoIterator<Item = Role>, local_prefill: LocalPrefill) -> Self {
        Self {
            members: roles.into_iter().map(Member::new).collect(),
            ready: Default::default(),
            prefixes: PrefixIndex::default(),
            edges: Edges::default(),
            typical: Price::default(),
            local_prefill,
            retries: RetryBudget::default(),
        }
    }

    /// The rank table names an instance anew: it takes over a slot that nothing is left of, or gets the next one.
    pub(crate) fn list(&mut self, slot: Slot, role: Role) {
        self.set_ready(slot, false);
        match self.members.get_mut(slot.0) {
            Some(member) => *member = Member::new(role),
            None => self.members.push(Member::new(role)),
        }
        self.edges.forget(slot);
    }

    /// Whether the rank table still names it: if not, nothing new is sent there.
    pub(crate) fn set_listed(&mut self, slot: Slot, listed: bool) {
        self.change(slot, |member| {
            member.listed = listed;
            member.ready &= listed;
        });
    }

    /// Whether no request of ours has a share of it.
    pub(crate) fn is_free(&self, slot: Slot) -> bool {
        self.member(slot).is_none_or(|member| member.booked == Share::default())
    }

    /// Whether there should be prefill instances.
    fn has_prefill(&self) -> bool {
        self.members.iter().any(|member| member.role == Role::Prefill && member.listed)
    }

    /// A new process is there under this name: its cache is empty and its failures are forgotten.
    pub fn joined(&mut self, slot: Slot, limits: &Limits) {
        self.change(slot, |member| member.joined(limits));
        if let Some(member) = self.members.get(slot.0) {
            self.prefixes.joined(slot, member.role, member.tokens_max());
            self.edges.forget(slot);
        }
    }

    /// Whether requests may be sent there.
    pub fn set_ready(&mut self, slot: Slot, ready: bool) {
        self.change(slot, |member| member.ready = ready && member.listed);
    }

    /// It has reported how busy it is, and what its steps since the last report took.
    pub fn loaded(&mut self, slot: Slot, load: Load, steps: impl IntoIterator<Item = Step>) {
        self.change(slot, |member| member.load = load);
        let Some(member) = self.members.get_mut(slot.0) else { return };
        for step in steps {
            member.price.observe(step);
            self.typical.observe(step);
        }
    }

    /// Takes the route's share of both instances until [`Pairing::release`].
    pub fn book(&mut self, route: Route, facts: &Facts<'_>, now: Instant) -> Booking {
        let prompt_tokens = facts.uncached(self.prefixes.matched(route.computing(), facts.chain));
        let blocks = self.member(route.decode()).map_or(0, |member| member.blocks_wanted(facts));
        let booking = Booking { route, prompt_tokens, blocks, choices: facts.choices };
        for slot in route.instances() {
            self.prefixes.insert(slot, facts.chain);
            self.change(slot, |member| {
                member.breaker.tried(now);
                member.booked.add(booking.share(slot));
            });
        }
        if let Some(pair) = route.pair() {
            self.edges.tried(pair, now);
        }
        booking
    }

    /// The prompt is computed.
    pub fn computed(&mut self, booking: &mut Booking) {
        let prompt_tokens = std::mem::take(&mut booking.prompt_tokens);
        let done = Share { prompt_tokens, ..Share::default() };
        self.change(booking.route.computing(), |member| member.booked.subtract(done));
    }

    /// Gives back what was booked.
    pub fn release(&mut self, booking: &Booking) {
        for slot in booking.route.instances() {
            self.change(slot, |member| member.booked.subtract(booking.share(slot)));
        }
    }

    pub(crate) fn succeeded(&mut self, route: Route) {
        for slot in route.instances() {
            self.change(slot, |member| member.breaker.succeeded());
        }
        if let Some(pair) = route.pair() {
            self.edges.succeeded(pair);
        }
    }

    /// One instance failed an attempt by itself.
    pub(crate) fn failed(&mut self, slot: Slot, now: Instant) {
        self.change(slot, |member| member.breaker.failed(now));
    }

    /// A hand-over between the two failed; each may be fine with others.
    pub(crate) fn failed_pair(&mut self, prefill: Slot, decode: Slot, now: Instant) {
        self.edges.failed((prefill, decode), now);
    }

    /// How long after the prompt's computation its hand-over went on.
    pub fn handed_over(&mut self, prefill: Slot, decode: Slot, exposed_seconds: f64) {
        self.edges.handed_over((prefill, decode), exposed_seconds);
    }

    /// Counts a request towards the retry budget.
    pub(crate) fn admitted(&mut self) {
        self.retries.earn();
    }

    /// Whether one more retry after a failure is within the budget.
    pub(crate) fn may_retry(&mut self) -> bool {
        self.retries.spend()
    }

    /// For people: is the breaker of this instance open?
    pub(crate) fn is_open(&self, slot: Slot) -> bool {
        self.member(slot).is_some_and(|member| member.breaker.is_open())
    }

    /// For people: requests' choices that we have on this instance, and prompt tokens it has yet to compute for us.
    pub(crate) fn booked(&self, slot: Slot) -> (u32, u32) {
        self.member(slot).map_or((0, 0), |member| (member.booked.choices, member.booked.prompt_tokens))
    }

    fn member(&self, slot: Slot) -> Option<&Member> {
        self.members.get(slot.0)
    }

    /// Changes what is known of an instance, and its place among those that take requests.
    fn change(&mut self, slot: Slot, apply: impl FnOnce(&mut Member)) {
        let Some(member) = self.members.get_mut(slot.0) else { return };
        let before = member.busy();
        apply(member);
        self.ready[side(member.role)].update(slot, before, member.busy());
    }
}

#[cfg(test)]
mod tests;
