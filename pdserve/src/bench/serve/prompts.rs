//! Prompts of an exact length: token ids drawn from seeds, so that a run can be repeated and nothing is shared by accident.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Ids below this are often special tokens.
const FIRST_ID: u32 = 100;

/// A prompt as the seeds and lengths of its segments; segments of equal seed begin with equal tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prompt {
    segments: Vec<(u64, u32)>,
}

impl Prompt {
    pub(super) fn len(&self) -> u32 {
        self.segments.iter().map(|&(_, len)| len).sum()
    }

    /// The ids, all below `vocab`.
    pub(super) fn tokens(&self, vocab: u32) -> Vec<u32> {
        let first = if vocab > 2 * FIRST_ID { FIRST_ID } else { 0 };
        let mut tokens = Vec::with_capacity(self.len() as usize);
        for &(seed, len) in &self.segments {
            let mut random = StdRng::seed_from_u64(seed);
            tokens.extend((0..len).map(|_| random.random_range(first..vocab.max(first + 1))));
        }
        tokens
    }
}

/// Makes the prompts of one round.
#[derive(Debug, Clone)]
pub(super) struct PromptSource {
    seed: u64,
    round: u64,
    shared_prefix: u32,
    next: u64,
}

impl PromptSource {
    /// `shared_prefix`: leading tokens that all prompts of all rounds have in common.
    pub(super) fn new(seed: u64, round: u32, shared_prefix: u32) -> Self {
        Self { seed, round: u64::from(round), shared_prefix, next: 0 }
    }

    /// A prompt that no other call and no other round gets, apart from the shared prefix.
    pub(super) fn unique(&mut self, len: u32) -> Prompt {
        self.next += 1;
        let shared = self.shared_prefix.min(len);
        let own = mix(mix(self.seed ^ self.round.rotate_left(32)) ^ self.next);
        let segments = [(mix(self.seed), shared), (own, len - shared)];
        Prompt { segments: segments.into_iter().filter(|&(_, len)| len > 0).collect() }
    }

    /// A prompt of blocks that are equal where their ids are, within a round. `block` > 0.
    pub(super) fn of_blocks(&self, ids: &[u64], block: u32, len: u32) -> Prompt {
        let salt = mix(self.seed ^ self.round.rotate_left(32));
        let starts = (0..len).step_by(block as usize);
        let last = ids.last().copied().unwrap_or_default();
        let segments = starts.enumerate().map(|(index, start)| {
            let id = ids.get(index).copied().unwrap_or(last.wrapping_add(index as u64));
            (mix(salt ^ mix(id)), block.min(len - start))
        });
        Prompt { segments: segments.collect() }
    }
}

/// One step of SplitMix64: spreads neighbouring numbers over all bits.
pub(super) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: u32 = 1000;

    fn common_prefix(a: &[u32], b: &[u32]) -> usize {
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn prompts_have_their_length_and_share_only_what_is_asked_for() {
        for (shared, len) in [(0, 64), (16, 64), (64, 64), (100, 64)] {
            let mut source = PromptSource::new(7, 0, shared);
            let (a, b) = (source.unique(len).tokens(VOCAB), source.unique(len).tokens(VOCAB));
            let other_round = PromptSource::new(7, 1, shared).unique(len).tokens(VOCAB);
            let expected = shared.min(len) as usize;
            assert_eq!((a.len(), b.len()), (len as usize, len as usize));
            // Two random tokens may agree, three in a row do not with this seed.
            assert!((expected..expected + 3).contains(&common_prefix(&a, &b)));
            assert!((expected..expected + 3).contains(&common_prefix(&a, &other_round)));
        }
    }

    #[test]
    fn a_seed_repeats_its_prompts() {
        let tokens = |seed| PromptSource::new(seed, 3, 8).unique(32).tokens(VOCAB);
        assert_eq!(tokens(1), tokens(1));
        assert_ne!(tokens(1), tokens(2));
        assert!(tokens(1).iter().all(|id| (FIRST_ID..VOCAB).contains(id)));
    }

    #[test]
    fn equal_block_ids_are_equal_tokens() {
        let source = PromptSource::new(1, 0, 0);
        let a = source.of_blocks(&[5, 6, 7], 8, 20).tokens(VOCAB);
        let b = source.of_blocks(&[5, 6, 9], 8, 24).tokens(VOCAB);
        assert_eq!((a.len(), b.len()), (20, 24));
        assert_eq!(a[..16], b[..16]);
        assert_ne!(a[16..20], b[16..20]);
    }

    #[test]
    fn a_tiny_vocabulary_is_never_left() {
        let tokens = PromptSource::new(1, 0, 0).unique(50).tokens(7);
        assert!(tokens.iter().all(|&id| id < 7));
    }
}
