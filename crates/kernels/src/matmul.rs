//! `y[m][n] = sum over k of x[m][k] * w[n][k]`, with `w` as it lies in the model file.
//!
//! One order per output element: `k` is cut into segments at fixed places; within a segment, each lane of a vector adds its share of
//! the products one after the other as `k` grows, and the lanes are added as a tree; so are the segments. How many rows or columns are
//! worked on together changes which elements share a load, never this order.
//!
//! ```text
//! Inputs  ─► x, once for all products of it (inputs.rs)
//! task    ─► a run of columns (rows of `w`), in blocks that stay in the second-level cache
//! block   ─► all rows of x, a few at a time, which stay in the first-level cache
//! tile    ─► those times a few columns, sums in registers (tile.rs)
//! ```
//!
//! Every weight is loaded along its row, where memory is fastest, and taken apart at two instructions for 32 of them; so weights need
//! no second, packed copy.

#![expect(unsafe_code, reason = "vector loads and disjoint writes from several threads")]

mod inputs;
mod load;
mod segments;
mod tile;
mod weight;

use std::ops::Range;

pub use inputs::Inputs;
use inputs::Tiles;
pub(crate) use load::{Bf16, F32, widen};
pub(crate) use segments::WAITING;
pub use segments::{SEGMENTS, Segments, tree_sum};
pub use weight::{Element, WeightView};

use crate::simd::{Isa, Kernel, Simd};
use crate::{Pool, pool::SharedMut};
use load::{F16, Load};
use tile::{OUTPUTS, Tile, columns_max};

/// Bytes of weights that all rows of `x` pass over before the next: a part of the second-level cache.
const BLOCK: usize = 96 << 10;

/// `out = x * w^T (+ bias)`: `x` is `[m][w.cols]`, `out` `[m][w.rows]`, `bias` `[w.rows]`. Panics if the shapes do not agree.
pub fn matmul(isa: Isa, pool: &Pool, x: &Inputs, w: &WeightView<'_>, bias: Option<&[f32]>, out: &mut [f32]) {
    assert!(x.fit(isa, w.element, w.cols), "inputs of another product");
    assert!(bias.is_none_or(|bias| bias.len() == w.rows), "bias of another product");
    assert_eq!(x.rows() * w.rows, out.len(), "{} rows into {} outputs of {}", x.rows(), out.len(), w.rows);
    if out.is_empty() {
        return;
    }
    // Few tasks, so that each reads one long run of memory.
    let share = w.rows.div_ceil(pool.threads());
    let out = SharedMut::new(out);
    pool.run(w.rows.div_ceil(share), |task| {
        let columns = task * share..((task + 1) * share).min(w.rows);
        isa.run(Columns { x, w, bias, columns, tiles: Tiles::of(isa, x.rows()), out: &out });
    });
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

impl Columns<'_> {
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn blocks<S: Simd, E: Load>(&self) {
        let width = columns_max(S::LANES, self.tiles.rows(0).len());
        let block = (BLOCK / (self.w.cols * E::SIZE).max(1)).max(1).next_multiple_of(width);
        let ahead = if self.tiles.count == 1 { width } else { block } * self.w.stride * E::SIZE;
        for start in self.columns.clone().step_by(block) {
            let end = (start + block).min(self.columns.end);
            for tile in 0..self.tiles.count {
                let rows = self.tiles.rows(tile);
                let width = columns_max(S::LANES, rows.len());
                for column in (start..end).step_by(width) {
                    // SAFETY: rows and columns exist.
                    unsafe { self.tile::<S, E>(&rows, &(column..(column + width).min(end)), ahead) };
                }
            }
        }
    }

    /// Sums every segment, joins them, and writes the outputs.
    ///
    /// # Safety
    /// Rows and columns exist, no more than a tile has. The CPU has `S`.
    #[inline(always)]
    unsafe fn tile<S: Simd, E: Load>(&self, rows: &Range<usize>, columns: &Range<usize>, ahead: usize) {
        let mut sums = [[0.0; OUTPUTS]; WAITING];
        let w_stride = self.w.stride * E::SIZE;
        for part in self.x.parts() {
            let tile = Tile {
                x: self.x.tile(rows, part.at),
                w: self.w.bytes.as_ptr().wrapping_add(columns.start * w_stride + part.k.start * E::SIZE),
                w_stride,
                k: part.k.len(),
                ahead,
            };
            // SAFETY: rows, columns and the part of `k` exist on both sides.
            unsafe { tile.sums::<S, E>(rows.len(), columns.len(), &mut sums[part.step.place]) };
            for place in (part.step.place - part.step.joins..part.step.place).rev() {
                let right = sums[place + 1];
                sums[place].iter_mut().zip(right).for_each(|(left, right)| *left += right);
            }
        }
        let width = columns_max(S::LANES, rows.len());
        for (row, sums) in rows.clone().zip(sums[0].chunks_exact(width)) {
            // SAFETY: the output row has `w.rows` columns, of which this task owns `columns`.
            let out = unsafe { self.out.slice(row * self.w.rows + columns.start, columns.len()) };
            match self.bias {
                None => out.copy_from_slice(&sums[..out.len()]),
                Some(bias) => {
                    let bias = &bias[columns.clone()];
                    out.iter_mut().zip(sums).zip(bias).for_each(|((out, sum), bias)| *out = sum + bias);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
