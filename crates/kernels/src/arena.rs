//! The keys and values of one rank, in blocks: `[layer][K | V][block][token in block][head]`, so a layer of neighbouring blocks is two runs
//! of memory, as it is handed over.
//!
//! There are no locks: a step writes the tokens of its own sequences while transfers read finished ones and write others. Whoever holds
//! a block decides who writes to it and who reads (see [`KvMemory`] for what holds if that goes wrong).

#![expect(unsafe_code, reason = "raw stores within a place that the arena has checked")]

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::memory::KvMemory;
use crate::simd::{Isa, Kernel, Simd};

/// How keys and values are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvElement {
    F32,
    Bf16,
    /// Per token and head: `head_dim` signed bytes, then their scale as f32; a value is byte x scale.
    Int8,
}

impl KvElement {
    /// Bytes of one head of one token.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            KvElement::F32 => 4 * head_dim,
            KvElement::Bf16 => 2 * head_dim,
            KvElement::Int8 => head_dim + size_of::<f32>(),
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
    /// Bytes of one head of one token.
    pub fn head_bytes(&self) -> usize {
        self.element.head_bytes(self.head_dim)
    }

    /// Bytes of the keys (or values) of one token in one layer.
    pub fn token_bytes(&self) -> usize {
        self.heads * self.head_bytes()
    }

    /// Bytes of the whole arena; `None` if they cannot be counted.
    pub fn bytes(&self) -> Option<usize> {
        let head = self.head_dim.checked_mul(4)?.checked_add(4)?;
        let most =
            [self.heads, self.block_size, self.blocks, self.layers, 2].into_iter().try_fold(head, usize::checked_mul);
        most.map(|_| 2 * self.layers * self.blocks * self.block_size * self.token_bytes())
    }

    /// Where some tokens' keys or values lie, from the arena's start on. Panics if there is no such place.
    pub fn place(&self, layer: usize, half: KvHalf, block: usize, slots: Range<usize>) -> Range<usize> {
        let inside =
            layer < self.layers && block < self.blocks && slots.start <= slots.end && slots.end <= self.block_size;
        assert!(inside, "layer {layer}, block {block}, slots {slots:?} of {self:?}");
        let half = match half {
            KvHalf::Keys => 0,
            KvHalf::Values => 1,
        };
        let first = ((2 * layer + half) * self.blocks + block) * self.block_size;
        (first + slots.start) * self.token_bytes()..(first + slots.end) * self.token_bytes()
    }
}

/// Storage of one rank's heads in every layer.
#[derive(Debug)]
pub struct KvArena {
    shape: KvShape,
    memory: Arc<KvMemory>,
    /// Where it begins.
    start: usize,
}

/// One layer of an arena.
#[derive(Clone, Copy, Debug)]
pub struct KvLayer<'a> {
    pub arena: &'a KvArena,
    pub layer: usize,
}

/// New tokens of one sequence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KvRow {
    /// Index of its first token in the batch.
    pub first: usize,
    /// Number of new tokens.
    pub count: usize,
    /// Position of its first new token.
    pub start: usize,
    /// Which of [`KvRows::blocks`] are its own.
    pub blocks: Range<usize>,
}

/// New tokens of some sequences.
#[derive(Clone, Copy, Debug)]
pub struct KvRows<'a> {
    pub rows: &'a [KvRow],
    /// A row's `i`th block holds the positions from `i * block_size` on; they must reach `start + count`.
    pub blocks: &'a [u32],
}

impl<'a> KvRows<'a> {
    /// A row's blocks.
    pub(crate) fn blocks_of(&self, row: &KvRow) -> &'a [u32] {
        &self.blocks[row.blocks.clone()]
    }

    /// These tokens of the batch, each with its block and its slot in there. Panics if a row does not fit its blocks.
    pub(crate) fn places(self, tokens: Range<usize>, block_size: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        self.rows.iter().flat_map(move |row| {
            let blocks = self.blocks_of(row);
            let tokens = row.first.max(tokens.start)..(row.first + row.count).min(tokens.end);
            tokens.map(move |token| {
                let position = row.start + token - row.first;
                (token, blocks[position / block_size] as usize, position % block_size)
            })
        })
    }
}

impl KvArena {
    /// The arenas of all ranks, one after the other in one memory.
    pub fn of_ranks(shape: KvShape, ranks: usize) -> io::Result<Vec<Arc<KvArena>>> {
        let each = shape.bytes().ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = Arc::new(KvMemory::new(each.checked_mul(ranks).ok_or(io::ErrorKind::OutOfMemory)?)?);
        Ok((0..ranks).map(|rank| Arc::new(Self { shape, memory: memory.clone(), start: rank * each })).collect())
    }

    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// What the arenas of all ranks lie in.
    pub fn memory(&self) -> &Arc<KvMemory> {
        &self.memory
    }

    /// Copies a whole block in every layer. Panics if there is no such block.
    pub fn copy_block(&self, from: usize, to: usize) {
        for layer in 0..self.shape.layers {
            for half in [KvHalf::Keys, KvHalf::Values] {
                let [from, to] = [from, to].map(|block| self.shape.place(layer, half, block, 0..self.shape.block_size));
                self.memory.copy_within(self.start + from.start, self.start + to.start, from.len());
            }
        }
    }

    /// Where one head of some tokens lies, that of the first; the others follow `token_bytes` apart. Panics if there is no such place.
    #[inline(always)]
    pub(crate) fn heads(
        &self,
        layer: usize,
        half: KvHalf,
        block: usize,
        slots: Range<usize>,
        head: usize,
    ) -> *const u8 {
        assert!(head < self.shape.heads && !slots.is_empty(), "head {head}, slots {slots:?} of {:?}", self.shape);
        let place = self.shape.place(layer, half, block, slots);
        self.memory.span(self.start + place.start, place.len()).wrapping_add(head * self.shape.head_bytes())
    }
}

impl KvLayer<'_> {
    /// Stores the keys or values of a token, `[head][head_dim]`: rounded to nearest even in bf16; in int8 by a scale that makes the
    /// largest of a head 127. Panics if they are of another width, or there is no such place.
    pub(crate) fn store(&self, isa: Isa, half: KvHalf, block: usize, slot: usize, values: &[f32]) {
        let KvArena { shape, memory, start } = self.arena;
        assert_eq!(values.len(), shape.heads * shape.head_dim, "values of a token of {shape:?}");
        let place = shape.place(self.layer, half, block, slot..slot + 1);
        isa.run(Store { values, shape, to: memory.span_to_write(start + place.start, place.len()) });
    }
}

/// One token's heads.
struct Store<'a> {
    values: &'a [f32],
    shape: &'a KvShape,
    /// As many bytes as `values` take.
    to: *mut u8,
}

impl Kernel for Store<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let size = self.shape.head_bytes();
        for (head, values) in self.values.chunks_exact(self.shape.head_dim).enumerate() {
            // SAFETY: `to` has room for every head; plain stores of as many bytes as a head takes.
            unsafe {
                let to = self.to.add(head * size);
                match self.shape.element {
                    KvElement::F32 => std::ptr::copy_nonoverlapping(values.as_ptr().cast(), to, size),
                    KvElement::Bf16 => store_bf16(values, to),
                    KvElement::Int8 => store_int8::<S>(values, to),
                }
            }
        }
    }
}

/// # Safety
/// Two bytes per value can be written.
#[inline(always)]
unsafe fn store_bf16(values: &[f32], to: *mut u8) {
    for (at, value) in values.iter().enumerate() {
        let bits = value.to_bits();
        let nearest = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        // A payload in the low half alone must not round to infinity.
        let rounded = if value.is_nan() { bits >> 16 | 0x40 } else { nearest };
        // SAFETY: as the caller grants.
        unsafe { to.add(2 * at).cast::<u16>().write_unaligned(rounded as u16) };
    }
}

/// # Safety
/// A byte per value and four more can be written; the CPU has `S`.
#[inline(always)]
unsafe fn store_int8<S: Simd>(values: &[f32], to: *mut u8) {
    let count = values.len();
    // SAFETY: at most `count - i` lanes are read from `i` on; writes as the caller grants.
    unsafe {
        let (mut top, mut sound) = (S::splat(0.0), S::splat(0.0));
        for i in (0..count).step_by(S::LANES) {
            let value = S::load_upto(values.as_ptr().add(i), count - i);
            top = S::max(top, S::max(value, S::sub(S::splat(0.0), value)));
            // Zero, unless a value is not finite: then the scale is to say so.
            sound = S::mul_add(value, S::splat(0.0), sound);
        }
        let top = S::max_lane(top);
        let inverse = if top > 0.0 { 127.0 / top } else { 0.0 };
        for (at, value) in values.iter().enumerate() {
            to.add(at).write((value * inverse).round_ties_even() as i8 as u8);
        }
        let scale = top / 127.0 + S::sum(sound);
        to.add(count).cast::<f32>().write_unaligned(scale);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn arena(element: KvElement) -> Arc<KvArena> {
        let shape = KvShape { layers: 2, heads: 2, head_dim: 2, block_size: 4, blocks: 3, element };
        KvArena::of_ranks(shape, 2).unwrap().remove(1)
    }

    /// Into slot 3 of block 2.
    fn store(arena: &KvArena, layer: usize, half: KvHalf, values: &[f32]) {
        KvLayer { arena, layer }.store(*Isa::available().last().unwrap(), half, 2, 3, values);
    }

    fn token(arena: &KvArena, layer: usize, half: KvHalf, block: usize, slot: usize) -> Vec<u8> {
        let place = arena.shape().place(layer, half, block, slot..slot + 1);
        let mut bytes = vec![0; place.len()];
        arena.memory().read(arena.start + place.start, &mut bytes);
        bytes
    }

    #[test]
    fn tokens_keep_their_place() {
        let arena = arena(KvElement::F32);
        store(&arena, 1, KvHalf::Values, &[1.0, 2.0, 3.0, 4.0]);
        let expected: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(token(&arena, 1, KvHalf::Values, 2, 3), expected);
        assert_eq!(token(&arena, 1, KvHalf::Keys, 2, 3), [0; 16]);
        assert_eq!(token(&arena, 0, KvHalf::Values, 2, 3), [0; 16]);
    }

    #[test]
    fn bf16_is_rounded_to_nearest_even_on_every_level() {
        let numbers = [1.0, -1.005, 3.9e-3, 1e30, 65504.0, f32::INFINITY, f32::NAN, f32::from_bits(0x3f80_8000)];
        for isa in Isa::available() {
            for pair in numbers.windows(4) {
                let arena = arena(KvElement::Bf16);
                KvLayer { arena: &arena, layer: 0 }.store(isa, KvHalf::Keys, 2, 3, pair);
                let expected: Vec<u8> = pair.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
                assert_eq!(token(&arena, 0, KvHalf::Keys, 2, 3), expected, "{isa}: {pair:?}");
            }
        }
    }

    #[test]
    fn int8_keeps_the_largest_of_each_head_and_says_what_is_no_number() {
        let arena = arena(KvElement::Int8);
        store(&arena, 0, KvHalf::Keys, &[-2.0, 1.0, 0.0, 0.0]);
        let bytes = token(&arena, 0, KvHalf::Keys, 2, 3);
        let scale = |at: usize| f32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        assert_eq!((bytes[0] as i8, bytes[1] as i8, scale(2)), (-127, 64, 2.0 / 127.0));
        assert_eq!((bytes[6], bytes[7], scale(8)), (0, 0, 0.0));
        store(&arena, 0, KvHalf::Keys, &[f32::NAN, 1.0, f32::INFINITY, 0.0]);
        let bytes = token(&arena, 0, KvHalf::Keys, 2, 3);
        let scale = |at: usize| f32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        assert!(!scale(2).is_finite() && !scale(8).is_finite());
    }

    #[test]
    fn a_copied_block_is_equal_in_every_layer() {
        let arena = arena(KvElement::Bf16);
        let parts =
            [(0, KvHalf::Keys, 4.0), (0, KvHalf::Values, 5.0), (1, KvHalf::Keys, 6.0), (1, KvHalf::Values, 7.0)];
        for (layer, half, last) in parts {
            store(&arena, layer, half, &[1.0, 2.0, 3.0, last]);
        }
        arena.copy_block(2, 0);
        for (layer, half, last) in parts {
            let copied = token(&arena, layer, half, 0, 3);
            assert_eq!(copied, token(&arena, layer, half, 2, 3));
            assert_eq!(copied[6..], bf16::from_f32(last).to_le_bytes());
        }
    }

    #[test]
    #[should_panic(expected = "block 3, slots 0..1")]
    fn a_block_outside_is_refused() {
        arena(KvElement::Bf16).heads(0, KvHalf::Keys, 3, 0..1, 0);
    }

    #[test]
    fn an_arena_beyond_counting_has_no_size() {
        let shape = KvShape { blocks: usize::MAX / 2, ..*arena(KvElement::F32).shape() };
        assert_eq!(shape.bytes(), None);
    }
}
