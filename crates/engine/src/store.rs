//! The KV of all ranks as one: what transfers read and write.

use std::ops::Range;
use std::sync::Arc;

use kernels::{KvArena, KvElement, KvHalf, KvShape};
use kv::{BlockId, KvDtype, KvError, KvLayout, KvSpan, KvStore};

use crate::Error;

/// KV memory of one rank without a model, in the layout that engines use: for measuring and testing hand-overs.
///
/// # Errors
/// [`Error::Start`] when the system refuses the memory.
pub fn kv_memory(layout: KvLayout) -> Result<Arc<dyn KvStore>, Error> {
    let arena = KvArena::new(arena_shape(&layout, 1)).map_err(Error::Start)?;
    Ok(Arc::new(RankedStore::new(layout, vec![Arc::new(arena)])))
}

/// What each of `ranks` arenas of a layout holds.
pub(crate) fn arena_shape(layout: &KvLayout, ranks: usize) -> KvShape {
    KvShape {
        layers: layout.layers as usize,
        heads: layout.kv_heads as usize / ranks,
        head_dim: layout.head_dim as usize,
        block_size: layout.block_size as usize,
        blocks: layout.blocks as usize,
        element: match layout.dtype {
            KvDtype::F32 => KvElement::F32,
            KvDtype::Bf16 => KvElement::Bf16,
        },
    }
}

/// Rank `r` of `n` has the heads from `r * kv_heads / n` on.
pub(crate) struct RankedStore {
    layout: KvLayout,
    arenas: Vec<Arc<KvArena>>,
}

impl RankedStore {
    /// One arena per rank, each with `kv_heads / arenas.len()` heads and otherwise of the layout's shape.
    pub(crate) fn new(layout: KvLayout, arenas: Vec<Arc<KvArena>>) -> Self {
        Self { layout, arenas }
    }

    /// Copies a block in every layer of every rank; ids that do not exist are ignored.
    pub(crate) fn copy_block(&self, from: BlockId, to: BlockId) {
        if from.0 < self.layout.blocks && to.0 < self.layout.blocks {
            self.arenas.iter().for_each(|arena| arena.copy_block(from.0 as usize, to.0 as usize));
        }
    }

    /// The ranks that have some of the span's heads.
    fn shares<'a>(&'a self, span: &KvSpan) -> Vec<Share<'a>> {
        let head_bytes = self.layout.head_dim as usize * self.layout.dtype.size();
        let per_rank = self.layout.kv_heads / self.arenas.len() as u32;
        let bytes = |heads: Range<u32>, first: u32| {
            (heads.start - first) as usize * head_bytes..(heads.end - first) as usize * head_bytes
        };
        let firsts = (0..).step_by(per_rank as usize);
        let shares = firsts.zip(&self.arenas).map(|(first, arena)| {
            let heads = span.heads.start.max(first)..span.heads.end.min(first + per_rank);
            (first, heads, arena)
        });
        let shares = shares.filter(|(_, heads, _)| !heads.is_empty());
        let share = |(first, heads, arena): (u32, Range<u32>, &'a Arc<KvArena>)| Share {
            arena,
            in_token: bytes(heads.clone(), first),
            in_span: bytes(heads, span.heads.start),
        };
        shares.map(share).collect()
    }
}

/// What one rank has of each token of a span.
struct Share<'a> {
    arena: &'a KvArena,
    /// Bytes within the rank's token.
    in_token: Range<usize>,
    /// Bytes within the span's token.
    in_span: Range<usize>,
}

/// Keys then values, each cut at block borders.
struct Run {
    half: KvHalf,
    block: usize,
    slots: Range<usize>,
    /// Bytes of the span's payload.
    payload: Range<usize>,
}

/// `width`: bytes of one token of the span.
fn runs(span: &KvSpan, blocks: &[BlockId], block_size: u32, width: usize) -> impl Iterator<Item = Run> {
    let half_bytes = span.tokens.len() * width;
    let halves = [(KvHalf::Keys, 0), (KvHalf::Values, half_bytes)];
    halves.into_iter().flat_map(move |(half, at)| {
        span.runs(block_size).map(move |run| {
            let start = at + run.offset * width;
            let slots = run.slots.start as usize..run.slots.end as usize;
            Run { half, block: blocks[run.block].0 as usize, payload: start..start + slots.len() * width, slots }
        })
    })
}

impl KvStore for RankedStore {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn read(&self, span: &KvSpan, blocks: &[BlockId], out: &mut [u8]) -> Result<(), KvError> {
        span.check(&self.layout, blocks, out.len())?;
        let width = out.len() / 2 / span.tokens.len();
        for share in self.shares(span) {
            let layer = share.arena.read(span.layer as usize);
            for run in runs(span, blocks, self.layout.block_size, width) {
                let stored = layer.tokens(run.half, run.block, run.slots.clone());
                let tokens = stored.chunks_exact(stored.len() / run.slots.len());
                for (token, out) in tokens.zip(out[run.payload].chunks_exact_mut(width)) {
                    out[share.in_span.clone()].copy_from_slice(&token[share.in_token.clone()]);
                }
            }
        }
        Ok(())
    }

    fn write(&self, span: &KvSpan, blocks: &[BlockId], bytes: &[u8]) -> Result<(), KvError> {
        span.check(&self.layout, blocks, bytes.len())?;
        let width = bytes.len() / 2 / span.tokens.len();
        for share in self.shares(span) {
            let mut layer = share.arena.write(span.layer as usize);
            for run in runs(span, blocks, self.layout.block_size, width) {
                let stored = layer.tokens_mut(run.half, run.block, run.slots.clone());
                let token_bytes = stored.len() / run.slots.len();
                let tokens = stored.chunks_exact_mut(token_bytes);
                for (token, bytes) in tokens.zip(bytes[run.payload].chunks_exact(width)) {
                    token[share.in_token.clone()].copy_from_slice(&bytes[share.in_span.clone()]);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(ranks: usize, block_size: u32) -> RankedStore {
        let layout = KvLayout { layers: 2, kv_heads: 4, head_dim: 2, dtype: KvDtype::Bf16, block_size, blocks: 5 };
        let shape = KvShape {
            layers: 2,
            heads: 4 / ranks,
            head_dim: 2,
            block_size: block_size as usize,
            blocks: 5,
            element: KvElement::Bf16,
        };
        let arenas = (0..ranks).map(|_| Arc::new(KvArena::new(shape).unwrap())).collect();
        RankedStore::new(layout, arenas)
    }

    fn span(heads: Range<u32>, tokens: Range<u32>) -> KvSpan {
        KvSpan { layer: 1, heads, tokens }
    }

    fn ids(ids: &[u32]) -> Vec<BlockId> {
        ids.iter().copied().map(BlockId).collect()
    }

    /// What was written head by head in one shape is read whole in another, whatever ranks and block sizes are.
    #[test]
    fn bytes_are_canonical() {
        let all = span(0..4, 0..8);
        let payload: Vec<u8> = (0..256).map(|byte| byte as u8).collect();
        let (one, blocks) = (store(1, 8), ids(&[3]));
        one.write(&all, &blocks, &payload).unwrap();
        for (ranks, block_size, blocks2) in [(1, 4, ids(&[4, 1])), (2, 8, ids(&[0])), (4, 2, ids(&[1, 0, 4, 2]))] {
            let other = store(ranks, block_size);
            for (heads, tokens) in [(0..1, 0..8), (1..4, 0..3), (1..4, 3..8)] {
                let part = span(heads, tokens);
                let mut bytes = vec![0; part.payload_bytes(&one.layout())];
                one.read(&part, &blocks, &mut bytes).unwrap();
                other.write(&part, &blocks2, &bytes).unwrap();
            }
            let mut out = vec![0; 256];
            other.read(&all, &blocks2, &mut out).unwrap();
            assert_eq!(out, payload, "{ranks} ranks, blocks of {block_size}");
        }
    }

    #[test]
    fn copied_blocks_are_equal_and_foreign_ids_ignored() {
        let store = store(2, 4);
        let payload: Vec<u8> = (0..128).map(|byte| byte as u8).collect();
        store.write(&span(0..4, 0..4), &ids(&[1]), &payload).unwrap();
        store.copy_block(BlockId(1), BlockId(4));
        store.copy_block(BlockId(1), BlockId(5));
        let mut out = vec![0; 128];
        store.read(&span(0..4, 0..4), &ids(&[4]), &mut out).unwrap();
        assert_eq!(out, payload);
        assert!(store.read(&span(0..4, 0..4), &ids(&[5]), &mut out).is_err());
    }
}
