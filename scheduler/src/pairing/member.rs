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

/// Two lines of memory, as a choice among thousands finds most of those that it looks at far away.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Member {
    pub(super) role: Role,
    /// Whether the rank table names it; one that it names no longer only finishes what it has.
    pub(super) listed: bool,
    /// Connected, of the cluster's model, and not refused.
    pub(super) ready: bool,
    /// Tokens per KV block, and blocks.
    block_size: u32,
    blocks_total: u32,
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

const _: () = assert!(size_of::<Member>() == 128, "two lines of memory");

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
            block_size: 0,
            blocks_total: 0,
            load: Load::default(),
            booked: Share::default(),
            price: Price::default(),
            breaker: Breaker::new(INSTANCE_FAILURES),
        }
    }

    /// A new process is there under its name, with an empty cache and no failures.
    pub(super) fn joined(&mut self, limits: &Limits) {
        (self.block_size, self.blocks_total) = (limits.block_size, limits.blocks_total);
        let blocks = limits.blocks_total;
        self.load = Load { blocks_available: blocks, blocks_total: blocks, ..Load::default() };
        self.breaker.succeeded();
    }

    /// `None` while it takes no requests.
    pub(super) fn busy(&self) -> Option<Busy> {
        (self.ready && !self.load.draining).then(|| (self.queued_tokens(), self.rows()))
    }

    fn blocks_of(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.block_size.max(1))
    }

    /// Blocks that the request takes at once here, shared ones included.
    pub(super) fn blocks_wanted(&self, facts: &Facts<'_>) -> u32 {
        let growth = facts.new_tokens.min(GROWTH_TOKENS);
        self.blocks_of(facts.tokens) + self.blocks_of(growth) * facts.choices
    }

    pub(super) fn tokens_max(&self) -> u32 {
        self.blocks_total.saturating_mul(self.block_size)
    }

    /// Whether the request can ever fit.
    pub(super) fn fits(&self, facts: &Facts<'_>) -> bool {
        self.tokens_max() > facts.tokens
    }

    pub(super) fn has_room(&self, facts: &Facts<'_>) -> bool {
        let unbooked = self.blocks_total.saturating_sub(self.booked.blocks);
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
