//! Random operation sequences against a plain model, and the few cases that random ones would rarely meet.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::{BlockTable, ChainRoot, hash_chain};

const BLOCK_SIZE: u32 = 2;
const BLOCKS: u32 = 6;

fn owner(request: &str, phase: Phase) -> Owner {
    Owner { key: RequestKey { request: request.into(), epoch: 0 }, phase }
}

fn hash(byte: u8) -> BlockHash {
    BlockHash([byte; 16])
}

/// What a test does to the pool. A sequence is spelt in letters, one per block, so that short random words share prefixes.
#[derive(Clone, Debug)]
enum Op {
    /// What a worker does with a prompt: look up, allocate the rest, publish all.
    Compute(Vec<u8>),
    /// Blocks that are never published.
    Allocate(usize),
    Lookup(Vec<u8>),
    Fork(usize),
    Truncate(usize, usize),
    Reassign(usize),
    Drop(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let word = || prop::collection::vec(0..2u8, 1..4);
    prop_oneof![
        4 => word().prop_map(Op::Compute),
        1 => (0..5usize).prop_map(Op::Allocate),
        2 => word().prop_map(Op::Lookup),
        1 => any::<usize>().prop_map(Op::Fork),
        1 => (any::<usize>(), 0..3usize).prop_map(|(table, blocks)| Op::Truncate(table, blocks)),
        1 => any::<usize>().prop_map(Op::Reassign),
        3 => any::<usize>().prop_map(Op::Drop),
    ]
}

/// The pool beside what must be true of it.
struct Model {
    pool: BlockPool,
    root: ChainRoot,
    tables: Vec<BlockTable>,
    /// The word whose last letter was last computed into a block, absent when the block was handed out for something else.
    content: HashMap<BlockId, Vec<u8>>,
}

impl Model {
    fn new() -> Self {
        let pool = BlockPool::new(BLOCKS, BLOCK_SIZE);
        Self { pool, root: ChainRoot::new("model", b""), tables: Vec::new(), content: HashMap::new() }
    }

    fn held(&self) -> HashSet<BlockId> {
        self.tables.iter().flat_map(|table| table.ids().iter().copied()).collect()
    }

    fn tokens(word: &[u8]) -> Vec<TokenId> {
        word.iter().flat_map(|&letter| [TokenId::from(letter); BLOCK_SIZE as usize]).collect()
    }

    fn lookup(&mut self, word: &[u8]) -> BlockTable {
        let tokens = Self::tokens(word);
        let chain = hash_chain(&self.root, &tokens, BLOCK_SIZE as usize);
        let expected = self.pool.cached_len(&chain, &tokens);
        let mut table = BlockTable::new(BLOCK_SIZE);
        table.extend(self.pool.lookup(&chain, &tokens, owner("r", Phase::Landing)));
        assert_eq!(table.capacity_tokens(), expected);
        for (index, id) in table.ids().iter().enumerate() {
            assert_eq!(self.content.get(id), Some(&word[..=index].to_vec()), "found a block with other content");
        }
        table
    }

    fn allocate(&mut self, count: usize, table: &mut BlockTable) -> bool {
        let (held, stats) = (self.held(), self.pool.stats());
        let room = (stats.free + stats.cached) as usize;
        match self.pool.allocate(count, owner("r", Phase::Computing)) {
            Ok(blocks) => {
                let distinct: HashSet<_> = blocks.iter().map(BlockRef::id).collect();
                assert_eq!(distinct.len(), count);
                assert!(distinct.is_disjoint(&held), "a held block was handed out");
                assert!(table.ids().iter().all(|id| !distinct.contains(id)), "a held block was handed out");
                assert!(blocks.iter().all(|block| !block.is_shared()));
                distinct.iter().for_each(|id| drop(self.content.remove(id)));
                table.extend(blocks);
                true
            }
            Err(full) => {
                assert!(count > room, "{full}");
                false
            }
        }
    }

    fn compute(&mut self, word: &[u8]) {
        let mut table = self.lookup(word);
        if !self.allocate(word.len() - table.len(), &mut table) {
            return;
        }
        let tokens = Self::tokens(word);
        let chain = hash_chain(&self.root, &tokens, BLOCK_SIZE as usize);
        for (index, (block, tokens)) in table.blocks().iter().zip(tokens.chunks(BLOCK_SIZE as usize)).enumerate() {
            self.content.insert(block.id(), word[..=index].to_vec());
            let parent = index.checked_sub(1).map(|parent| chain[parent]);
            self.pool.publish(block, chain[index], parent, tokens);
        }
        let again = self.lookup(word);
        assert_eq!(again.len(), word.len(), "what is published and held can be found");
        self.tables.push(table);
    }

    fn pick(&self, index: usize) -> Option<usize> {
        index.checked_rem(self.tables.len())
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Compute(word) => self.compute(&word),
            Op::Allocate(count) => {
                let mut table = BlockTable::new(BLOCK_SIZE);
                self.allocate(count, &mut table);
                self.tables.push(table);
            }
            Op::Lookup(word) => {
                let table = self.lookup(&word);
                self.tables.push(table);
            }
            Op::Fork(index) => {
                let fork = self.pick(index).map(|index| self.tables[index].fork());
                self.tables.extend(fork);
            }
            Op::Truncate(index, blocks) => {
                if let Some(index) = self.pick(index) {
                    self.tables[index].truncate(blocks);
                }
            }
            Op::Reassign(index) => {
                if let Some(index) = self.pick(index) {
                    self.tables[index].reassign(&self.pool, owner("s", Phase::Decoding));
                }
            }
            Op::Drop(index) => {
                if let Some(index) = self.pick(index) {
                    self.tables.swap_remove(index);
                }
            }
        }
        self.check();
    }

    fn check(&self) {
        let stats = self.pool.stats();
        assert_eq!(stats.total, BLOCKS);
        assert_eq!(stats.free + stats.cached + stats.leased, stats.total);
        assert_eq!(stats.leased as usize, self.held().len());
        let references: usize = self.tables.iter().map(BlockTable::len).sum();
        let PhaseCounts { computing, landing, decoding, hand_over } = stats.references;
        assert_eq!((computing + landing + decoding + hand_over) as usize, references);
        let mut ledger: Vec<_> = self.pool.ledger().iter().map(|row| row.block).collect();
        let mut ids: Vec<_> = self.tables.iter().flat_map(|table| table.ids().iter().copied()).collect();
        ledger.sort();
        ids.sort();
        assert_eq!(ledger, ids);
    }
}

proptest! {
    #[test]
    fn any_sequence_of_operations_keeps_the_books(ops in prop::collection::vec(op(), 1..60)) {
        let mut model = Model::new();
        ops.into_iter().for_each(|op| model.apply(op));
        model.tables.clear();
        let stats = model.pool.stats();
        prop_assert_eq!((stats.leased, stats.free + stats.cached), (0, BLOCKS));
        prop_assert_eq!(stats.references, PhaseCounts::default());
        prop_assert!(model.pool.allocate(BLOCKS as usize, owner("r", Phase::Computing)).is_ok());
    }
}

#[test]
fn an_equal_hash_with_other_tokens_or_parent_is_not_believed() {
    let pool = BlockPool::new(4, BLOCK_SIZE);
    let block = pool.allocate(1, owner("r", Phase::Computing)).unwrap().remove(0);
    pool.publish(&block, hash(1), None, &[7, 8]);
    for (chain, tokens, found) in [
        (vec![hash(1)], vec![7, 8], 1),
        (vec![hash(1)], vec![7, 9], 0),
        (vec![hash(1)], vec![7], 0),
        (vec![hash(2)], vec![7, 8], 0),
        // The block has no parent, so it cannot stand in second place.
        (vec![hash(1), hash(1)], vec![7, 8, 7, 8], 1),
    ] {
        assert_eq!(pool.lookup(&chain, &tokens, owner("s", Phase::Landing)).len(), found, "{chain:?} {tokens:?}");
    }
}

#[test]
fn a_duplicate_stays_private() {
    let pool = BlockPool::new(4, BLOCK_SIZE);
    let blocks = pool.allocate(2, owner("r", Phase::Computing)).unwrap();
    blocks.iter().for_each(|block| pool.publish(block, hash(1), None, &[7, 8]));
    assert_eq!((blocks[0].is_shared(), blocks[1].is_shared()), (true, false));
    drop(blocks);
    let stats = pool.stats();
    assert_eq!((stats.cached, stats.free), (1, 3));
}

#[test]
fn the_end_of_a_dropped_table_is_evicted_first() {
    let pool = BlockPool::new(2, BLOCK_SIZE);
    let mut table = BlockTable::new(BLOCK_SIZE);
    table.extend(pool.allocate(2, owner("r", Phase::Computing)).unwrap());
    pool.publish(&table.blocks()[0], hash(1), None, &[1, 1]);
    pool.publish(&table.blocks()[1], hash(2), Some(hash(1)), &[2, 2]);
    drop(table);
    let _new = pool.allocate(1, owner("s", Phase::Computing)).unwrap();
    assert_eq!(pool.cached_len(&[hash(1), hash(2)], &[1, 1, 2, 2]), BLOCK_SIZE as usize);
}

#[test]
fn a_full_pool_says_so_and_keeps_what_it_has() {
    let pool = BlockPool::new(4, BLOCK_SIZE);
    let _held = pool.allocate(3, owner("r", Phase::Decoding)).unwrap();
    let full = pool.allocate(2, owner("s", Phase::Computing)).unwrap_err();
    assert_eq!(full.to_string(), "2 blocks wanted, 1 free and 0 cached of 4");
    assert_eq!(pool.stats().free, 1);
}

#[test]
fn the_ledger_names_holder_and_phase() {
    let pool = BlockPool::new(4, BLOCK_SIZE);
    let mut blocks = pool.allocate(1, owner("r", Phase::Computing)).unwrap();
    let shared = blocks.clone();
    pool.reassign(&mut blocks, owner("r", Phase::HandOver));
    let mut phases: Vec<_> = pool.ledger().into_iter().map(|row| (row.block.0, row.owner.phase)).collect();
    phases.sort_by_key(|(_, phase)| *phase as u8);
    assert_eq!(phases, [(0, Phase::Computing), (0, Phase::HandOver)]);
    drop(shared);
    assert_eq!(pool.stats().references, PhaseCounts { hand_over: 1, ..PhaseCounts::default() });
}
