//! Sets blocks aside for KV that is on its way and hands them over once it has landed.
//!
//! Blocks are taken all at once, under a lease, and only if those who run and wait here keep what they will soon need. Whoever asks
//! waits in line for a short while; nobody holds a block while waiting.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use kv::{BlockPool, BlockTable, ChainRoot, Owner, Phase, hash_chain};
use proto::control::FailCode;
use tokio::sync::Mutex;
use tokio::time::Instant;
use transfer::{KvReceiver, Landing, LandingRequest, LandingStats, TransferError};
use types::{GenerateSpec, RequestKey, TokenId};
use worker::{EngineHandle, Failure, check_fits};

/// Time that a reservation lives without a sign from P or the scheduler. Until P's first piece the scheduler vouches for the attempt:
/// when it cancels, dies or freezes (its connection then ends within 7 s) the attempt's task is dropped and the blocks come back.
pub(crate) const LEASE: Duration = Duration::from_secs(10);
/// How often the lease begins anew before P's first piece.
const RENEW: Duration = Duration::from_secs(2);
/// How long a reservation may wait for blocks; the scheduler knows better places after that.
const WAIT: Duration = Duration::from_millis(500);
/// Pause between two looks at the pool.
const RETRY: Duration = Duration::from_millis(5);

/// Where reservations are made.
pub(crate) struct Landings {
    pub(crate) receiver: KvReceiver,
    pub(crate) engine: EngineHandle,
    pub(crate) digest: String,
    pub(crate) max_model_len: u32,
    /// Held by whoever is first in line for blocks; fair.
    pub(crate) line: Mutex<()>,
    /// Blocks that open reservations will probably ask for once they decode.
    pub(crate) pledged: Arc<AtomicU32>,
}

/// Blocks of one attempt whose KV is on its way. Dropping it gives them back and refuses what still arrives.
pub(crate) struct Reservation {
    // Before the blocks: the door is closed when they go.
    landing: Landing,
    table: BlockTable,
    _pledge: Pledge,
    /// Leading tokens that were here already.
    pub(crate) cached_tokens: u32,
}

impl Landings {
    /// Blocks for the whole context of `spec` and an open door for what is missing.
    pub(crate) async fn reserve(&self, key: &RequestKey, spec: &GenerateSpec) -> Result<Reservation, Failure> {
        check_fits(spec, true, self.max_model_len, self.engine.pool())?;
        let tokens: Vec<TokenId> = spec.prompt.iter().chain(&spec.output).copied().collect();
        let root = ChainRoot::new(&self.digest, &spec.cache_salt);
        let (table, cached_tokens, pledge) = self.blocks(key, spec, &root, &tokens).await?;
        let request = LandingRequest {
            key: key.clone(),
            blocks: table.ids().to_vec(),
            tokens: cached_tokens..tokens.len() as u32,
            lease: LEASE,
        };
        Ok(Reservation { landing: self.receiver.open(request), table, _pledge: pledge, cached_tokens })
    }

    async fn blocks(
        &self,
        key: &RequestKey,
        spec: &GenerateSpec,
        root: &ChainRoot,
        tokens: &[TokenId],
    ) -> Result<(BlockTable, u32, Pledge), Failure> {
        let deadline = Instant::now() + WAIT;
        let owner = Owner { key: key.clone(), phase: Phase::Landing };
        let _first =
            tokio::time::timeout_at(deadline, self.line.lock()).await.map_err(|_| self.no_blocks(tokens.len()))?;
        loop {
            let (margin, growth) = self.margin(spec);
            if let Some((table, cached)) = take(self.engine.pool(), root, tokens, &owner, margin as usize) {
                return Ok((table, cached, Pledge::new(&self.pledged, growth)));
            }
            if Instant::now() >= deadline {
                return Err(self.no_blocks(tokens.len()));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Blocks to leave to others and for its own growth, and the latter alone. A text that resumes has waited already: it must find
    /// room for what it has, no more.
    fn margin(&self, spec: &GenerateSpec) -> (u32, u32) {
        let queue = self.engine.stats().queue;
        let tokens = queue.growth.tokens_left(spec.output.len(), spec.sampling.max_tokens);
        let growth = tokens.div_ceil(self.engine.pool().block_size()).saturating_mul(spec.choices.len() as u32);
        let others = queue.blocks_wanted.saturating_add(self.pledged.load(Relaxed));
        // Alone, it always may try.
        let own = if others == 0 || !spec.output.is_empty() { 0 } else { growth };
        (others.saturating_add(own), growth)
    }

    fn no_blocks(&self, tokens: usize) -> Failure {
        let (pool, stats) = (self.engine.pool(), self.engine.stats());
        let message = format!(
            "{} KV blocks wanted, {} free and {} cached of {}, {} kept for those who run and wait",
            tokens.div_ceil(pool.block_size() as usize),
            stats.pool.free,
            stats.pool.cached,
            stats.pool.total,
            stats.queue.blocks_wanted.saturating_add(self.pledged.load(Relaxed))
        );
        Failure::new(FailCode::FailNoBlocks, message)
    }
}

/// Blocks that a reservation will ask for; from its first decoding step on the queue counts them.
struct Pledge(Arc<AtomicU32>, u32);

impl Pledge {
    fn new(pledged: &Arc<AtomicU32>, blocks: u32) -> Self {
        pledged.fetch_add(blocks, Relaxed);
        Self(pledged.clone(), blocks)
    }
}

impl Drop for Pledge {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Relaxed);
    }
}

/// The context's blocks, cached ones first, if `margin` more could be had.
fn take(
    pool: &BlockPool,
    root: &ChainRoot,
    tokens: &[TokenId],
    owner: &Owner,
    margin: usize,
) -> Option<(BlockTable, u32)> {
    let block_size = pool.block_size();
    let chain = hash_chain(root, tokens, block_size as usize);
    let mut table = BlockTable::new(block_size);
    table.extend(pool.lookup(&chain, tokens, owner.clone()));
    let cached = table.len() as u32 * block_size;
    let missing = table.blocks_needed(tokens.len());
    let stats = pool.stats();
    if missing > 0 && missing + margin > (stats.free + stats.cached) as usize {
        return None;
    }
    table.extend(pool.allocate(missing, owner.clone()).ok()?);
    Some((table, cached))
}

impl Reservation {
    /// For P, by way of the scheduler.
    pub(crate) fn ticket(&self) -> Bytes {
        self.landing.ticket()
    }

    /// Waits until all KV is here and commits it: P may forget it, and the blocks are this instance's own.
    pub(crate) async fn land(self, pool: &BlockPool, key: &RequestKey) -> Result<(BlockTable, LandingStats), Failure> {
        let Self { landing, mut table, .. } = self;
        tokio::select! {
            biased;
            landed = landing.landed() => landed.map(drop).map_err(failure)?,
            never = vouched(&landing) => match never {},
        }
        let stats = landing.commit().map_err(failure)?;
        table.reassign(pool, Owner { key: key.clone(), phase: Phase::Decoding });
        Ok((table, stats))
    }
}

/// P may have a queue; that the scheduler still wants the attempt shows in this task being alive.
async fn vouched(landing: &Landing) -> Infallible {
    loop {
        tokio::time::sleep(RENEW).await;
        landing.renew();
    }
}

fn failure(error: TransferError) -> Failure {
    let code = match error {
        TransferError::Lease { .. } => FailCode::FailLease,
        _ => FailCode::FailTransfer,
    };
    Failure::new(code, error.to_string())
}
