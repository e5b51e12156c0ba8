//! The blocks of one sequence, in token order.

use crate::BlockId;
use crate::pool::{BlockPool, BlockRef, Owner};

/// Holds a sequence's blocks: block `i` has the tokens from `i * block_size` on. Dropping it gives all of them back.
///
/// Blocks are given back last first, so that the cache evicts the end of a prefix before its beginning.
pub struct BlockTable {
    block_size: u32,
    blocks: Vec<BlockRef>,
    /// `blocks[i].id()`, in the form that the engine reads every step.
    ids: Vec<BlockId>,
}

impl BlockTable {
    /// An empty table. `block_size` is in tokens.
    pub fn new(block_size: u32) -> Self {
        Self { block_size, blocks: Vec::new(), ids: Vec::new() }
    }

    pub fn push(&mut self, block: BlockRef) {
        self.ids.push(block.id());
        self.blocks.push(block);
    }

    pub fn ids(&self) -> &[BlockId] {
        &self.ids
    }

    pub fn blocks(&self) -> &[BlockRef] {
        &self.blocks
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Tokens that fit into the blocks held.
    pub fn capacity_tokens(&self) -> usize {
        self.blocks.len() * self.block_size as usize
    }

    /// How many more blocks a sequence of `tokens` tokens needs.
    pub fn blocks_needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size.max(1) as usize).saturating_sub(self.blocks.len())
    }

    /// A second table on the same blocks. Before either writes into a block, it asks [`BlockRef::is_shared`] and, if so, copies
    /// the block and puts the copy in its place with [`BlockTable::replace`].
    pub fn fork(&self) -> Self {
        Self { block_size: self.block_size, blocks: self.blocks.clone(), ids: self.ids.clone() }
    }

    /// Puts `block` at `index` and returns what stood there; gives `block` back to the caller if there is no such place.
    pub fn replace(&mut self, index: usize, block: BlockRef) -> Result<BlockRef, BlockRef> {
        match (self.blocks.get_mut(index), self.ids.get_mut(index)) {
            (Some(place), Some(id)) => {
                *id = block.id();
                Ok(std::mem::replace(place, block))
            }
            _ => Err(block),
        }
    }

    /// Notes in the pool's ledger who holds these blocks now, and for what.
    pub fn reassign(&mut self, pool: &BlockPool, owner: Owner) {
        pool.reassign(&mut self.blocks, owner);
    }

    /// Keeps the first `blocks` blocks.
    pub fn truncate(&mut self, blocks: usize) {
        while self.blocks.len() > blocks {
            self.blocks.pop();
            self.ids.pop();
        }
    }

    pub fn clear(&mut self) {
        self.truncate(0);
    }
}

impl Extend<BlockRef> for BlockTable {
    fn extend<T: IntoIterator<Item = BlockRef>>(&mut self, blocks: T) {
        blocks.into_iter().for_each(|block| self.push(block));
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Phase;
    use types::RequestKey;

    fn owner() -> Owner {
        Owner { key: RequestKey { request: "r".into(), epoch: 0 }, phase: Phase::Computing }
    }

    fn table(pool: &BlockPool, blocks: usize) -> BlockTable {
        let mut table = BlockTable::new(pool.block_size());
        table.extend(pool.allocate(blocks, owner()).unwrap());
        table
    }

    #[test]
    fn counts_blocks_and_tokens() {
        let pool = BlockPool::new(8, 4);
        let table = table(&pool, 2);
        assert_eq!((table.len(), table.capacity_tokens()), (2, 8));
        for (tokens, needed) in [(0, 0), (8, 0), (9, 1), (12, 1), (13, 2)] {
            assert_eq!(table.blocks_needed(tokens), needed, "{tokens} tokens");
        }
    }

    #[test]
    fn a_fork_shares_until_a_block_is_replaced() {
        let pool = BlockPool::new(8, 4);
        let first = table(&pool, 2);
        let mut second = first.fork();
        assert_eq!(pool.stats().leased, 2);
        assert!(first.blocks()[1].is_shared());
        let copy = pool.allocate(1, owner()).unwrap().remove(0);
        drop(second.replace(1, copy).ok());
        assert!(!first.blocks()[1].is_shared());
        assert!(first.blocks()[0].is_shared());
        assert_ne!(first.ids()[1], second.ids()[1]);
        drop((first, second));
        assert_eq!(pool.stats().free, 8);
    }

    #[test]
    fn truncate_gives_back_the_end() {
        let pool = BlockPool::new(8, 4);
        let mut table = table(&pool, 3);
        let kept = table.ids()[0];
        table.truncate(1);
        assert_eq!((table.ids(), pool.stats().free), (&[kept][..], 7));
    }
}
