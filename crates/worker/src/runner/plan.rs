//! Who runs next: the question a runner asks before every step, and its role's answer.
//!
//! A planner is pure: the same views give the same plan. The runner carries a plan out as far as the pool allows, so a plan may be
//! wrong about blocks (others take and return them meanwhile) but never about order.

/// Tokens with which a step keeps the products busy. More make no token cheaper, so a step that has as many takes no further prompt:
/// the first would only wait for the last.
pub const FULL_STEP: u32 = 512;

/// A sequence's place in the queue: smaller goes first, by priority, then by arrival. Choices of one job share both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SeqId {
    pub priority: i32,
    pub arrival: u64,
    pub choice: u32,
}

/// What a planner may know of a sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeqView {
    pub id: SeqId,
    /// Tokens whose KV is missing before the next token can be drawn: 1 while decoding.
    pub pending: u32,
    /// Waiting sequences: how many of `pending` the prefix cache would give now.
    pub cached: u32,
    /// Rows it takes while running: its choices, once they go separate ways.
    pub slots: u32,
    pub blocks_held: u32,
    /// Blocks that the prefix cache would give now. Those that nobody else holds count as available, too.
    pub blocks_cached: u32,
    /// Blocks still to be allocated beside those, for all of `pending`.
    pub blocks_missing: u32,
    /// Blocks that it will probably ask for beyond all those before it ends, 1 for each of its rows at least.
    pub growth: u32,
    /// How often one that stands behind it was admitted instead.
    pub passed_over: u32,
}

impl SeqView {
    /// Tokens to compute before the next can be drawn.
    pub fn needs(&self) -> u32 {
        self.pending.saturating_sub(self.cached).max(1)
    }
}

/// The queue before a step. Both lists are in order of their ids.
#[derive(Clone, Copy, Debug)]
pub struct QueueView<'a> {
    pub running: &'a [SeqView],
    pub waiting: &'a [SeqView],
    /// Tokens that this step may compute.
    pub token_budget: u32,
    /// Rows that may run at once.
    pub slots_total: u32,
    /// Blocks that can be allocated now: free or evictable.
    pub blocks_available: u32,
}

/// What to do in this step, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Give up their blocks and wait; recomputed later.
    pub preempt: Vec<SeqId>,
    /// Waiting sequences that start to run.
    pub admit: Vec<SeqId>,
    /// Running (or just admitted) sequences and how many of their pending tokens to compute at most.
    pub rows: Vec<(SeqId, u32)>,
}

/// Decides who runs next.
pub trait Planner: Send {
    fn plan(&mut self, view: &QueueView<'_>) -> Plan;
}

impl QueueView<'_> {
    /// Slots taken by running sequences.
    pub fn slots_used(&self) -> u32 {
        self.running.iter().map(|seq| seq.slots).sum()
    }
}
