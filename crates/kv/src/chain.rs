//! Names of cached blocks: a keyed hash chain over their tokens.
//!
//! A block's hash covers its own tokens and, through its parent, every token before it. The key covers model and tenant, so
//! equal tokens of another model or tenant never share a name, and nobody outside can compute one.

use std::fmt;

use types::TokenId;

/// Separates our keys from any other use of blake3 on the same input.
const CONTEXT: &str = "pdserve kv block chain, version 1";

/// Name of a full block together with everything before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub [u8; 16]);

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Where a chain starts: the model and the tenant whose cache it names.
#[derive(Clone)]
pub struct ChainRoot {
    key: [u8; 32],
}

impl ChainRoot {
    /// `digest` is the model's, `salt` the tenant's (empty = shared by all who pass none).
    pub fn new(digest: &str, salt: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&(digest.len() as u64).to_le_bytes());
        hasher.update(digest.as_bytes());
        hasher.update(salt);
        Self { key: *hasher.finalize().as_bytes() }
    }

    /// Hash of the full block that holds `tokens` and follows `parent` (none for the first block).
    pub fn next(&self, parent: Option<BlockHash>, tokens: &[TokenId]) -> BlockHash {
        let mut input = Vec::with_capacity(16 + size_of_val(tokens));
        input.extend(parent.map_or([0; 16], |parent| parent.0));
        input.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        let mut hash = [0; 16];
        hash.copy_from_slice(&blake3::keyed_hash(&self.key, &input).as_bytes()[..16]);
        BlockHash(hash)
    }
}

/// Hashes of the full blocks of `tokens`; a last partial block has none.
pub fn hash_chain(root: &ChainRoot, tokens: &[TokenId], block_size: usize) -> Vec<BlockHash> {
    let mut parent = None;
    let blocks = tokens.chunks_exact(block_size.max(1));
    blocks.map(|block| *parent.insert(root.next(parent, block))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(digest: &str, salt: &[u8], tokens: &[TokenId]) -> Vec<BlockHash> {
        hash_chain(&ChainRoot::new(digest, salt), tokens, 2)
    }

    #[test]
    fn only_full_blocks_have_a_hash() {
        assert_eq!(chain("m", b"", &[1]).len(), 0);
        assert_eq!(chain("m", b"", &[1, 2, 3]).len(), 1);
        assert_eq!(chain("m", b"", &[1, 2, 3, 4]).len(), 2);
    }

    #[test]
    fn a_hash_is_the_keyed_one_of_parent_and_tokens() {
        let (root, parent) = (ChainRoot::new("m", b"s"), BlockHash([7; 16]));
        for (before, tokens) in [(None, vec![1, 2, 3]), (Some(parent), (0..1000).collect()), (Some(parent), vec![])] {
            let mut hasher = blake3::Hasher::new_keyed(&root.key);
            hasher.update(&before.map_or([0; 16], |parent| parent.0));
            for token in &tokens {
                hasher.update(&TokenId::to_le_bytes(*token));
            }
            let mut expected = [0; 16];
            hasher.finalize_xof().fill(&mut expected);
            assert_eq!(root.next(before, &tokens), BlockHash(expected));
        }
    }

    #[test]
    fn a_prefix_keeps_its_hashes() {
        assert_eq!(chain("m", b"", &[1, 2, 3, 4])[0], chain("m", b"", &[1, 2])[0]);
    }

    #[test]
    fn every_input_changes_the_last_hash() {
        let base = *chain("m", b"s", &[1, 2, 3, 4]).last().unwrap();
        let others = [
            chain("n", b"s", &[1, 2, 3, 4]),
            chain("m", b"t", &[1, 2, 3, 4]),
            chain("ms", b"", &[1, 2, 3, 4]),
            chain("m", b"s", &[0, 2, 3, 4]),
            chain("m", b"s", &[1, 2, 3, 5]),
            chain("m", b"s", &[3, 4]),
        ];
        for (case, other) in others.iter().enumerate() {
            assert_ne!(*other.last().unwrap(), base, "case {case}");
        }
    }
}
