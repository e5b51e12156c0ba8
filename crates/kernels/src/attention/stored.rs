//! Keys and values of a tile, widened out of their blocks; keys are turned, so that a vector holds one element of neighbouring tokens.

use std::ops::Range;

use super::{Parts, TILE};
use crate::arena::{KvElement, KvHalf, KvLayer};
use crate::matmul::{self, Bf16, F32};
use crate::simd::{MAX_LANES, Simd};

/// Bytes that come from memory at once.
const LINE: usize = 64;

/// The keys and values that a task's queries read.
pub(super) struct Stored<'a> {
    pub(super) layer: &'a KvLayer<'a>,
    /// Of the row.
    pub(super) blocks: &'a [u32],
    pub(super) kv_head: usize,
}

impl Stored<'_> {
    /// Loads the positions `seen` of the tile that begins at `base`. Other places of the tile keep what they have.
    ///
    /// # Safety
    /// The row's blocks hold the positions; the CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn load<S: Simd>(&self, parts: &mut Parts<'_>, base: usize, seen: Range<usize>) {
        let (stride, block_size) = (parts.stride, self.layer.arena.shape().block_size);
        for start in (base..seen.end).step_by(S::LANES) {
            let some = start.max(seen.start)..(start + S::LANES).min(seen.end);
            let pairs = self.pairs::<S>(some.clone(), stride);
            self.ask::<S>(some.start + TILE..some.end + TILE);
            // SAFETY: passed on; LANES columns from a multiple of LANES on are within the tile, and `rows` holds as many keys.
            unsafe {
                let mut position = some.start;
                while position < some.end {
                    let slot = position % block_size;
                    let slots = slot..(slot + some.end - position).min(block_size);
                    let count = slots.len();
                    let block = self.blocks[position / block_size] as usize;
                    if pairs.is_none() {
                        let keys = &mut parts.rows[(position - start) * stride..];
                        self.widen::<S>(KvHalf::Keys, block, slots.clone(), keys, stride);
                    }
                    let values = &mut parts.v[(position - base) * stride..];
                    self.widen::<S>(KvHalf::Values, block, slots, values, stride);
                    position += count;
                }
                match pairs {
                    Some(first) => turn_pairs::<S>(parts, first, self.layer.arena.shape().token_bytes(), start - base),
                    None => turn_rows::<S>(parts, start - base),
                }
            }
        }
    }

    /// Asks memory for some positions, as far as the row's blocks go, so that they are near when their tile's turn comes.
    #[inline(always)]
    fn ask<S: Simd>(&self, positions: Range<usize>) {
        let KvLayer { arena, layer } = *self.layer;
        let shape = arena.shape();
        let mut position = positions.start;
        while position < positions.end
            && let Some(block) = self.blocks.get(position / shape.block_size)
        {
            let slot = position % shape.block_size;
            let slots = slot..(slot + positions.end - position).min(shape.block_size);
            for half in [KvHalf::Keys, KvHalf::Values] {
                let first = arena.heads(layer, half, *block as usize, slots.clone(), self.kv_head);
                for head in (0..slots.len()).map(|slot| first.wrapping_add(slot * shape.token_bytes())) {
                    let lines = (0..shape.head_bytes()).step_by(LINE);
                    // SAFETY: asking for memory reads nothing.
                    lines.for_each(|at| unsafe { S::prefetch(head.wrapping_add(at)) });
                }
            }
            position += slots.len();
        }
    }

    /// The keys of a vector's worth of tokens in one block, where they can be turned as pairs of elements.
    #[inline(always)]
    fn pairs<S: Simd>(&self, tokens: Range<usize>, stride: usize) -> Option<*const u8> {
        let KvLayer { arena, layer } = *self.layer;
        let shape = arena.shape();
        let slot = tokens.start % shape.block_size;
        let whole = tokens.len() == S::LANES && slot + S::LANES <= shape.block_size;
        let even = shape.head_dim == stride && stride.is_multiple_of(2 * S::LANES);
        if !whole || !even || shape.element != KvElement::Bf16 {
            return None;
        }
        let block = self.blocks[tokens.start / shape.block_size] as usize;
        Some(arena.heads(layer, KvHalf::Keys, block, slot..slot + S::LANES, self.kv_head))
    }

    /// Some tokens of a block, `[slot][stride]`.
    ///
    /// # Safety
    /// As [`Stored::load`].
    #[inline(always)]
    unsafe fn widen<S: Simd>(&self, half: KvHalf, block: usize, slots: Range<usize>, to: &mut [f32], stride: usize) {
        let KvLayer { arena, layer } = *self.layer;
        let shape = arena.shape();
        let first = arena.heads(layer, half, block, slots.clone(), self.kv_head);
        let heads = (0..slots.len()).map(|slot| first.wrapping_add(slot * shape.token_bytes()));
        let to = to.chunks_mut(stride).map(|to| &mut to[..shape.head_dim]);
        for (head, to) in heads.zip(to) {
            // SAFETY: a head is `head_dim` elements, as many as there is room for.
            unsafe {
                match shape.element {
                    KvElement::F32 => matmul::widen::<S, F32>(head, to),
                    KvElement::Bf16 => matmul::widen::<S, Bf16>(head, to),
                    KvElement::Int8 => widen_int8(head, to),
                }
            }
        }
    }
}

/// Turns the keys in `rows` into columns of `k`, from `column` on.
///
/// # Safety
/// The parts are as documented, and LANES columns fit; the CPU has `S`.
#[inline(always)]
unsafe fn turn_rows<S: Simd>(parts: &mut Parts<'_>, column: usize) {
    let stride = parts.stride;
    for i in (0..stride).step_by(S::LANES) {
        // SAFETY: as the caller grants.
        unsafe {
            let mut keys = [S::splat(0.0); MAX_LANES];
            for (row, keys) in keys.iter_mut().enumerate().take(S::LANES) {
                *keys = S::load(parts.rows.as_ptr().add(row * stride + i));
            }
            S::transpose(&mut keys);
            for (at, keys) in keys.iter().enumerate().take(S::LANES) {
                S::store(parts.k.as_mut_ptr().add(key_at::<S>(stride, i + at, column)), *keys);
            }
        }
    }
}

/// The same with LANES keys of bf16 from `first` on, `token_bytes` apart: two elements at a time, so half as much is turned.
///
/// # Safety
/// As [`turn_rows`]; the keys can be read, and are a multiple of two vectors long.
#[inline(always)]
unsafe fn turn_pairs<S: Simd>(parts: &mut Parts<'_>, first: *const u8, token_bytes: usize, column: usize) {
    for i in (0..parts.stride).step_by(2 * S::LANES) {
        // SAFETY: as the caller grants.
        unsafe {
            let mut pairs = [S::splat(0.0); MAX_LANES];
            for (row, pairs) in pairs.iter_mut().enumerate().take(S::LANES) {
                *pairs = S::load(first.add(row * token_bytes + 2 * i).cast());
            }
            S::transpose(&mut pairs);
            for (at, pairs) in pairs.iter().enumerate().take(S::LANES) {
                let to = parts.k.as_mut_ptr().add(key_at::<S>(parts.stride, i + 2 * at, column));
                S::store(to, S::low_bf16(*pairs));
                S::store(to.add(2 * S::LANES), S::high_bf16(*pairs));
            }
        }
    }
}

/// Where element `e` of the keys from `column`, a multiple of LANES, on lies in `k`.
#[inline(always)]
fn key_at<S: Simd>(stride: usize, e: usize, column: usize) -> usize {
    let (pair, half) = (column / (2 * S::LANES), column % (2 * S::LANES));
    (pair * stride + e) * 2 * S::LANES + half
}

/// # Safety
/// A byte for each of `out` and four more can be read.
#[inline(always)]
unsafe fn widen_int8(head: *const u8, out: &mut [f32]) {
    // SAFETY: as the caller grants.
    unsafe {
        let scale = head.add(out.len()).cast::<f32>().read_unaligned();
        for (at, out) in out.iter_mut().enumerate() {
            *out = f32::from(head.add(at).read() as i8) * scale;
        }
    }
}
