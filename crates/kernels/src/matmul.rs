//! `y[m][n] = sum over k of x[m][k] * w[n][k]`, with `w` as it lies in the model file.
//!
//! One order per output element: `k` is cut into segments at fixed places; within a segment, products are added one after the other
//! as `k` grows; the segments are added as a balanced binary tree. How many rows or columns are worked on together changes which
//! elements share a load, never this order.
//!
//! ```text
//! task: a run of columns (rows of `w`), which are turned so that a vector holds neighbouring columns of one k (rows.rs)
//!   few rows of x:  multiplied at once (stream.rs)
//!   more:           kept as a panel, 4 vectors by 128 k (panel.rs), for all rows with their sums in registers (micro.rs)
//!   then segments are added, the bias is added, the result written
//! ```
//!
//! Turning costs an eighth of a cycle per weight, the multiplication of one row a thirty-second: from a few rows on it does not
//! show, and below that memory is slower than both. So weights need no second, packed copy.

#![expect(unsafe_code, reason = "vector loads and disjoint writes from several threads")]

mod load;
mod micro;
mod panel;
mod rows;
mod segments;
mod stream;
mod weight;

use std::mem::MaybeUninit;
use std::ops::Range;

pub(crate) use load::{Bf16, F32, widen};
pub(crate) use segments::WAITING;
pub use segments::{SEGMENTS, Segments, tree_sum};
pub use weight::{Element, WeightView};

use crate::simd::{Isa, Kernel, MAX_LANES, Simd};
use crate::{Pool, pool::SharedMut};
use load::{F16, Load};
use micro::Block;
use panel::{COLUMNS_MAX, DEPTH, Panel, STRIPS, WIDTH};
use stream::{STREAMED, stream};

/// Rows of `x` that share a panel: enough to hide the cost of turning it, few enough to stay in the second-level cache meanwhile.
const ROWS: usize = 128;

/// Up to this many rows, filling panels takes longer than multiplying.
const ROWS_FEW: usize = 32;

/// `out = x * w^T (+ bias)`: `x` is `[m][w.cols]`, `out` `[m][w.rows]`, `bias` `[w.rows]`. Panics if the shapes do not agree.
pub fn matmul(
    isa: Isa,
    pool: &Pool,
    x: &[f32],
    w: &WeightView<'_>,
    segments: &Segments,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    assert_eq!(segments.len(), w.cols, "segments of another product");
    assert!(bias.is_none_or(|bias| bias.len() == w.rows), "bias of another product");
    if w.rows == 0 || out.is_empty() {
        return;
    }
    let m = out.len() / w.rows;
    assert!(m * w.rows == out.len() && m * w.cols == x.len(), "{} by {} into {}", x.len(), w.cols, out.len());
    // Few tasks, so that each reads one long run of memory; multiples of MAX_LANES keep vectors whole.
    let columns = w.rows.div_ceil(pool.threads()).next_multiple_of(MAX_LANES);
    let out = SharedMut::new(out);
    pool.run(w.rows.div_ceil(columns), |task| {
        let columns = task * columns..((task + 1) * columns).min(w.rows);
        isa.run(Columns { x, m, w, segments, bias, columns, out: &out });
    });
}

/// All rows of `x` times some columns (rows of `w`); one thread's task.
struct Columns<'a> {
    x: &'a [f32],
    m: usize,
    w: &'a WeightView<'a>,
    segments: &'a Segments,
    bias: Option<&'a [f32]>,
    columns: Range<usize>,
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
                Element::F32 => self.panels::<S, F32>(),
                Element::F16 => self.panels::<S, F16>(),
                Element::Bf16 => self.panels::<S, Bf16>(),
            }
        }
    }
}

/// `[waiting sum][row][column]`
type Sums = MaybeUninit<[f32; WAITING * PLACE]>;

/// Floats from one waiting sum to the next.
const PLACE: usize = ROWS * COLUMNS_MAX;

impl Columns<'_> {
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn panels<S: Simd, E: Load>(&self) {
        let (mut panel, mut sums) = (Panel::new(), Sums::uninit());
        let sums = sums.as_mut_ptr().cast::<f32>();
        // For few rows a narrow panel is read back sooner; for many, a wide one saves passes over `x`.
        let vectors = if self.m <= STREAMED {
            1
        } else if self.m <= ROWS_FEW {
            WIDTH
        } else {
            STRIPS * WIDTH
        };
        let width = vectors * S::LANES;
        for row in (0..self.m).step_by(ROWS) {
            let rows = row..(row + ROWS).min(self.m);
            for start in self.columns.clone().step_by(width) {
                let columns = start..(start + width).min(self.columns.end);
                // SAFETY: rows and columns exist; `sums` has room for them at every place of the tree, the first of which then
                // holds the sum.
                unsafe {
                    self.tree::<S, E>(&mut panel, &rows, &columns, sums);
                    self.finish(&rows, &columns, sums);
                }
            }
        }
    }

    /// Sums every segment and joins them.
    ///
    /// # Safety
    /// Rows and columns exist, at most ROWS and a panel's columns; `sums` has room for WAITING such parts. The CPU has `S`.
    #[inline(always)]
    unsafe fn tree<S: Simd, E: Load>(
        &self,
        panel: &mut Panel,
        rows: &Range<usize>,
        columns: &Range<usize>,
        sums: *mut f32,
    ) {
        for step in self.segments.tree() {
            let k = self.segments.bounds[step.segment]..self.segments.bounds[step.segment + 1];
            // SAFETY: the tree never has more than WAITING parts; those that are joined are written and differ.
            unsafe {
                self.segment::<S, E>(panel, rows, columns, &k, sums.add(step.place * PLACE));
                for place in (step.place - step.joins..step.place).rev() {
                    for row in 0..rows.len() {
                        let left = sums.add(place * PLACE + row * COLUMNS_MAX);
                        for column in 0..columns.len() {
                            *left.add(column) += *left.add(PLACE + column);
                        }
                    }
                }
            }
        }
    }

    /// `to[row][column]` = the products of one segment of `k`. Whole vectors of columns are written.
    ///
    /// # Safety
    /// As [`Columns::tree`]; `k` lies within the rows of `w`.
    #[inline(always)]
    unsafe fn segment<S: Simd, E: Load>(
        &self,
        panel: &mut Panel,
        rows: &Range<usize>,
        columns: &Range<usize>,
        k: &Range<usize>,
        to: *mut f32,
    ) {
        let x = |row: usize, k: usize| self.x.as_ptr().wrapping_add((rows.start + row) * self.w.cols + k);
        if self.m <= STREAMED || k.is_empty() {
            // SAFETY: rows, columns and `k` exist, and there are as many rows as each arm says.
            return unsafe {
                match rows.len() {
                    1 => stream::<S, E, 1>([0].map(|row| x(row, k.start)), self.w, columns, k, to, COLUMNS_MAX),
                    2 => stream::<S, E, 2>([0, 1].map(|row| x(row, k.start)), self.w, columns, k, to, COLUMNS_MAX),
                    3 => stream::<S, E, 3>([0, 1, 2].map(|row| x(row, k.start)), self.w, columns, k, to, COLUMNS_MAX),
                    4 => {
                        stream::<S, E, 4>([0, 1, 2, 3].map(|row| x(row, k.start)), self.w, columns, k, to, COLUMNS_MAX)
                    }
                    rows => to.write_bytes(0, rows * COLUMNS_MAX),
                }
            };
        }
        for start in k.clone().step_by(DEPTH) {
            let part = start..(start + DEPTH).min(k.end);
            // SAFETY: columns, rows and `part` exist.
            unsafe {
                panel.fill::<S, E>(self.w, columns, &part);
                for strip in 0..Panel::strips::<S>(columns.len()) {
                    let block = Block {
                        x: x(0, part.start),
                        x_stride: self.w.cols,
                        strip: panel.strip::<S>(strip),
                        k: part.len(),
                        sums: to.add(strip * WIDTH * S::LANES),
                        fresh: start == k.start,
                    };
                    block.all::<S>(rows.len());
                }
            }
        }
    }

    /// Writes the outputs.
    ///
    /// # Safety
    /// `sums` is written for these rows and columns.
    #[inline(always)]
    unsafe fn finish(&self, rows: &Range<usize>, columns: &Range<usize>, sums: *const f32) {
        for (r, row) in rows.clone().enumerate() {
            // SAFETY: the output row has `w.rows` columns, of which this task owns `columns`.
            let (sum, out) = unsafe {
                let sum = std::slice::from_raw_parts(sums.add(r * COLUMNS_MAX), columns.len());
                (sum, self.out.slice(row * self.w.rows + columns.start, columns.len()))
            };
            match self.bias {
                None => out.copy_from_slice(sum),
                Some(bias) => {
                    let bias = &bias[columns.clone()];
                    out.iter_mut().zip(sum).zip(bias).for_each(|((out, sum), bias)| *out = sum + bias);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
