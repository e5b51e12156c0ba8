//! Chooses which prefill and which decode instance serve a request, together, priced in seconds.
//!
//! A pure core: what happened comes in as method calls, time and randomness are arguments, nothing waits. What is chosen is booked
//! at once ([`Pairing::book`]), so that a burst between two heartbeats spreads.

mod breaker;
mod budget;
mod prefix;
mod price;
mod seconds;

use std::collections::{HashMap, HashSet};

use kv::BlockHash;
use tokio::time::Instant;
use types::{Limits, Role};

use crate::LocalPrefill;
use breaker::Breaker;
use budget::RetryBudget;
use prefix::PrefixIndex;
use price::{Fading, Price};

pub(crate) use prefix::PREFIX_BLOCK;
pub(crate) use price::Step;

/// An instance's place in the table of instances.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Slot(pub usize);

/// What is known of a request when it is routed.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    /// Tokens to compute: the prompt and, when an attempt resumes, the output so far.
    pub(crate) tokens: u32,
    /// Hashes of its full blocks of [`PREFIX_BLOCK`] tokens.
    pub(crate) chain: &'a [BlockHash],
    pub(crate) choices: u32,
    /// Most tokens that a choice may still produce.
    pub(crate) new_tokens: u32,
    pub(crate) excluded: &'a Excluded,
}

/// Where this request must not go again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Excluded {
    pub(crate) instances: HashSet<Slot>,
    pub(crate) pairs: HashSet<(Slot, Slot)>,
    /// An open breaker between two instances is no reason to refuse.
    pub(crate) despite_pair_breakers: bool,
}

/// Who serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Route {
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
    pub(crate) fn decode(self) -> Slot {
        match self {
            Route::Pair { decode, .. } | Route::Local { decode } => decode,
        }
    }

    pub(crate) fn prefill(self) -> Option<Slot> {
        match self {
            Route::Pair { prefill, .. } => Some(prefill),
            Route::Local { .. } => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Choice {
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
pub(crate) struct Load {
    pub(crate) running: u32,
    pub(crate) waiting: u32,
    pub(crate) waiting_tokens: u32,
    /// Free or reclaimable.
    pub(crate) blocks_available: u32,
    pub(crate) blocks_total: u32,
    pub(crate) draining: bool,
}

/// What a route takes from its instances until it is given back. Not a guard: see `attempt`, which owns it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Booking {
    pub(crate) route: Route,
    /// Prompt tokens that whoever computes the prompt has yet to compute.
    prompt_tokens: u32,
    blocks: u32,
    choices: u32,
}

/// What we know of one instance.
#[derive(Clone, Debug)]
struct Member {
    role: Role,
    /// Whether the rank table names it; one that it names no longer only finishes what it has.
    listed: bool,
    /// Connected, of the cluster's model, and not refused.
    ready: bool,
    limits: Limits,
    load: Load,
    /// Booked by us and not yet given back.
    prompt_tokens: u32,
    blocks: u32,
    choices: u32,
    price: Price,
    prefix: PrefixIndex,
    breaker: Breaker,
}

/// What we know of a prefill and a decode instance together.
#[derive(Clone, Debug)]
struct Edge {
    /// Seconds by which the hand-over outlasts the computation.
    exposed: Fading,
    breaker: Breaker,
}

/// Consecutive failures that open an instance's breaker, and a pair's.
const INSTANCE_FAILURES: u32 = 5;
const PAIR_FAILURES: u32 = 2;

pub(crate) struct Pairing {
    members: Vec<Member>,
    edges: HashMap<(Slot, Slot), Edge>,
    local_prefill: LocalPrefill,
    retries: RetryBudget,
}

impl Pairing {
    pub(crate) fn new(roles: impl IntoIterator<Item = Role>, local_prefill: LocalPrefill) -> Self {
        Self {
            members: roles.into_iter().map(Member::new).collect(),
            edges: HashMap::new(),
            local_prefill,
            retries: RetryBudget::default(),
        }
    }

    /// The rank table names an instance anew: it takes over a slot that nothing is left of, or gets the next one.
    pub(crate) fn list(&mut self, slot: Slot, role: Role) {
        match self.members.get_mut(slot.0) {
            Some(member) => *member = Member::new(role),
            None => self.members.push(Member::new(role)),
        }
        self.edges.retain(|&(prefill, decode), _| prefill != slot && decode != slot);
    }

    /// Whether the rank table still names it: if not, nothing new is sent there.
    pub(crate) fn set_listed(&mut self, slot: Slot, listed: bool) {
        if let Some(member) = self.members.get_mut(slot.0) {
            member.listed = listed;
            member.ready &= listed;
        }
    }

    /// Whether no request of ours has a share of it.
    pub(crate) fn is_free(&self, slot: Slot) -> bool {
        self.member(slot).is_none_or(|member| (member.prompt_tokens, member.blocks, member.choices) == (0, 0, 0))
    }

    /// Whether there should be prefill instances.
    fn has_prefill(&self) -> bool {
        self.members.iter().any(|member| member.role == Role::Prefill && member.listed)
    }

    /// A new process is there under this name: its cache is empty and its failures are forgotten.
    pub(crate) fn joined(&mut self, slot: Slot, limits: Limits) {
        if let Some(member) = self.members.get_mut(slot.0) {
            member.load =
                Load { blocks_available: limits.blocks_total, blocks_total: limits.blocks_total, ..Load::default() };
            member.limits = limits;
            member.prefix = PrefixIndex::default();
            member.breaker.succeeded();
            self.edges.retain(|&(prefill, decode), _| prefill != slot && decode != slot);
        }
    }

    /// Whether requests may be sent there.
    pub(crate) fn set_ready(&mut self, slot: Slot, ready: bool) {
        if let Some(member) = self.members.get_mut(slot.0) {
            member.ready = ready && member.listed;
        }
    }

    pub(crate) fn loaded(&mut self, slot: Slot, load: Load, steps: impl IntoIterator<Item = Step>) {
        if let Some(member) = self.members.get_mut(slot.0) {
            member.load = load;
            steps.into_iter().for_each(|step| member.price.observe(step));
        }
    }

    /// Takes the route's share of both instances until [`Pairing::release`].
    pub(crate) fn book(&mut self, route: Route, facts: &Facts<'_>, now: Instant) -> Booking {
        let computing = route.prefill().unwrap_or(route.decode());
        let prompt_tokens = self.member(computing).map_or(0, |member| member.uncached(facts));
        let blocks = self.member(route.decode()).map_or(0, |member| member.blocks_wanted(facts));
        let booking = Booking { route, prompt_tokens, blocks, choices: facts.choices };
        for slot in [Some(route.decode()), route.prefill()].into_iter().flatten() {
            if let Some(member) = self.members.get_mut(slot.0) {
                member.prefix.insert(facts.chain);
                member.breaker.tried(now);
            }
        }
        if let Route::Pair { prefill, decode } = route {
            self.edge(prefill, decode).breaker.tried(now);
        }
        self.add(&booking, 1);
        booking
    }

    /// The prompt is computed.
    pub(crate) fn computed(&mut self, booking: &mut Booking) {
        let done = Booking { blocks: 0, choices: 0, ..booking.clone() };
        self.add(&done, -1);
        booking.prompt_tokens = 0;
    }

    pub(crate) fn release(&mut self, booking: &Booking) {
        self.add(booking, -1);
    }

    fn add(&mut self, booking: &Booking, sign: i64) {
        let change = |number: &mut u32, by: u32| {
            *number = u32::try_from((i64::from(*number) + sign * i64::from(by)).max(0)).unwrap_or(u32::MAX);
        };
        let decode = booking.route.decode();
        let computing = booking.route.prefill().unwrap_or(decode);
        if let Some(member) = self.members.get_mut(computing.0) {
            change(&mut member.prompt_tokens, booking.prompt_tokens);
        }
        if let Some(member) = self.members.get_mut(decode.0) {
            change(&mut member.blocks, booking.blocks);
            change(&mut member.choices, booking.choices);
        }
    }

    /// What an instance said it had cached of `chain`, in tokens.
    pub(crate) fn cached(&mut self, slot: Slot, chain: &[BlockHash], tokens: u32) {
        if let Some(member) = self.members.get_mut(slot.0) {
            // A partly used block, or the last token that is always computed, is no contradiction.
            let blocks = (tokens as usize).div_ceil(PREFIX_BLOCK) + 1;
            let believed = member.prefix.matched(chain);
            if blocks < believed {
                member.prefix.correct(chain, blocks);
                // It is being computed right now, so it will be there next time.
                member.prefix.insert(chain);
            }
        }
    }

    pub(crate) fn succeeded(&mut self, route: Route) {
        for slot in [Some(route.decode()), route.prefill()].into_iter().flatten() {
            if let Some(member) = self.members.get_mut(slot.0) {
                member.breaker.succeeded();
            }
        }
        if let Route::Pair { prefill, decode } = route {
            self.edge(prefill, decode).breaker.succeeded();
        }
    }

    /// One instance failed an attempt by itself.
    pub(crate) fn failed(&mut self, slot: Slot, now: Instant) {
        if let Some(member) = self.members.get_mut(slot.0) {
            member.breaker.failed(now);
        }
    }

    /// A hand-over between the two failed; each may be fine with others.
    pub(crate) fn failed_pair(&mut self, prefill: Slot, decode: Slot, now: Instant) {
        self.edge(prefill, decode).breaker.failed(now);
    }

    pub(crate) fn handed_over(&mut self, prefill: Slot, decode: Slot, exposed_seconds: f64) {
        self.edge(prefill, decode).exposed.observe(exposed_seconds);
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
        self.member(slot).map_or((0, 0), |member| (member.choices, member.prompt_tokens))
    }

    fn member(&self, slot: Slot) -> Option<&Member> {
        self.members.get(slot.0)
    }

    fn edge(&mut self, prefill: Slot, decode: Slot) -> &mut Edge {
        self.edges
            .entry((prefill, decode))
            .or_insert_with(|| Edge { exposed: Fading::default(), breaker: Breaker::new(PAIR_FAILURES) })
    }
}

/// Output tokens for which room must be there before a request is sent; growth beyond it is the instance's own affair.
const GROWTH_TOKENS: u32 = 64;

impl Member {
    fn new(role: Role) -> Self {
        Self {
            role,
            listed: true,
            ready: false,
            limits: Limits::default(),
            load: Load::default(),
            prompt_tokens: 0,
            blocks: 0,
            choices: 0,
            price: Price::default(),
            prefix: PrefixIndex::default(),
            breaker: Breaker::new(INSTANCE_FAILURES),
        }
    }

    fn cached_tokens(&self, facts: &Facts<'_>) -> u32 {
        let tokens = self.prefix.matched(facts.chain) * PREFIX_BLOCK;
        u32::try_from(tokens).unwrap_or(u32::MAX).min(facts.tokens.saturating_sub(1))
    }

    fn uncached(&self, facts: &Facts<'_>) -> u32 {
        facts.tokens.saturating_sub(self.cached_tokens(facts))
    }

    fn blocks_of(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.limits.block_size.max(1))
    }

    /// Blocks that the request takes at once here, shared ones included.
    fn blocks_wanted(&self, facts: &Facts<'_>) -> u32 {
        let growth = facts.new_tokens.min(GROWTH_TOKENS);
        self.blocks_of(facts.tokens) + self.blocks_of(growth) * facts.choices
    }

    fn tokens_max(&self) -> u32 {
        self.limits.blocks_total.saturating_mul(self.limits.block_size)
    }

    fn has_room(&self, facts: &Facts<'_>) -> bool {
        let unbooked = self.limits.blocks_total.saturating_sub(self.blocks);
        // An idle instance takes whatever can fit at all: it has nothing to wait for.
        self.choices == 0 || self.blocks_wanted(facts) <= self.load.blocks_available.min(unbooked)
    }

    /// Prompt tokens before us in its queue.
    fn queued_tokens(&self) -> u32 {
        self.prompt_tokens.max(self.load.waiting_tokens)
    }

    /// Sequences that decode there.
    fn rows(&self) -> u32 {
        self.choices.max(self.load.running)
    }
}

#[cfg(test)]
mod tests;
