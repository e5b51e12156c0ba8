//! The order in which one thread goes over its columns and all rows, so that what is used again soon is still in a cache.
//!
//! ```text
//! block  ─► some tiles of columns, times all rows, whose part of `k` stays in the second-level cache
//! part   ─► of `k`: a chunk of a segment
//! rows   ─► a tile of rows, whose part stays in the first-level cache
//! tile   ─► times a tile of columns, sums in registers (tile.rs)
//! ```

#![expect(unsafe_code, reason = "vector loads and disjoint writes from several threads")]

use std::ops::Range;

use super::inputs::Part;
use super::load::Load;
use super::tile::{OUTPUTS, Tile, columns_max};
use super::{Columns, WAITING};
use crate::pool::SharedMut;
use crate::simd::Simd;

/// Bytes of weights of a block: every tile of rows passes over them before the next block.
const BLOCK: usize = 384 << 10;

/// Tiles of columns in a block, at most.
const ACROSS: usize = 16;

/// `[waiting sum][output of a tile]`
type Sums = [[f32; OUTPUTS]; WAITING];

/// What a thread works with, kept from product to product: of a block, `[tile of rows][tile of columns]`.
#[derive(Default)]
pub(super) struct Scratch(Vec<Sums>);

/// Columns, at most `across` tiles of these.
struct Block {
    columns: Range<usize>,
    across: usize,
}

impl Columns<'_> {
    /// # Safety
    /// As [`crate::simd::Kernel::run`].
    #[inline(always)]
    pub(super) unsafe fn blocks<S: Simd, E: Load>(&self, scratch: &mut Scratch, out: &SharedMut<'_, f32>) {
        // The narrowest of all tiles, so that there is room for the sums whichever it is.
        let width = columns_max(S::LANES, self.tiles.largest());
        let bytes = (self.w.stride * E::SIZE * width).max(1);
        let across = (BLOCK / bytes).clamp(1, ACROSS);
        let room = (self.down.len() * across).max(scratch.0.len());
        scratch.0.resize(room, [[0.0; OUTPUTS]; WAITING]);
        for start in self.columns.clone().step_by(across * width) {
            let columns = start..(start + across * width).min(self.columns.end);
            // SAFETY: rows and columns exist, and `across` leaves none over.
            unsafe { self.block::<S, E>(&Block { columns, across }, scratch, out) };
        }
    }

    /// All outputs of a block.
    ///
    /// # Safety
    /// Its rows and columns exist. The CPU has `S`.
    #[inline(always)]
    unsafe fn block<S: Simd, E: Load>(&self, block: &Block, scratch: &mut Scratch, out: &SharedMut<'_, f32>) {
        let Scratch(sums) = scratch;
        for part in self.x.parts() {
            // SAFETY: the part's weights exist.
            unsafe { self.part::<S, E>(block, part, sums) };
        }
        for (tile, sums) in self.down.clone().zip(sums.chunks(block.across)) {
            self.finish::<S>(&self.tiles.rows(tile), &block.columns, sums, out);
        }
    }

    /// Adds a part of `k` to the sums of a block.
    ///
    /// # Safety
    /// The block's rows, and the weights of its columns exist. The CPU has `S`.
    #[inline(always)]
    unsafe fn part<S: Simd, E: Load>(&self, block: &Block, part: &Part, sums: &mut [Sums]) {
        let w_stride = self.w.stride * E::SIZE;
        let start = block.columns.start * w_stride + part.k.start * E::SIZE;
        let start = self.w.bytes.as_ptr().wrapping_add(start);
        for (down, sums) in self.down.clone().zip(sums.chunks_mut(block.across)) {
            let rows = self.tiles.rows(down);
            let (x, width) = (self.x.tile(&rows, part.at), columns_max(S::LANES, rows.len()));
            for (column, sums) in (0..block.columns.len()).step_by(width).zip(sums) {
                let w = start.wrapping_add(column * w_stride);
                // Later tiles of rows find in a cache what the first one has asked for.
                let ahead = if down == self.down.start { width * w_stride } else { 0 };
                let tile = Tile { x, w, w_stride, k: part.k.len(), ahead };
                let mut chunk = [0.0; OUTPUTS];
                // SAFETY: rows, columns and the part of `k` exist on both sides.
                unsafe { tile.sums::<S, E>(rows.len(), width.min(block.columns.len() - column), &mut chunk) };
                take(sums, part, &chunk);
            }
        }
    }

    /// Writes the outputs of a tile of rows.
    #[inline(always)]
    fn finish<S: Simd>(&self, rows: &Range<usize>, columns: &Range<usize>, sums: &[Sums], out: &SharedMut<'_, f32>) {
        for (index, row) in rows.clone().enumerate() {
            // SAFETY: the output row has `w.rows` columns, of which this task owns `columns`.
            let out = unsafe { out.slice(row * self.w.rows + columns.start, columns.len()) };
            match columns_max(S::LANES, rows.len()) {
                2 => put::<2>(out, index, sums),
                3 => put::<3>(out, index, sums),
                4 => put::<4>(out, index, sums),
                5 => put::<5>(out, index, sums),
                _ => put::<8>(out, index, sums),
            }
            if let Some(bias) = self.bias {
                out.iter_mut().zip(&bias[columns.clone()]).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

/// Copies a row's outputs of each tile of `N` columns.
#[inline(always)]
fn put<const N: usize>(out: &mut [f32], row: usize, sums: &[Sums]) {
    let (whole, rest) = out.as_chunks_mut::<N>();
    for (out, sums) in whole.iter_mut().zip(sums) {
        out.copy_from_slice(&sums[0][row * N..][..N]);
    }
    if !rest.is_empty() {
        rest.copy_from_slice(&sums[whole.len()][0][row * N..][..rest.len()]);
    }
}

/// Adds a chunk's sums to its segment's, and after the last one joins what waits for them.
#[inline(always)]
fn take(sums: &mut Sums, part: &Part, chunk: &[f32; OUTPUTS]) {
    let place = part.step.place;
    if part.first {
        sums[place] = *chunk;
    } else {
        sums[place].iter_mut().zip(chunk).for_each(|(sum, chunk)| *sum += chunk);
    }
    let joins = if part.last { part.step.joins } else { 0 };
    for place in (place - joins..place).rev() {
        let right = sums[place + 1];
        sums[place].iter_mut().zip(right).for_each(|(left, right)| *left += right);
    }
}
