//! A pretended instance: a queue of prompts, a cache, and steps that cost what a graphics processor's do with a model of some 8
//! billion parameters.

use std::collections::{BTreeMap, HashMap};

use scheduler::pairing::{Load, Step};
use types::Limits;

use crate::bench::trace::HASH_BLOCK;

const PREFILL_TOKEN_SECONDS: f64 = 1e-4;
const DECODE_STEP_SECONDS: f64 = 0.010;
const DECODE_ROW_SECONDS: f64 = 0.0002;
/// Hand-over that outlasts the computation.
pub(super) const EXPOSED_SECONDS: f64 = 2e-3;
const BLOCK_SIZE: u32 = 16;
const KV_TOKENS: u32 = 1 << 19;

pub(super) fn description() -> String {
    format!(
        "pretended: {:.0} us per prompt token, decode step {:.0} ms + {:.1} ms per sequence, KV of {KV_TOKENS} tokens",
        PREFILL_TOKEN_SECONDS * 1e6,
        DECODE_STEP_SECONDS * 1e3,
        DECODE_ROW_SECONDS * 1e3
    )
}

pub(super) fn prefill_seconds(tokens: u32) -> f64 {
    f64::from(tokens) * PREFILL_TOKEN_SECONDS
}

fn decode_step_seconds(rows: u32) -> f64 {
    DECODE_STEP_SECONDS + f64::from(rows) * DECODE_ROW_SECONDS
}

pub(super) fn limits() -> Limits {
    Limits { block_size: BLOCK_SIZE, blocks_total: KV_TOKENS / BLOCK_SIZE, ..Limits::default() }
}

pub(super) fn idle() -> Load {
    let blocks = KV_TOKENS / BLOCK_SIZE;
    Load { blocks_available: blocks, blocks_total: blocks, ..Load::default() }
}

/// Steps by which the policy learns what an instance charges.
pub(super) fn steps() -> [Step; 4] {
    let prompt = |tokens| Step { prefill_tokens: tokens, decode_rows: 0, seconds: prefill_seconds(tokens) };
    let decode = |rows| Step { prefill_tokens: 0, decode_rows: rows, seconds: decode_step_seconds(rows) };
    [prompt(1_000), prompt(8_000), decode(1), decode(33)]
}

#[derive(Default)]
pub(super) struct Instance {
    /// When the last prompt of its queue will be computed.
    free_at: f64,
    rows: u32,
    cache: Cache,
}

impl Instance {
    /// Queues a prompt: when it will be computed, and how many of its tokens were cached.
    pub(super) fn compute(&mut self, now: f64, prompt: &[u64], tokens: u32) -> (f64, u32) {
        let cached = (self.cache.use_prompt(prompt) * HASH_BLOCK).min(tokens.saturating_sub(1));
        self.free_at = self.free_at.max(now) + prefill_seconds(tokens - cached);
        (self.free_at, cached)
    }

    /// Takes over the KV of a prompt that another has computed.
    pub(super) fn receive(&mut self, prompt: &[u64]) {
        self.cache.use_prompt(prompt);
    }

    /// One more sequence decodes here: seconds per token.
    pub(super) fn decode(&mut self) -> f64 {
        self.rows += 1;
        decode_step_seconds(self.rows)
    }

    pub(super) fn finish(&mut self) {
        self.rows -= 1;
    }
}

/// Blocks of the trace by their last use; the least recently used go first, ends of prompts before their beginnings.
#[derive(Default)]
struct Cache {
    used: HashMap<u64, u64>,
    by_use: BTreeMap<u64, u64>,
    clock: u64,
}

impl Cache {
    /// Leading blocks of the prompt that are there. Afterwards all of it is.
    fn use_prompt(&mut self, prompt: &[u64]) -> u32 {
        let found = prompt.iter().take_while(|block| self.used.contains_key(block)).count();
        for &block in prompt.iter().rev() {
            self.clock += 1;
            if let Some(before) = self.used.insert(block, self.clock) {
                self.by_use.remove(&before);
            }
            self.by_use.insert(self.clock, block);
        }
        while self.used.len() > (KV_TOKENS / HASH_BLOCK) as usize
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.used.remove(&oldest);
        }
        found as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_queue_and_what_was_computed_is_cached() {
        let mut instance = Instance::default();
        assert_eq!(instance.compute(1.0, &[1, 2], 1_024), (1.0 + prefill_seconds(1_024), 0));
        let (done, cached) = instance.compute(1.0, &[1, 3], 1_000);
        assert_eq!((cached, done), (512, 1.0 + prefill_seconds(1_024) + prefill_seconds(488)));
        assert_eq!(instance.compute(9.0, &[1, 2], 1_024).1, 1_023, "the last token is always computed");
    }

    #[test]
    fn the_oldest_ends_are_forgotten_first() {
        let mut cache = Cache::default();
        let most = u64::from(KV_TOKENS / HASH_BLOCK);
        cache.use_prompt(&(0..most).collect::<Vec<_>>());
        cache.use_prompt(&[most, most + 1]);
        assert_eq!(cache.use_prompt(&(0..most).collect::<Vec<_>>()), most as u32 - 2);
    }
}
