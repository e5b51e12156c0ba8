//! What is known of one instance.

use types::{Limits, Role};

use super::breaker::Breaker;
use super::price::Price;
use super::ready::Busy;
use super::{Facts, Load};

/// Consecutive failures that open an instance's breaker.
const INSTANCE_FAILURES: u32 = 5;
/// Output tokens for which room must be there before a request is sent; growth beyond it is the instance's own affair.
const GROWTH_TOKENS: u32 = 64;

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) role: Role,
    /// Whether the rank table names it; one that it names no longer only finishes what it has.
    pub(super) listed: bool,
    /// Connected, of the cluster's model, and not refused.
    pub(super) ready: bool,
    pub(super) limits: Limits,
    pub(super) load: Load,
    pub(super) booked: Share,
    pub(super) price: Price,
    pub(super) breaker: Breaker,
}

/// What requests of ours take of an instance: booked and not yet given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Share {
    /// Prompt tokens that it has yet to compute.
    pub(super) prompt_tokens: u32,
    pub(super) blocks: u32,
    pub(super) choices: u32,
}

impl Share {
    pub(super) fn add(&mut self, other: Share) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.blocks = self.blocks.saturating_add(other.blocks);
        self.choices = self.choices.saturating_add(other.choices);
    }

    pub(super) fn subtract(&mut self, other: Share) {
        self.prompt_tokens = self.prompt_tokens.saturating_sub(other.prompt_tokens);
        self.blocks = self.blocks.saturating_sub(other.blocks);
        self.choices = self.choices.saturating_sub(other.choices);
    }
}

impl Member {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            listed: true,
            ready: false,
            limits: Limits::default(),
            load: Load::default(),
            booked: Share::default(),
            price: Price::default(),
            breaker: Breaker::new(INSTANCE_FAILURES),
        }
    }

    /// `None` while it takes no requests.
    pub(super) fn busy(&self) -> Option<Busy> {
        (self.ready && !self.load.draining).then(|| (self.queued_tokens(), self.rows()))
    }

    fn blocks_of(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.limits.block_size.max(1))
    }

    /// Blocks that the request takes at once here, shared ones included.
    pub(super) fn blocks_wanted(&self, facts: &Facts<'_>) -> u32 {
        let growth = facts.new_tokens.min(GROWTH_TOKENS);
        self.blocks_of(facts.tokens) + self.blocks_of(growth) * facts.choices
    }

    pub(super) fn tokens_max(&self) -> u32 {
        self.limits.blocks_total.saturating_mul(self.limits.block_size)
    }

    /// Whether the request can ever fit.
    pub(super) fn fits(&self, facts: &Facts<'_>) -> bool {
        self.tokens_max() > facts.tokens
    }

    pub(super) fn has_room(&self, facts: &Facts<'_>) -> bool {
        let unbooked = self.limits.blocks_total.saturating_sub(self.booked.blocks);
        // An idle instance takes whatever can fit at all: it has nothing to wait for.
        self.booked.choices == 0 || self.blocks_wanted(facts) <= self.load.blocks_available.min(unbooked)
    }

    /// Prompt tokens before us in its queue.
    pub(super) fn queued_tokens(&self) -> u32 {
        self.booked.prompt_tokens.max(self.load.waiting_tokens)
    }

    /// Sequences that decode there.
    pub(super) fn rows(&self) -> u32 {
        self.booked.choices.max(self.load.running)
    }
}
