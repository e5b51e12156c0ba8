//! Which prompts an instance has probably cached: block hashes it was sent, the least recently used forgotten first.
//!
//! An approximation that is corrected by each reply; being wrong costs time, never text.

use std::collections::{BTreeMap, HashMap};

use kv::BlockHash;

/// Tokens per hash here. Instances choose their own block sizes; this is only the grain of the comparison.
pub(crate) const PREFIX_BLOCK: usize = 16;

/// Hashes remembered per instance: half a million tokens, about 4 MB.
const HASHES_MAX: usize = 32_768;

#[derive(Clone, Debug, Default)]
pub(crate) struct PrefixIndex {
    used: HashMap<BlockHash, u64>,
    by_use: BTreeMap<u64, BlockHash>,
    clock: u64,
}

impl PrefixIndex {
    /// Leading blocks of `chain` that are probably cached. Whoever has a block has those before it, which are forgotten later: a few
    /// lookups find the last.
    pub(crate) fn matched(&self, chain: &[BlockHash]) -> usize {
        chain.partition_point(|hash| self.used.contains_key(hash))
    }

    /// The instance is about to compute or receive `chain`.
    pub(crate) fn insert(&mut self, chain: &[BlockHash]) {
        // Backwards, so that the front of a prompt is forgotten last: without it the rest cannot match.
        for &hash in chain.iter().take(HASHES_MAX).rev() {
            self.clock += 1;
            if let Some(before) = self.used.insert(hash, self.clock) {
                self.by_use.remove(&before);
            }
            self.by_use.insert(self.clock, hash);
        }
        while self.used.len() > HASHES_MAX {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.used.remove(&oldest);
        }
    }

    /// The instance said that only the first `blocks` of `chain` were cached.
    pub(crate) fn correct(&mut self, chain: &[BlockHash], blocks: usize) {
        for hash in chain.iter().skip(blocks) {
            if let Some(tick) = self.used.remove(hash) {
                self.by_use.remove(&tick);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chain(ids: impl IntoIterator<Item = u16>) -> Vec<BlockHash> {
        ids.into_iter().map(|id| BlockHash(u128::from(id).to_le_bytes())).collect()
    }

    #[test]
    fn matches_leading_blocks_only() {
        let mut index = PrefixIndex::default();
        index.insert(&chain([1, 2, 3]));
        for (asked, expected) in [(vec![1, 2, 3, 4], 3), (vec![1, 9, 3], 1), (vec![2, 3], 2), (vec![9], 0), (vec![], 0)]
        {
            assert_eq!(index.matched(&chain(asked.clone())), expected, "{asked:?}");
        }
    }

    #[test]
    fn a_reply_corrects_it() {
        let mut index = PrefixIndex::default();
        index.insert(&chain([1, 2, 3]));
        index.correct(&chain([1, 2, 3]), 1);
        assert_eq!(index.matched(&chain([1, 2, 3])), 1);
    }

    /// Prompts that share beginnings, more than are remembered, some corrected: looking up by halves finds what looking at each would.
    #[test]
    fn whoever_has_a_block_has_those_before_it() {
        let prompt = |n: u16| {
            chain(
                (0..300)
                    .map(|block| if block < 20 * (n % 10) { n % 10 * 300 + block } else { 3_000 + n * 300 + block }),
            )
        };
        let mut index = PrefixIndex::default();
        for n in (0..190).chain(0..50) {
            let asked = prompt(n);
            if n % 7 == 0 {
                index.correct(&asked, usize::from(n));
            }
            index.insert(&asked);
        }
        let found: Vec<usize> = (0..190)
            .map(prompt)
            .map(|prompt| {
                let matched = index.matched(&prompt);
                assert_eq!(matched, prompt.iter().take_while(|hash| index.used.contains_key(hash)).count());
                matched
            })
            .collect();
        assert!(found.contains(&300) && found.iter().any(|matched| *matched < 300), "{found:?}");
    }

    proptest! {
        #[test]
        fn stays_bounded_and_consistent(inserts in prop::collection::vec((0u16..2000, 1u16..400), 1..20)) {
            let mut index = PrefixIndex::default();
            for (start, len) in inserts {
                let chain = chain(start..start + len);
                index.insert(&chain);
                prop_assert_eq!(index.matched(&chain), chain.len());
                prop_assert_eq!(index.used.len(), index.by_use.len());
                prop_assert!(index.used.len() <= HASHES_MAX);
            }
        }
    }
}
