//! Who holds which block: allocation, sharing, the prefix cache and the ledger.
//!
//! Every block is in exactly one state: **free**, **cached** (published, held by nobody, evictable, least recently used first)
//! or **leased** (held by one or more [`BlockRef`]s). A published block stays findable while leased. Dropping the last reference
//! moves a block to cached if it is published, else to free; eviction moves it from cached to free; nothing else moves it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use types::{RequestKey, TokenId};

use crate::{BlockHash, BlockId};

/// What a block is held for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// A prompt is being computed into it.
    Computing,
    /// Set aside on D for KV that is on its way.
    Landing,
    /// Its sequence emits tokens.
    Decoding,
    /// Kept on P until D has committed its copy.
    HandOver,
}

/// Who holds a reference, for the ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    pub key: RequestKey,
    pub phase: Phase,
}

/// One reference to one block, as the ledger lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LedgerRow {
    pub block: BlockId,
    pub owner: Owner,
}

/// Counts at one moment: `free + cached + leased == total`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolStats {
    pub total: u32,
    pub free: u32,
    pub cached: u32,
    pub leased: u32,
    pub references: PhaseCounts,
}

/// References by what they are held for; a block that is shared counts once per holder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PhaseCounts {
    pub computing: u32,
    pub landing: u32,
    pub decoding: u32,
    pub hand_over: u32,
}

impl PhaseCounts {
    fn of(&mut self, phase: Phase) -> &mut u32 {
        match phase {
            Phase::Computing => &mut self.computing,
            Phase::Landing => &mut self.landing,
            Phase::Decoding => &mut self.decoding,
            Phase::HandOver => &mut self.hand_over,
        }
    }
}

/// Not enough free and evictable blocks. Nothing was taken; retry when blocks come back, or elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{wanted} blocks wanted, {free} free and {cached} cached of {total}")]
pub struct PoolFull {
    pub wanted: usize,
    pub free: u32,
    pub cached: u32,
    pub total: u32,
}

/// All blocks of one instance. Cheap to clone; safe from any thread; every call holds one lock for a short while.
#[derive(Clone)]
pub struct BlockPool(Arc<Shared>);

struct Shared {
    block_size: u32,
    state: Mutex<State>,
}

/// A hold on one block. Clone shares it, drop gives it back.
pub struct BlockRef {
    pool: Arc<Shared>,
    id: BlockId,
    owner: Arc<Owner>,
}

struct State {
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    /// Published blocks held by nobody, by the moment they were last let go.
    cached: BTreeMap<u64, BlockId>,
    leased: u32,
    references: PhaseCounts,
    /// Published blocks by name, whether held or not.
    index: HashMap<BlockHash, BlockId>,
    /// Counts releases; the key of `cached`.
    clock: u64,
}

#[derive(Default)]
struct Block {
    /// One entry per reference; compared by address.
    holders: Vec<Arc<Owner>>,
    published: Option<Published>,
    /// Key in `State::cached` while the block is there.
    released_at: u64,
}

struct Published {
    hash: BlockHash,
    parent: Option<BlockHash>,
    tokens: Box<[TokenId]>,
}

impl BlockPool {
    /// A pool of `blocks` free blocks of `block_size` tokens each.
    pub fn new(blocks: u32, block_size: u32) -> Self {
        let state = State {
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            // Reversed, so that low numbers are handed out first.
            free: (0..blocks).rev().map(BlockId).collect(),
            cached: BTreeMap::new(),
            leased: 0,
            references: PhaseCounts::default(),
            index: HashMap::new(),
            clock: 0,
        };
        Self(Arc::new(Shared { block_size, state: Mutex::new(state) }))
    }

    /// Tokens per block.
    pub fn block_size(&self) -> u32 {
        self.0.block_size
    }

    /// References to the longest published leading run of `chain`, whose blocks hold `tokens`.
    ///
    /// A hash alone is not believed: the stored token ids and the stored parent must be equal too.
    pub fn lookup(&self, chain: &[BlockHash], tokens: &[TokenId], owner: Owner) -> Vec<BlockRef> {
        let owner = Arc::new(owner);
        let mut state = self.0.state.lock();
        let found = state.find(chain, tokens, self.0.block_size);
        found.iter().for_each(|&id| state.hold(id, &owner));
        state.assert_sum();
        found.into_iter().map(|id| self.reference(id, &owner)).collect()
    }

    /// Tokens that [`BlockPool::lookup`] would find, without taking references.
    pub fn cached_len(&self, chain: &[BlockHash], tokens: &[TokenId]) -> usize {
        self.0.state.lock().find(chain, tokens, self.0.block_size).len() * self.0.block_size as usize
    }

    /// `count` unpublished blocks that nobody else holds, or none at all. Evicts least recently used cached blocks when the free
    /// ones run out.
    pub fn allocate(&self, count: usize, owner: Owner) -> Result<Vec<BlockRef>, PoolFull> {
        let owner = Arc::new(owner);
        let mut state = self.0.state.lock();
        let (free, cached) = (state.free.len(), state.cached.len());
        if count > free + cached {
            let total = state.blocks.len() as u32;
            return Err(PoolFull { wanted: count, free: free as u32, cached: cached as u32, total });
        }
        let ids: Vec<_> = std::iter::from_fn(|| state.take()).take(count).collect();
        ids.iter().for_each(|&id| state.hold(id, &owner));
        state.assert_sum();
        Ok(ids.into_iter().map(|id| self.reference(id, &owner)).collect())
    }

    /// Makes a full, computed block findable under `hash`.
    ///
    /// `tokens` are the block's own, `parent` is the hash of the block before it. An equal block that is already published stays
    /// the published one; a block keeps the first name it got.
    pub fn publish(&self, block: &BlockRef, hash: BlockHash, parent: Option<BlockHash>, tokens: &[TokenId]) {
        debug_assert!(Arc::ptr_eq(&self.0, &block.pool), "block of another pool");
        debug_assert_eq!(tokens.len(), self.0.block_size as usize, "only full blocks are published");
        let mut state = self.0.state.lock();
        if state.index.contains_key(&hash) || state.block(block.id).published.is_some() {
            return;
        }
        state.index.insert(hash, block.id);
        state.block(block.id).published = Some(Published { hash, parent, tokens: tokens.into() });
    }

    /// Notes in the ledger who holds `blocks` now, and for what.
    pub fn reassign(&self, blocks: &mut [BlockRef], owner: Owner) {
        let owner = Arc::new(owner);
        let mut state = self.0.state.lock();
        for block in blocks {
            debug_assert!(Arc::ptr_eq(&self.0, &block.pool), "block of another pool");
            state.hold(block.id, &owner);
            state.let_go(block.id, &block.owner);
            block.owner = owner.clone();
        }
    }

    pub fn stats(&self) -> PoolStats {
        let state = self.0.state.lock();
        PoolStats {
            total: state.blocks.len() as u32,
            free: state.free.len() as u32,
            cached: state.cached.len() as u32,
            leased: state.leased,
            references: state.references,
        }
    }

    /// Every reference, by block. Walks the whole pool: for diagnosis, not for each step.
    pub fn ledger(&self) -> Vec<LedgerRow> {
        let state = self.0.state.lock();
        let row = |id: usize, owner: &Arc<Owner>| LedgerRow { block: BlockId(id as u32), owner: Owner::clone(owner) };
        let rows = state.blocks.iter().enumerate();
        rows.flat_map(|(id, block)| block.holders.iter().map(move |owner| row(id, owner))).collect()
    }

    /// Recounts everything: each block is in one state, its holders are those that were counted. Walks the whole pool: for tests and
    /// debug builds.
    ///
    /// # Errors
    /// The first count that is wrong, and what it should be.
    pub fn audit(&self) -> Result<(), String> {
        self.0.state.lock().audit()
    }

    fn reference(&self, id: BlockId, owner: &Arc<Owner>) -> BlockRef {
        BlockRef { pool: self.0.clone(), id, owner: owner.clone() }
    }
}

impl BlockRef {
    pub fn id(&self) -> BlockId {
        self.id
    }

    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Whether somebody else may read this block: another reference, or the cache. Such a block is copied before it is written.
    pub fn is_shared(&self) -> bool {
        let mut state = self.pool.state.lock();
        let block = state.block(self.id);
        block.holders.len() > 1 || block.published.is_some()
    }
}

impl Clone for BlockRef {
    fn clone(&self) -> Self {
        self.pool.state.lock().hold(self.id, &self.owner);
        Self { pool: self.pool.clone(), id: self.id, owner: self.owner.clone() }
    }
}

impl Drop for BlockRef {
    fn drop(&mut self) {
        self.pool.state.lock().let_go(self.id, &self.owner);
    }
}

impl std::fmt::Debug for BlockRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "block {} of {}", self.id.0, self.owner.key)
    }
}

impl State {
    /// Ids come from this pool's own references and index, so they are in range.
    fn block(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id.0 as usize]
    }

    /// The longest leading run of `chain` that is published with the same tokens and parents.
    fn find(&self, chain: &[BlockHash], tokens: &[TokenId], block_size: u32) -> Vec<BlockId> {
        let mut parent = None;
        let blocks = chain.iter().zip(tokens.chunks_exact(block_size.max(1) as usize));
        let found = blocks.map_while(|(hash, tokens)| {
            let id = *self.index.get(hash)?;
            let published = self.blocks[id.0 as usize].published.as_ref()?;
            let same = published.parent == parent && *published.tokens == *tokens;
            parent = Some(*hash);
            same.then_some(id)
        });
        found.collect()
    }

    /// A block for new content: a free one, else the least recently used cached one, forgotten by the index.
    fn take(&mut self) -> Option<BlockId> {
        self.free.pop().or_else(|| {
            let (_, id) = self.cached.pop_first()?;
            if let Some(published) = self.block(id).published.take() {
                self.index.remove(&published.hash);
            }
            Some(id)
        })
    }

    /// Adds a reference; the first one leases the block.
    fn hold(&mut self, id: BlockId, owner: &Arc<Owner>) {
        let block = &mut self.blocks[id.0 as usize];
        if block.holders.is_empty() {
            self.cached.remove(&block.released_at).inspect(|cached| debug_assert_eq!(*cached, id));
            self.leased += 1;
        }
        block.holders.push(owner.clone());
        *self.references.of(owner.phase) += 1;
    }

    /// Removes a reference; the last one gives the block back.
    fn let_go(&mut self, id: BlockId, owner: &Arc<Owner>) {
        let block = &mut self.blocks[id.0 as usize];
        let place = block.holders.iter().rposition(|holder| Arc::ptr_eq(holder, owner));
        debug_assert!(place.is_some(), "a reference is in the ledger until it is dropped");
        if let Some(place) = place {
            block.holders.swap_remove(place);
            *self.references.of(owner.phase) -= 1;
        }
        if block.holders.is_empty() {
            self.clock += 1;
            block.released_at = self.clock;
            self.leased -= 1;
            match block.published {
                Some(_) => drop(self.cached.insert(self.clock, id)),
                None => self.free.push(id),
            }
            self.assert_sum();
        }
    }

    fn audit(&self) -> Result<(), String> {
        let held = self.blocks.iter().filter(|block| !block.holders.is_empty()).count();
        let same = |what: &str, counted: usize, found: usize| match counted == found {
            true => Ok(()),
            false => Err(format!("{what}: {counted} counted, {found} found")),
        };
        same("leased blocks", self.leased as usize, held)?;
        same("free + cached + leased", self.blocks.len(), self.free.len() + self.cached.len() + held)?;
        let idle: BTreeSet<u32> = self.free.iter().chain(self.cached.values()).map(|id| id.0).collect();
        same("blocks that are free or cached", self.free.len() + self.cached.len(), idle.len())?;
        let mut references = PhaseCounts::default();
        for (id, block) in self.blocks.iter().enumerate() {
            if block.holders.is_empty() != idle.contains(&(id as u32)) {
                return Err(format!(
                    "block {id} has {} holders and is free or cached, or neither",
                    block.holders.len()
                ));
            }
            block.holders.iter().for_each(|owner| *references.of(owner.phase) += 1);
        }
        if references != self.references {
            return Err(format!("references: {:?} counted, {references:?} found", self.references));
        }
        let published = self.blocks.iter().filter(|block| block.published.is_some()).count();
        same("published blocks", self.index.len(), published)
    }

    fn assert_sum(&self) {
        let sum = self.free.len() + self.cached.len() + self.leased as usize;
        debug_assert_eq!(sum, self.blocks.len(), "free + cached + leased = total");
    }
}

#[cfg(test)]
mod tests;
