//! The keys and values of one rank, in blocks.
//!
//! One buffer per layer, `[block][K | V][token in block][head][head_dim]`, behind that layer's lock: a step writes a layer's new
//! tokens, then reads the layer; transfers read and write other blocks in between. Memory is zero and costs nothing until touched.

use std::io;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use half::bf16;
use memmap2::MmapMut;

/// How keys and values are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvElement {
    F32,
    Bf16,
}

impl KvElement {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            KvElement::F32 => 4,
            KvElement::Bf16 => 2,
        }
    }
}

/// Which of the two is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvHalf {
    Keys,
    Values,
}

/// What an arena holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvShape {
    pub layers: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Tokens per block.
    pub block_size: usize,
    pub blocks: usize,
    pub element: KvElement,
}

impl KvShape {
    /// Bytes of the keys (or values) of one token in one layer.
    pub fn token_bytes(&self) -> usize {
        self.heads * self.head_dim * self.element.size()
    }

    fn block_bytes(&self) -> usize {
        2 * self.block_size * self.token_bytes()
    }

    /// Where some tokens' keys or values lie in a layer's buffer; an error in the caller panics here, before memory is touched.
    fn place(&self, half: KvHalf, block: usize, slots: Range<usize>) -> Range<usize> {
        let inside = block < self.blocks && slots.start <= slots.end && slots.end <= self.block_size;
        assert!(inside, "block {block}, slots {slots:?} of {self:?}");
        let half = match half {
            KvHalf::Keys => 0,
            KvHalf::Values => self.block_size,
        };
        let start = block * self.block_bytes() + half * self.token_bytes();
        start + slots.start * self.token_bytes()..start + slots.end * self.token_bytes()
    }
}

/// Storage of one rank's heads in every layer.
#[derive(Debug)]
pub struct KvArena {
    shape: KvShape,
    layers: Vec<RwLock<MmapMut>>,
}

impl KvArena {
    /// Reserves address space; pages become memory when they are first written.
    pub fn new(shape: KvShape) -> io::Result<Self> {
        let bytes = shape.blocks.checked_mul(shape.block_bytes()).ok_or(io::ErrorKind::OutOfMemory)?;
        let layers = (0..shape.layers).map(|_| MmapMut::map_anon(bytes.max(1)).map(RwLock::new));
        Ok(Self { shape, layers: layers.collect::<io::Result<_>>()? })
    }

    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// A layer for reading. Panics if there is no such layer.
    pub fn read(&self, layer: usize) -> LayerRead<'_> {
        let bytes = self.layers[layer].read().unwrap_or_else(PoisonError::into_inner);
        LayerRead { shape: &self.shape, bytes }
    }

    /// A layer for writing. Panics if there is no such layer.
    pub fn write(&self, layer: usize) -> LayerWrite<'_> {
        let bytes = self.layers[layer].write().unwrap_or_else(PoisonError::into_inner);
        LayerWrite { shape: &self.shape, bytes }
    }

    /// Copies a whole block in every layer. Panics if there is no such block.
    pub fn copy_block(&self, from: usize, to: usize) {
        assert!(from < self.shape.blocks && to < self.shape.blocks, "copy of block {from} to {to} in {:?}", self.shape);
        let block = self.shape.block_bytes();
        for layer in &self.layers {
            let mut bytes = layer.write().unwrap_or_else(PoisonError::into_inner);
            bytes.copy_within(from * block..(from + 1) * block, to * block);
        }
    }
}

/// One layer, shared.
#[derive(Debug)]
pub struct LayerRead<'a> {
    shape: &'a KvShape,
    bytes: RwLockReadGuard<'a, MmapMut>,
}

impl LayerRead<'_> {
    /// The keys or values of neighbouring tokens, `[token][head][head_dim]`. Panics if block or slots do not exist.
    pub fn tokens(&self, half: KvHalf, block: usize, slots: Range<usize>) -> &[u8] {
        &self.bytes[self.shape.place(half, block, slots)]
    }

    pub(crate) fn shape(&self) -> &KvShape {
        self.shape
    }
}

/// One layer, exclusively.
#[derive(Debug)]
pub struct LayerWrite<'a> {
    shape: &'a KvShape,
    bytes: RwLockWriteGuard<'a, MmapMut>,
}

impl LayerWrite<'_> {
    /// The keys or values of neighbouring tokens, `[token][head][head_dim]`. Panics if block or slots do not exist.
    pub fn tokens_mut(&mut self, half: KvHalf, block: usize, slots: Range<usize>) -> &mut [u8] {
        &mut self.bytes[self.shape.place(half, block, slots)]
    }

    /// Stores one token's keys or values, `[head][head_dim]`, rounding to nearest even if the arena is bf16.
    pub fn store(&mut self, half: KvHalf, block: usize, slot: usize, values: &[f32]) {
        let element = self.shape.element;
        let place = self.tokens_mut(half, block, slot..slot + 1);
        match element {
            KvElement::F32 => {
                for (place, value) in place.chunks_exact_mut(4).zip(values) {
                    place.copy_from_slice(&value.to_le_bytes());
                }
            }
            KvElement::Bf16 => {
                for (place, value) in place.chunks_exact_mut(2).zip(values) {
                    place.copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(element: KvElement) -> KvShape {
        KvShape { layers: 2, heads: 2, head_dim: 2, block_size: 4, blocks: 3, element }
    }

    #[test]
    fn tokens_keep_their_place() {
        let arena = KvArena::new(shape(KvElement::F32)).unwrap();
        arena.write(1).store(KvHalf::Values, 2, 3, &[1.0, 2.0, 3.0, 4.0]);
        let expected: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(arena.read(1).tokens(KvHalf::Values, 2, 3..4), expected);
        assert_eq!(arena.read(1).tokens(KvHalf::Keys, 2, 3..4), [0; 16]);
        assert_eq!(arena.read(0).tokens(KvHalf::Values, 2, 3..4), [0; 16]);
    }

    #[test]
    fn a_copied_block_is_equal_in_every_layer() {
        let arena = KvArena::new(shape(KvElement::Bf16)).unwrap();
        for layer in 0..2 {
            arena.write(layer).store(KvHalf::Keys, 0, 1, &[1.0, 2.0, 3.0, layer as f32]);
        }
        arena.copy_block(0, 2);
        for layer in 0..2 {
            let read = arena.read(layer);
            assert_eq!(read.tokens(KvHalf::Keys, 2, 1..2), read.tokens(KvHalf::Keys, 0, 1..2));
            assert_eq!(read.tokens(KvHalf::Keys, 2, 1..2)[6..], bf16::from_f32(layer as f32).to_le_bytes());
        }
    }

    #[test]
    #[should_panic(expected = "block 3, slots 0..1")]
    fn a_block_outside_is_refused() {
        KvArena::new(shape(KvElement::Bf16)).unwrap().read(0).tokens(KvHalf::Keys, 3, 0..1);
    }
}
