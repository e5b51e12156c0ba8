//! Where KV lies: the shape of an instance's KV memory, and the spans of it that are read and written.
//!
//! A [`KvSpan`] speaks of tokens and heads, never of blocks or ranks, so that two instances of different block size or
//! tensor-parallel degree mean the same bytes by it.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Number of a block in one instance's pool and store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// Element type of stored keys and values.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KvDtype {
    F32,
    Bf16,
    /// Signed bytes with a scale, as f32, for each head of each token; it stands behind them.
    Int8,
}

impl KvDtype {
    /// Every type, in the order in which they are listed to users.
    pub const ALL: [KvDtype; 3] = [KvDtype::Bf16, KvDtype::F32, KvDtype::Int8];

    /// Bytes of the keys (or values) of one head of one token. Saturates instead of overflowing.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            KvDtype::F32 => head_dim.saturating_mul(4),
            KvDtype::Bf16 => head_dim.saturating_mul(2),
            KvDtype::Int8 => head_dim.saturating_add(size_of::<f32>()),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            KvDtype::F32 => "f32",
            KvDtype::Bf16 => "bf16",
            KvDtype::Int8 => "int8",
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KvDtype {
    type Err = KvError;

    fn from_str(name: &str) -> Result<Self, KvError> {
        let found = KvDtype::ALL.into_iter().find(|dtype| dtype.as_str() == name);
        found.ok_or_else(|| KvError::Dtype { found: name.to_owned() })
    }
}

/// Shape of an instance's whole KV memory (all ranks together). `blocks` and `block_size` are its own affair; the rest must
/// agree between instances that exchange KV.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvLayout {
    pub layers: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub dtype: KvDtype,
    /// Tokens per block.
    pub block_size: u32,
    pub blocks: u32,
}

impl KvLayout {
    /// Bytes of K and V of one token in one layer for `heads` heads. Saturates instead of overflowing.
    pub fn token_bytes(&self, heads: u32) -> usize {
        2usize.saturating_mul(heads as usize).saturating_mul(self.dtype.head_bytes(self.head_dim as usize))
    }

    /// Bytes of one block over all layers and heads.
    pub fn block_bytes(&self) -> usize {
        self.token_bytes(self.kv_heads).saturating_mul(self.block_size as usize).saturating_mul(self.layers as usize)
    }
}

/// Keys and values of some heads and tokens of one layer. Tokens count from the start of the sequence.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct KvSpan {
    pub layer: u32,
    pub heads: Range<u32>,
    pub tokens: Range<u32>,
}

impl KvSpan {
    /// Bytes of the canonical form: K then V, each `[token][head]`, a head as its [`KvDtype`] says. Safe on foreign numbers: saturates, never overflows.
    pub fn payload_bytes(&self, layout: &KvLayout) -> usize {
        let heads = self.heads.end.saturating_sub(self.heads.start);
        let tokens = self.tokens.end.saturating_sub(self.tokens.start);
        layout.token_bytes(heads).saturating_mul(tokens as usize)
    }

    /// That the span is not empty and lies within `layout` and within the sequence that `blocks` hold, and that `bytes` is its
    /// payload's length. A [`KvStore`] calls it before it touches memory.
    pub fn check(&self, layout: &KvLayout, blocks: &[BlockId], bytes: usize) -> Result<(), KvError> {
        if self.layer >= layout.layers {
            return Err(KvError::Layer { layer: self.layer, layers: layout.layers });
        }
        let (start, end) = (self.heads.start, self.heads.end);
        if start >= end || end > layout.kv_heads {
            return Err(KvError::Heads { start, end, kv_heads: layout.kv_heads });
        }
        let (start, end) = (self.tokens.start, self.tokens.end);
        let capacity = blocks.len() as u64 * u64::from(layout.block_size);
        if start >= end || u64::from(end) > capacity {
            return Err(KvError::Tokens { start, end, capacity });
        }
        if let Some(block) = blocks.iter().find(|block| block.0 >= layout.blocks) {
            return Err(KvError::Block { block: block.0, blocks: layout.blocks });
        }
        let expected = self.payload_bytes(layout);
        if bytes != expected {
            return Err(KvError::Length { expected, found: bytes });
        }
        Ok(())
    }

    /// The span's tokens cut at block borders, in order.
    pub fn runs(&self, block_size: u32) -> impl Iterator<Item = BlockRun> + use<> {
        let Range { start, end } = self.tokens;
        let mut next = start;
        std::iter::from_fn(move || {
            if next >= end || block_size == 0 {
                return None;
            }
            let first = next % block_size;
            let count = (block_size - first).min(end - next);
            let run = BlockRun {
                block: (next / block_size) as usize,
                slots: first..first + count,
                offset: (next - start) as usize,
            };
            next += count;
            Some(run)
        })
    }
}

/// A run of tokens that lie in one block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockRun {
    /// Index into the sequence's list of blocks.
    pub block: usize,
    /// Token slots within the block.
    pub slots: Range<u32>,
    /// Number of the span's tokens before this run.
    pub offset: usize,
}

/// The bytes of an instance's KV, read and written in canonical form (see [`KvSpan::payload_bytes`]), little endian.
///
/// `blocks[i]` holds the tokens from `i * block_size` on. The caller keeps the blocks leased while it calls. Calls may come from
/// any thread, also while the engine computes on other blocks.
pub trait KvStore: Send + Sync {
    fn layout(&self) -> KvLayout;

    /// Copies the span into `out`.
    fn read(&self, span: &KvSpan, blocks: &[BlockId], out: &mut [u8]) -> Result<(), KvError>;

    /// Copies `bytes` over the span.
    fn write(&self, span: &KvSpan, blocks: &[BlockId], bytes: &[u8]) -> Result<(), KvError>;

    /// As [`KvStore::read`]; returns XXH3-64 of what was read, with a seed.
    fn read_sealed(&self, span: &KvSpan, blocks: &[BlockId], out: &mut [u8], seed: u64) -> Result<u64, KvError> {
        self.read(span, blocks, out)?;
        Ok(xxh3_64_with_seed(out, seed))
    }

    /// As [`KvStore::write`]; returns XXH3-64 of what was written, with a seed.
    fn write_sealed(&self, span: &KvSpan, blocks: &[BlockId], bytes: &[u8], seed: u64) -> Result<u64, KvError> {
        self.write(span, blocks, bytes)?;
        Ok(xxh3_64_with_seed(bytes, seed))
    }

    /// This memory as one that can be copied from without going through the process that owns it; `None` if it cannot.
    fn shareable(&self) -> Option<&dyn ShareableKv> {
        None
    }
}

/// KV memory that another process of the host may open, and that can open another's.
pub trait ShareableKv: Send + Sync {
    /// What the other process needs.
    fn share(&self) -> SharedKv;

    /// XXH3-64 of the span's canonical form, with a seed.
    fn checksum(&self, span: &KvSpan, blocks: &[BlockId], seed: u64) -> Result<u64, KvError>;

    /// Opens the memory of another instance of the same model, to copy from it into this one.
    fn open(&self, theirs: &SharedKv) -> Result<Box<dyn KvSource>, KvError>;
}

/// An instance's KV memory as others of its host may open it. What it says comes from the other side and is checked when it is opened.
#[derive(Clone, Debug)]
pub struct SharedKv {
    /// The memory of all ranks, one after the other.
    pub file: Arc<File>,
    pub layout: KvLayout,
    pub ranks: u32,
}

/// Another instance's KV memory, opened by [`ShareableKv::open`].
pub trait KvSource: Send + Sync {
    /// Copies the span out of their blocks into ours, and returns the [`ShareableKv::checksum`] of what was copied. `ours[i]` holds the tokens
    /// from `i` x block size on, as everywhere; of `theirs`, the first is the one that holds the span's first token.
    fn copy(&self, span: &KvSpan, theirs: &[BlockId], ours: &[BlockId], seed: u64) -> Result<u64, KvError>;
}

/// A span or dtype that this instance's KV memory does not have.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KvError {
    #[error("kv dtype is `{found}`, expected bf16, f32 or int8")]
    Dtype { found: String },
    #[error("layer {layer} of a model with {layers} layers")]
    Layer { layer: u32, layers: u32 },
    #[error("heads {start}..{end} of a model with {kv_heads} kv heads")]
    Heads { start: u32, end: u32, kv_heads: u32 },
    #[error("tokens {start}..{end} of blocks that hold {capacity} tokens")]
    Tokens { start: u32, end: u32, capacity: u64 },
    #[error("block {block} of a store with {blocks} blocks")]
    Block { block: u32, blocks: u32 },
    #[error("{found} bytes for a span of {expected} bytes")]
    Length { expected: usize, found: usize },
    #[error("shared KV memory: {reason}")]
    Shared { reason: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: KvLayout =
        KvLayout { layers: 2, kv_heads: 4, head_dim: 8, dtype: KvDtype::Bf16, block_size: 4, blocks: 10 };

    fn span(layer: u32, heads: Range<u32>, tokens: Range<u32>) -> KvSpan {
        KvSpan { layer, heads, tokens }
    }

    #[test]
    fn spans_are_checked_field_by_field() {
        let blocks = [BlockId(3), BlockId(9)];
        let check = |span: KvSpan, bytes| span.check(&LAYOUT, &blocks, bytes);
        assert_eq!(check(span(1, 0..4, 0..8), 2 * 4 * 8 * 2 * 8), Ok(()));
        assert_eq!(check(span(2, 0..4, 0..8), 0), Err(KvError::Layer { layer: 2, layers: 2 }));
        assert_eq!(check(span(0, 0..5, 0..8), 0), Err(KvError::Heads { start: 0, end: 5, kv_heads: 4 }));
        assert_eq!(check(span(0, 2..2, 0..8), 0), Err(KvError::Heads { start: 2, end: 2, kv_heads: 4 }));
        assert_eq!(check(span(0, 0..1, 0..9), 0), Err(KvError::Tokens { start: 0, end: 9, capacity: 8 }));
        assert_eq!(check(span(0, 0..1, 7..8), 31), Err(KvError::Length { expected: 32, found: 31 }));
        let foreign = span(0, 0..1, 0..1).check(&LAYOUT, &[BlockId(10)], 32);
        assert_eq!(foreign, Err(KvError::Block { block: 10, blocks: 10 }));
    }

    #[test]
    fn huge_numbers_saturate() {
        let layout = KvLayout { head_dim: u32::MAX, ..LAYOUT };
        assert_eq!(span(0, 0..u32::MAX, 0..u32::MAX).payload_bytes(&layout), usize::MAX);
    }

    #[test]
    fn runs_end_at_block_borders() {
        let runs: Vec<_> = span(0, 0..1, 3..9).runs(4).map(|run| (run.block, run.slots, run.offset)).collect();
        assert_eq!(runs, [(0, 3..4, 0), (1, 0..4, 1), (2, 0..1, 5)]);
        assert_eq!(span(0, 0..1, 5..5).runs(4).count(), 0);
    }

    #[test]
    fn dtype_names_round_trip() {
        for dtype in KvDtype::ALL {
            assert_eq!(dtype.as_str().parse(), Ok(dtype));
        }
        assert!("fp8".parse::<KvDtype>().is_err());
    }
}
