//! Who runs next on D: every running sequence decodes, then whoever waits is admitted and local prompts are computed in what is
//! left of the token budget, a few tokens at a time while somebody decodes.
//!
//! Invariant: whoever stands first (by priority, then arrival) always gets its block, if need be from the last one, which is
//! recomputed later; so whoever runs ends.

use worker::{FULL_STEP, Plan, Planner, QueueView, SeqId, SeqView};

/// See the module's head.
#[derive(Clone, Copy, Debug)]
pub struct DecodePlanner {
    /// Prompt tokens of a step in which somebody decodes; 0 = as many as fit. All answers that run wait for them.
    pub long_prefill_token_threshold: u32,
}

impl Default for DecodePlanner {
    /// Half a [`FULL_STEP`]: nearly as fast per token, and half as long to wait for.
    fn default() -> Self {
        Self { long_prefill_token_threshold: FULL_STEP / 2 }
    }
}

impl Planner for DecodePlanner {
    fn plan(&mut self, view: &QueueView<'_>) -> Plan {
        let mut room = Room::new(view);
        room.keep_running(view);
        room.decode(view);
        room.prompt_tokens = self.prompt_tokens(view, room.plan.rows.is_empty());
        room.compute_prompts(view);
        room.admit(view);
        room.plan
    }
}

impl DecodePlanner {
    /// Prompt tokens that this step may compute; `undisturbed`: nobody decodes.
    fn prompt_tokens(&self, view: &QueueView<'_>, undisturbed: bool) -> u32 {
        let prompts = view.running.iter().filter(|seq| seq.pending > 1).chain(view.waiting);
        match self.long_prefill_token_threshold {
            _ if undisturbed => prompts.map(SeqView::needs).next().unwrap_or(0).max(FULL_STEP),
            0 => u32::MAX,
            threshold => threshold,
        }
    }
}

/// What is left to give in this step, and what was given.
struct Room {
    plan: Plan,
    blocks: u32,
    tokens: u32,
    /// For sequences that need more than one, as far as `tokens` reach.
    prompt_tokens: u32,
    slots: u32,
    /// Running sequences that get no block in this step.
    stalled: Vec<SeqId>,
    /// Sequences with blocks, earliest first: the last one is the next to be preempted.
    holders: Vec<(SeqId, u32)>,
}

impl Room {
    fn new(view: &QueueView<'_>) -> Self {
        let both = view.running.iter().chain(view.waiting);
        let mut holders: Vec<_> = both.filter(|seq| seq.blocks_held > 0).map(|seq| (seq.id, seq.blocks_held)).collect();
        holders.sort_unstable();
        Self {
            plan: Plan::default(),
            blocks: view.blocks_available,
            tokens: view.token_budget,
            prompt_tokens: 0,
            slots: view.slots_total.saturating_sub(view.slots_used()),
            stalled: Vec::new(),
            holders,
        }
    }

    /// Finds the next block for everyone who runs, earliest first.
    fn keep_running(&mut self, view: &QueueView<'_>) {
        for seq in view.running {
            if self.plan.preempt.contains(&seq.id) {
                continue;
            }
            if self.find_blocks(seq.id, seq.blocks_missing) {
                self.blocks -= seq.blocks_missing;
            } else {
                self.stalled.push(seq.id);
            }
        }
    }

    /// Preempts those behind `id`, the last first, until there are `blocks`.
    fn find_blocks(&mut self, id: SeqId, blocks: u32) -> bool {
        while self.blocks < blocks {
            match self.holders.last().copied() {
                Some((victim, held)) if victim > id => {
                    self.holders.pop();
                    self.plan.preempt.push(victim);
                    self.blocks += held;
                }
                _ => return false,
            }
        }
        true
    }

    /// One token for everyone who decodes.
    fn decode(&mut self, view: &QueueView<'_>) {
        for seq in view.running.iter().filter(|seq| seq.pending == 1) {
            self.go_on(seq);
        }
    }

    /// Chunks of running prompts, earliest first.
    fn compute_prompts(&mut self, view: &QueueView<'_>) {
        for seq in view.running.iter().filter(|seq| seq.pending > 1) {
            self.go_on(seq);
        }
    }

    fn go_on(&mut self, seq: &SeqView) {
        if !self.plan.preempt.contains(&seq.id) && !self.stalled.contains(&seq.id) {
            self.row(seq.id, seq.pending);
        }
    }

    /// Admits in order of priority and arrival; the first that does not fit ends it, so that a large one is not starved by small ones.
    fn admit(&mut self, view: &QueueView<'_>) {
        if !self.plan.preempt.is_empty() || !self.stalled.is_empty() {
            return;
        }
        // What those who run will probably still ask for: who is admitted into it is preempted before long, or preempts others.
        let mut margin: u32 = view.running.iter().map(|seq| seq.growth).fold(0, u32::saturating_add);
        for seq in view.waiting {
            // Alone, a sequence always may try: it was checked that it fits.
            let alone = view.running.is_empty() && self.plan.admit.is_empty();
            if alone {
                self.find_blocks(seq.id, seq.blocks_cached + seq.blocks_missing);
            }
            margin = margin.saturating_add(seq.growth);
            let fits = seq.slots <= self.slots && seq.blocks_missing.saturating_add(margin) <= self.blocks;
            if self.tokens == 0 || !(fits || alone) || self.plan.preempt.contains(&seq.id) {
                break;
            }
            self.blocks = self.blocks.saturating_sub(seq.blocks_missing);
            self.slots = self.slots.saturating_sub(seq.slots);
            // A prompt whose turn comes in a later step keeps its room and holds up nobody whose KV is here.
            if self.share(seq.needs()) > 0 {
                self.plan.admit.push(seq.id);
                self.row(seq.id, seq.needs());
            }
        }
    }

    /// How many of `pending` tokens this step can compute.
    fn share(&self, pending: u32) -> u32 {
        if pending > 1 { pending.min(self.prompt_tokens).min(self.tokens) } else { self.tokens.min(1) }
    }

    fn row(&mut self, id: SeqId, pending: u32) {
        let tokens = self.share(pending);
        if tokens > 0 {
            self.tokens -= tokens;
            if pending > 1 {
                self.prompt_tokens -= tokens;
            }
            self.plan.rows.push((id, tokens));
        }
    }
}

#[cfg(test)]
mod tests;
