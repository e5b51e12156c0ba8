//! `y[m][n] = sum over k of x[m][k] * w[n][k]`, with `w` as it lies in the model file.
//!
//! One order per output element: `k` is cut into segments, and those into chunks, at fixed places; within a chunk, each lane of a
//! vector adds its share of the products one after the other as `k` grows, and the lanes are added as a tree; chunks are added one
//! after the other, segments as a tree. How many rows or columns are
//! worked on together changes which elements share a load, never this order.
//!
//! ```text
//! Inputs  ─► x, once for all products of it (inputs.rs)
//! task    ─► a run of columns (rows of `w`), in blocks that stay in the second-level cache
//! block   ─► all rows of x, a few at a time, which stay in the first-level cache
//! tile    ─► those times a few columns, sums in registers (tile.rs)
//! ```
//!
//! Where there are tile registers, products with bf16 weights go by them instead (tiled.rs).
//!
//! Every weight is loaded along its row, where memory is fastest, and taken apart at two instructions for 32 of them; so weights need
//! no second, packed copy.

#![expect(unsafe_code, reason = "vector loads and disjoint writes from several threads")]

mod inputs;
mod load;
mod segments;
mod tile;
mod tiled;
mod weight;

use std::ops::Range;

pub use inputs::Inputs;
use inputs::{Part, Tiles};
pub(crate) use load::{Bf16, F32, widen};
pub(crate) use segments::WAITING;
pub use segments::{SEGMENTS, Segments, tree_sum};
#[cfg(target_arch = "x86_64")]
pub(crate) use tiled::sums_are_right;
pub use weight::{Element, WeightView};

use crate::simd::{Isa, Kernel, Simd};
use crate::tiles::TileUnit;
use crate::{Pool, pool::SharedMut};
use load::{F16, Load};
use tile::{OUTPUTS, Tile, columns_max};

/// Bytes of weights that a group of rows of `x` passes over before the next, and bytes of such a group: both stay in the second-level
/// cache.
const BLOCK: usize = 384 << 10;
const GROUP: usize = 768 << 10;

/// `out = x * w^T (+ bias)`: `x` is `[m][w.cols]`, `out` `[m][w.rows]`, `bias` `[w.rows]`. Panics if the shapes do not agree.
pub fn matmul(isa: Isa, pool: &Pool, x: &Inputs, w: &WeightView<'_>, bias: Option<&[f32]>, out: &mut [f32]) {
    assert!(x.fit(isa, w.element, w.cols), "inputs of another product");
    assert!(bias.is_none_or(|bias| bias.len() == w.rows), "bias of another product");
    assert_eq!(x.rows() * w.rows, out.len(), "{} rows into {} outputs of {}", x.rows(), out.len(), w.rows);
    if out.is_empty() {
        return;
    }
    let out = SharedMut::new(out);
    if by_tiles(isa, w.element) {
        return tiled::matmul(isa, pool, &x.tiled, w, bias, &out);
    }
    // Few tasks, so that each reads one long run of memory.
    let share = w.rows.div_ceil(pool.threads());
    pool.run(w.rows.div_ceil(share), |task| {
        let columns = task * share..((task + 1) * share).min(w.rows);
        isa.run(Columns { x, w, bias, columns, tiles: Tiles::of(isa, x.rows()), out: &out });
    });
}

/// Products with these weights go by tile registers.
fn by_tiles(isa: Isa, element: Element) -> bool {
    isa.tiles() != TileUnit::None && element == Element::Bf16
}

/// All rows of `x` times some columns (rows of `w`); one thread's task.
struct Columns<'a> {
    x: &'a Inputs,
    w: &'a WeightView<'a>,
    bias: Option<&'a [f32]>,
    columns: Range<usize>,
    tiles: Tiles,
    /// `[m][w.rows]`; this task writes `columns` of it and nothing else.
    out: &'a SharedMut<'a, f32>,
}

impl Kernel for Columns<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `matmul` has checked the shapes.
        unsafe {
            match self.w.element {
                Element::F32 => self.blocks::<S, F32>(),
                Element::F16 => self.blocks::<S, F16>(),
                Element::Bf16 => self.blocks::<S, Bf16>(),
            }
        }
    }
}

/// Tiles of a block, at most.
const TILES: usize = 24;

/// `[column tile][waiting sum][output]`
type Sums = [[[f32; OUTPUTS]; WAITING]; TILES];

impl Columns<'_> {
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn blocks<S: Simd, E: Load>(&self) {
        // The narrowest of all tiles, so that `sums` has room whichever it is for.
        let width = columns_max(S::LANES, self.tiles.largest());
        let stride = self.w.stride * E::SIZE;
        // With one tile of rows nothing is used twice.
        let tiles = if self.tiles.count == 1 { 1 } else { (BLOCK / (stride * width).max(1)).clamp(1, TILES) };
        let ahead = tiles * width * stride;
        let group = (GROUP / self.x.tile_bytes().max(1)).max(1);
        let mut sums = [[[0.0; OUTPUTS]; WAITING]; TILES];
        for first in (0..self.tiles.count).step_by(group) {
            for start in self.columns.clone().step_by(tiles * width) {
                let columns = start..(start + tiles * width).min(self.columns.end);
                for tile in first..(first + group).min(self.tiles.count) {
                    let rows = self.tiles.rows(tile);
                    // SAFETY: rows and columns exist.
                    unsafe { self.block::<S, E>(&rows, &columns, ahead, &mut sums) };
                    self.finish::<S>(&rows, &columns, &sums);
                }
            }
        }
    }

    /// Sums every segment of a tile of rows and a block of columns, and joins them.
    ///
    /// # Safety
    /// Rows and columns exist, no more than `sums` has room for. The CPU has `S`.
    #[inline(always)]
    unsafe fn block<S: Simd, E: Load>(
        &self,
        rows: &Range<usize>,
        columns: &Range<usize>,
        ahead: usize,
        sums: &mut Sums,
    ) {
        let (width, w_stride) = (columns_max(S::LANES, rows.len()), self.w.stride * E::SIZE);
        for part in self.x.parts() {
            let (x, w) = (self.x.tile(rows, part.at), self.w.bytes.as_ptr().wrapping_add(part.k.start * E::SIZE));
            for (column, sums) in columns.clone().step_by(width).zip(sums.iter_mut()) {
                let tile = Tile { x, w: w.wrapping_add(column * w_stride), w_stride, k: part.k.len(), ahead };
                let mut chunk = [0.0; OUTPUTS];
                // SAFETY: rows, columns and the part of `k` exist on both sides.
                unsafe { tile.sums::<S, E>(rows.len(), width.min(columns.end - column), &mut chunk) };
                take(sums, &part, &chunk);
            }
        }
    }

    /// Writes the outputs.
    #[inline(always)]
    fn finish<S: Simd>(&self, rows: &Range<usize>, columns: &Range<usize>, sums: &Sums) {
        let width = columns_max(S::LANES, rows.len());
        for (index, row) in rows.clone().enumerate() {
            // SAFETY: the output row has `w.rows` columns, of which this task owns `columns`.
            let out = unsafe { self.out.slice(row * self.w.rows + columns.start, columns.len()) };
            for (out, sums) in out.chunks_mut(width).zip(sums) {
                let sums = &sums[0][index * width..(index + 1) * width];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum);
            }
            if let Some(bias) = self.bias {
                out.iter_mut().zip(&bias[columns.clone()]).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

/// Adds a chunk's sums to its segment's, and after the last one joins what waits for them.
#[inline(always)]
fn take(sums: &mut [[f32; OUTPUTS]; WAITING], part: &Part, chunk: &[f32; OUTPUTS]) {
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

#[cfg(test)]
mod tests;
