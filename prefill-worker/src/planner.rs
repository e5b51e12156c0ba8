//! Who runs next on P: prompts that have begun, then those that the prefix cache makes cheap, until the step is full: of the first
//! prompt as much as the token budget allows, of others only what makes the step worth its while. A part of it is kept for prompts
//! that end in this very step, so that a long one does not make short ones wait for all its chunks.
//!
//! Invariant: within a priority nobody is passed over more than [`PATIENCE`] times, and nothing is ever preempted, since a prompt gets all its
//! blocks before it begins.

use worker::{FULL_STEP, Plan, Planner, QueueView, SeqId, SeqView};

/// Admissions that a waiting prompt yields to cheaper ones before it goes first: enough to use a warm prefix while it is warm,
/// few enough to add only some prompts' time to anyone's wait.
const PATIENCE: u32 = 8;

/// One part in this many of a step is for prompts that end in this step: little for the long prompt beside them, which takes
/// what they leave.
const QUICK_SHARE: u32 = 4;

/// See the module's head.
pub struct PrefillPlanner;

/// A prompt that could go on, or begin, in this step.
struct Candidate {
    id: SeqId,
    rest: u32,
    waits: bool,
    /// Out of patience: nobody may overtake it.
    next: bool,
    chunk: u32,
}

impl Planner for PrefillPlanner {
    fn plan(&mut self, view: &QueueView<'_>) -> Plan {
        let mut candidates = candidates(view);
        let tokens = candidates.first().map_or(0, |first| first.rest).max(FULL_STEP).min(view.token_budget);
        let quick = give_quick(&mut candidates, tokens / QUICK_SHARE);
        give_in_order(&mut candidates, tokens - quick);
        let mut plan = Plan::default();
        for candidate in candidates.iter().filter(|candidate| candidate.chunk > 0) {
            if candidate.waits {
                plan.admit.push(candidate.id);
            }
            plan.rows.push((candidate.id, candidate.chunk));
        }
        plan
    }
}

/// Who runs, then who waits as far as there are slots and blocks.
fn candidates(view: &QueueView<'_>) -> Vec<Candidate> {
    let running =
        view.running.iter().map(|seq| Candidate { id: seq.id, rest: seq.pending, waits: false, next: false, chunk: 0 });
    let mut candidates: Vec<_> = running.collect();
    let mut slots = view.slots_total.saturating_sub(view.slots_used());
    let mut blocks = view.blocks_available;
    for seq in by_preference(view.waiting) {
        // Who is next waits for its blocks; going round it would starve long prompts.
        if slots == 0 || seq.blocks_missing > blocks {
            break;
        }
        slots -= 1;
        blocks -= seq.blocks_missing;
        let (rest, next) = (seq.needs(), seq.passed_over >= PATIENCE);
        candidates.push(Candidate { id: seq.id, rest, waits: true, next, chunk: 0 });
    }
    candidates
}

/// Gives whole prompts their tokens out of `share`; returns how many.
fn give_quick(candidates: &mut [Candidate], share: u32) -> u32 {
    let mut left = share;
    for candidate in candidates {
        if candidate.rest <= left {
            candidate.chunk = candidate.rest;
            left -= candidate.rest;
        } else if candidate.next {
            break;
        }
    }
    share - left
}

/// Gives `tokens` to those who have none yet, earlier ones first.
fn give_in_order(candidates: &mut [Candidate], mut tokens: u32) {
    for candidate in candidates.iter_mut().filter(|candidate| candidate.chunk == 0) {
        candidate.chunk = candidate.rest.min(tokens);
        tokens -= candidate.chunk;
    }
}

/// By priority; within one, those out of patience by arrival, then by the share of the prompt that is cached, then by arrival.
fn by_preference(waiting: &[SeqView]) -> Vec<&SeqView> {
    let mut order: Vec<_> = waiting.iter().collect();
    // Sorting is stable and `waiting` is in order of priority and arrival.
    order.sort_by_key(|seq| {
        let cached_percent = u64::from(seq.cached) * 100 / u64::from(seq.pending.max(1));
        let rank = if seq.passed_over >= PATIENCE { 0 } else { 101 - cached_percent };
        (seq.id.priority, rank)
    });
    order
}

#[cfg(test)]
mod tests;
