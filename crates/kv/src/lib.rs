//! Bookkeeping of KV blocks: pool, tables, hash chain, layout. No bytes.
//!
//! Every block of a [`BlockPool`] is free, cached (published, held by nobody, may be evicted) or leased (held by at least one
//! [`BlockRef`]); the three always add up to the total, and dropping the last reference is the only way to give a block back.
//! The bytes live behind [`KvStore`], which the engine implements and `transfer` reads and writes.

mod chain;
mod layout;
mod pool;
mod table;

pub use chain::{BlockHash, ChainRoot, hash_chain};
pub use layout::{BlockId, BlockRun, KvDtype, KvError, KvLayout, KvSource, KvSpan, KvStore, ShareableKv, SharedKv};
pub use pool::{BlockPool, BlockRef, LedgerRow, Owner, Phase, PhaseCounts, PoolFull, PoolStats};
pub use table::BlockTable;
