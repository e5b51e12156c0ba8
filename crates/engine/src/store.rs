//! The KV of all ranks as one: what transfers read, write and copy.
//!
//! The ranks' arenas lie one after the other in one memory, and a [`Geometry`] knows where, for our own memory as for another process's.
//! Whatever is done with a span goes through its bytes in canonical order, stretch by stretch.

use std::ops::Range;
use std::sync::Arc;

use kernels::{Checksum, ForeignMemory, Isa, KvArena, KvElement, KvHalf, KvMemory, KvShape};
use kv::{BlockId, KvDtype, KvError, KvLayout, KvSource, KvSpan, KvStore, ShareableKv, SharedKv};

use crate::Error;

/// KV memory of one rank without a model, in the layout that engines use: for measuring and testing hand-overs.
///
/// # Errors
/// [`Error::Start`] when the system refuses the memory.
pub fn kv_memory(layout: KvLayout) -> Result<Arc<dyn KvStore>, Error> {
    let arenas = KvArena::of_ranks(arena_shape(&layout, 1), 1).map_err(Error::Start)?;
    let isa = Isa::from_env()?;
    Ok(Arc::new(RankedStore::new(isa, layout, arenas)))
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
            KvDtype::Int8 => KvElement::Int8,
        },
    }
}

/// Rank `r` of `n` has the heads from `r * kv_heads / n` on.
pub(crate) struct RankedStore {
    isa: Isa,
    geometry: Geometry,
    arenas: Vec<Arc<KvArena>>,
    memory: Arc<KvMemory>,
}

impl RankedStore {
    /// The arenas of [`KvArena::of_ranks`], each with `kv_heads / arenas.len()` heads and otherwise of the layout's shape.
    pub(crate) fn new(isa: Isa, layout: KvLayout, arenas: Vec<Arc<KvArena>>) -> Self {
        let geometry = Geometry { layout, shape: arena_shape(&layout, arenas.len()), ranks: arenas.len() };
        let memory = arenas[0].memory().clone();
        Self { isa, geometry, arenas, memory }
    }

    /// Copies a block in every layer of every rank; ids that do not exist are ignored.
    pub(crate) fn copy_block(&self, from: BlockId, to: BlockId) {
        let blocks = self.geometry.layout.blocks;
        if from.0 < blocks && to.0 < blocks {
            self.arenas.iter().for_each(|arena| arena.copy_block(from.0 as usize, to.0 as usize));
        }
    }
}

impl KvStore for RankedStore {
    fn layout(&self) -> KvLayout {
        self.geometry.layout
    }

    fn read(&self, span: &KvSpan, blocks: &[BlockId], mut out: &mut [u8]) -> Result<(), KvError> {
        span.check(&self.geometry.layout, blocks, out.len())?;
        for stretch in self.geometry.stretches(span, blocks) {
            let (part, rest) = out.split_at_mut(stretch.len());
            self.memory.read(stretch.start, part);
            out = rest;
        }
        Ok(())
    }

    fn write(&self, span: &KvSpan, blocks: &[BlockId], mut bytes: &[u8]) -> Result<(), KvError> {
        span.check(&self.geometry.layout, blocks, bytes.len())?;
        for stretch in self.geometry.stretches(span, blocks) {
            let (part, rest) = bytes.split_at(stretch.len());
            self.memory.write(stretch.start, part);
            bytes = rest;
        }
        Ok(())
    }

    fn read_sealed(&self, span: &KvSpan, blocks: &[BlockId], mut out: &mut [u8], seed: u64) -> Result<u64, KvError> {
        span.check(&self.geometry.layout, blocks, out.len())?;
        let mut checksum = Checksum::new(self.isa, seed);
        for stretch in self.geometry.stretches(span, blocks) {
            let (part, rest) = out.split_at_mut(stretch.len());
            self.memory.read_adding(stretch.start, part, &mut checksum);
            out = rest;
        }
        Ok(checksum.finish())
    }

    fn write_sealed(&self, span: &KvSpan, blocks: &[BlockId], mut bytes: &[u8], seed: u64) -> Result<u64, KvError> {
        span.check(&self.geometry.layout, blocks, bytes.len())?;
        let mut checksum = Checksum::new(self.isa, seed);
        for stretch in self.geometry.stretches(span, blocks) {
            let (part, rest) = bytes.split_at(stretch.len());
            self.memory.write_adding(stretch.start, part, &mut checksum);
            bytes = rest;
        }
        Ok(checksum.finish())
    }

    fn shareable(&self) -> Option<&dyn ShareableKv> {
        Some(self)
    }
}

impl ShareableKv for RankedStore {
    fn share(&self) -> SharedKv {
        SharedKv { file: self.memory.file().clone(), layout: self.geometry.layout, ranks: self.geometry.ranks as u32 }
    }

    fn checksum(&self, span: &KvSpan, blocks: &[BlockId], seed: u64) -> Result<u64, KvError> {
        span.check(&self.geometry.layout, blocks, span.payload_bytes(&self.geometry.layout))?;
        let mut checksum = Checksum::new(self.isa, seed);
        for stretch in self.geometry.stretches(span, blocks) {
            self.memory.checksum(stretch.start, stretch.len(), &mut checksum);
        }
        Ok(checksum.finish())
    }

    fn open(&self, theirs: &SharedKv) -> Result<Box<dyn KvSource>, KvError> {
        let (ours, geometry) = (self.geometry, Geometry::of_peer(theirs, &self.geometry.layout)?);
        let bytes = geometry.bytes().ok_or_else(|| shared(format!("{:?} cannot be mapped", theirs.layout)))?;
        let memory = ForeignMemory::map(&theirs.file, bytes).map_err(|error| shared(error.to_string()))?;
        let to = self.memory.clone();
        Ok(Box::new(Copier { isa: self.isa, ours, to, theirs: geometry, from: memory }))
    }
}

fn shared(reason: String) -> KvError {
    KvError::Shared { reason }
}

/// Copies from another process's memory into ours.
struct Copier {
    isa: Isa,
    ours: Geometry,
    to: Arc<KvMemory>,
    theirs: Geometry,
    from: ForeignMemory,
}

impl KvSource for Copier {
    fn copy(&self, span: &KvSpan, theirs: &[BlockId], ours: &[BlockId], seed: u64) -> Result<u64, KvError> {
        let bytes = span.payload_bytes(&self.ours.layout);
        let skipped = span.tokens.start - span.tokens.start % self.theirs.layout.block_size;
        let tokens = span.tokens.start - skipped..span.tokens.end.saturating_sub(skipped);
        let their_span = KvSpan { tokens, ..span.clone() };
        span.check(&self.ours.layout, ours, bytes)?;
        their_span.check(&self.theirs.layout, theirs, bytes)?;
        let mut checksum = Checksum::new(self.isa, seed);
        let (mut to, mut from) = (self.ours.stretches(span, ours), self.theirs.stretches(&their_span, theirs));
        let (mut to_part, mut from_part) = (0..0, 0..0);
        loop {
            if to_part.is_empty() {
                to_part = to.next().unwrap_or(0..0);
            }
            if from_part.is_empty() {
                from_part = from.next().unwrap_or(0..0);
            }
            let len = to_part.len().min(from_part.len());
            if len == 0 {
                return Ok(checksum.finish());
            }
            self.to.copy_from(to_part.start, &self.from, from_part.start, len, &mut checksum);
            to_part.start += len;
            from_part.start += len;
        }
    }
}

/// Where the KV of an instance lies in its memory.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    layout: KvLayout,
    /// Of one rank's arena.
    shape: KvShape,
    ranks: usize,
}

impl Geometry {
    /// What a peer says of its memory, once it makes sense and holds the same model's KV as ours.
    fn of_peer(peer: &SharedKv, ours: &KvLayout) -> Result<Self, KvError> {
        let KvLayout { block_size, blocks, .. } = peer.layout;
        if peer.layout != (KvLayout { block_size, blocks, ..*ours }) {
            return Err(shared(format!("of another model: {:?}, ours is {ours:?}", peer.layout)));
        }
        if block_size == 0 || peer.ranks == 0 || !ours.kv_heads.is_multiple_of(peer.ranks) {
            let (ranks, heads) = (peer.ranks, ours.kv_heads);
            return Err(shared(format!("blocks of {block_size} tokens on {ranks} ranks of {heads} kv heads")));
        }
        let ranks = peer.ranks as usize;
        Ok(Self { layout: peer.layout, shape: arena_shape(&peer.layout, ranks), ranks })
    }

    /// Of all ranks; `None` if they cannot be counted.
    fn bytes(&self) -> Option<usize> {
        self.shape.bytes()?.checked_mul(self.ranks)
    }

    /// Where the span's bytes lie, in canonical order. The span has been checked.
    fn stretches<'a>(&'a self, span: &KvSpan, blocks: &'a [BlockId]) -> impl Iterator<Item = Range<usize>> + use<'a> {
        let parts = self.parts(&span.heads);
        let whole = matches!(&parts[..], [(_, part)] if part.len() == self.shape.token_bytes());
        let (layer, span) = (span.layer as usize, span.clone());
        [KvHalf::Keys, KvHalf::Values].into_iter().flat_map(move |half| {
            let parts = parts.clone();
            span.runs(self.layout.block_size).flat_map(move |run| {
                let block = blocks[run.block].0 as usize;
                let slots = run.slots.start as usize..run.slots.end as usize;
                // All heads of one rank: the run's tokens are one stretch.
                let step = if whole { slots.len() } else { 1 };
                let parts = parts.clone();
                slots.step_by(step).flat_map(move |slot| {
                    let tokens = self.shape.place(layer, half, block, slot..slot + step);
                    let parts = parts.clone();
                    (0..parts.len()).map(move |index| {
                        let (arena, part) = &parts[index];
                        let start = arena + tokens.start + part.start;
                        start..start + part.len() * step
                    })
                })
            })
        })
    }

    /// The ranks that have some of these heads: where each one's arena begins, and what it has of each of its tokens.
    fn parts(&self, heads: &Range<u32>) -> Arc<[(usize, Range<usize>)]> {
        let (each, size) = (self.shape.heads, self.shape.head_bytes());
        let arena_bytes = self.shape.bytes().unwrap_or(0);
        let part = |rank: usize| {
            let first = rank * each;
            let heads = first.max(heads.start as usize)..(first + each).min(heads.end as usize);
            let part = heads.start.saturating_sub(first) * size..heads.end.saturating_sub(first) * size;
            (!heads.is_empty()).then_some((rank * arena_bytes, part))
        };
        (0..self.ranks).filter_map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(ranks: usize, block_size: u32) -> RankedStore {
        let layout = KvLayout { layers: 2, kv_heads: 4, head_dim: 2, dtype: KvDtype::Bf16, block_size, blocks: 5 };
        let arenas = KvArena::of_ranks(arena_shape(&layout, ranks), ranks).unwrap();
        RankedStore::new(Isa::from_env().unwrap(), layout, arenas)
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
                let read = one.read_sealed(&part, &blocks, &mut bytes, 42).unwrap();
                let written = other.write_sealed(&part, &blocks2, &bytes, 42).unwrap();
                assert_eq!([read, written], [one.checksum(&part, &blocks, 42).unwrap(); 2]);
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

    /// Between any two shapes: from the middle of a block on, as P's ranks have it, into D's blocks.
    #[test]
    fn another_store_s_memory_is_copied_with_the_checksum_of_the_canonical_bytes() {
        let payload: Vec<u8> = (0..256u32).map(|byte| (byte * 7 % 251) as u8).collect();
        for (ranks, block_size, p_blocks) in [(1, 8, ids(&[3])), (1, 4, ids(&[4, 1])), (4, 2, ids(&[1, 0, 4, 2]))] {
            let p = store(ranks, block_size);
            p.write(&span(0..4, 0..8), &p_blocks, &payload).unwrap();
            for (ranks, d_block_size, d_blocks) in [(1, 8, ids(&[2])), (2, 4, ids(&[0, 3]))] {
                let d = store(ranks, d_block_size);
                let source = d.open(&p.share()).unwrap();
                for part in [span(0..4, 5..8), span(1..3, 0..5)] {
                    let from = &p_blocks[(part.tokens.start / block_size) as usize..];
                    let copied = source.copy(&part, from, &d_blocks, 42).unwrap();
                    assert_eq!(copied, p.checksum(&part, &p_blocks, 42).unwrap());
                    let mut bytes =
                        [vec![0; part.payload_bytes(&d.layout())], vec![1; part.payload_bytes(&d.layout())]];
                    p.read(&part, &p_blocks, &mut bytes[0]).unwrap();
                    d.read(&part, &d_blocks, &mut bytes[1]).unwrap();
                    assert_eq!(bytes[0], bytes[1], "{part:?}: blocks of {block_size} into {d_block_size}");
                }
            }
        }
    }

    #[test]
    fn what_a_peer_says_of_its_memory_is_checked() {
        let (ours, theirs) = (store(1, 4), store(1, 4).share());
        let refused = |change: fn(&mut SharedKv)| {
            let mut theirs = theirs.clone();
            change(&mut theirs);
            ours.open(&theirs).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(refused(|peer| peer.layout.layers = 3).contains("another model"));
        assert!(refused(|peer| peer.layout.block_size = 0).contains("blocks of 0"));
        assert!(refused(|peer| peer.ranks = 3).contains("3 ranks"));
        assert!(refused(|peer| peer.layout.blocks = 6).contains("expected"));
        assert!(refused(|peer| (peer.layout.blocks, peer.layout.block_size) = (u32::MAX, u32::MAX)).contains("shared"));
        let source = ours.open(&theirs).unwrap();
        let outside = source.copy(&span(0..4, 0..4), &ids(&[5]), &ids(&[0]), 0);
        assert_eq!(outside, Err(KvError::Block { block: 5, blocks: 5 }));
    }
}
