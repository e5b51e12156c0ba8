//! Who runs next on P: prompts that have begun, then those that the prefix cache makes cheap, until the token budget is full.
//!
//! Invariant: nobody is passed over more than [`PATIENCE`] times, and nothing is ever preempted, since a prompt gets all its
//! blocks before it begins.

use worker::{Plan, Planner, QueueView, SeqView};

/// Admissions that a waiting prompt yields to cheaper ones before it goes first: enough to use a warm prefix while it is warm,
/// few enough to add only some prompts' time to anyone's wait.
const PATIENCE: u32 = 8;

/// See the module's head.
pub struct PrefillPlanner;

impl Planner for PrefillPlanner {
    fn plan(&mut self, view: &QueueView<'_>) -> Plan {
        let mut plan = Plan::default();
        let mut tokens = view.token_budget;
        for seq in view.running {
            let chunk = seq.pending.min(tokens);
            tokens -= chunk;
            plan.rows.push((seq.id, chunk));
        }
        let mut slots = view.slots_total.saturating_sub(view.slots_used());
        let mut blocks = view.blocks_available;
        for seq in by_preference(view.waiting) {
            // Who is next waits for its blocks; going round it would starve long prompts.
            if tokens == 0 || slots == 0 || seq.blocks_missing > blocks {
                break;
            }
            let chunk = seq.pending.saturating_sub(seq.cached).max(1).min(tokens);
            tokens -= chunk;
            slots -= 1;
            blocks -= seq.blocks_missing;
            plan.admit.push(seq.id);
            plan.rows.push((seq.id, chunk));
        }
        plan.rows.retain(|(_, chunk)| *chunk > 0);
        plan
    }
}

/// Those out of patience by arrival, then by the share of the prompt that is cached, then by arrival.
fn by_preference(waiting: &[SeqView]) -> Vec<&SeqView> {
    let mut order: Vec<_> = waiting.iter().collect();
    // Sorting is stable and `waiting` is in order of arrival.
    order.sort_by_key(|seq| {
        let cached_percent = u64::from(seq.cached) * 100 / u64::from(seq.pending.max(1));
        if seq.passed_over >= PATIENCE { 0 } else { 101 - cached_percent }
    });
    order
}

#[cfg(test)]
mod tests;
