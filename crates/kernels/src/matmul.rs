//! `y[m][n] = sum over k of x[m][k] * w[n][k]`, with `w` as it lies in the model file.
//!
//! One order per output element: `k` is cut into segments, and those into chunks, at fixed places; within a chunk, each lane of a
//! vector adds its share of the products one after the other as `k` grows, and the lanes are added as a tree; chunks are added one
//! after the other, segments as a tree. How many rows or columns are worked on together changes which elements share a load, never
//! this order.
//!
//! ```text
//! Inputs  ─► x, once for all products of it (inputs.rs)
//! task    ─► a run of columns (rows of `w`), in blocks that stay in the second-level cache (block.rs)
//! tile    ─► a few rows of x times a few columns, sums in registers (tile.rs)
//! ```
//!
//! Where there are tile registers, products with bf16 weights go by them instead (tiled.rs).
//!
//! Every weight is loaded along its row, where memory is fastest, and taken apart at two instructions for 32 of them; so weights need
//! no second, packed copy. With many rows, those of a block are widened once for all of them (panel.rs).

#![expect(unsafe_code, reason = "vector loads and disjoint writes from several threads")]

mod block;
mod inputs;
mod load;
mod panel;
mod segments;
mod tile;
mod tiled;
mod weight;

use std::ops::Range;

use block::{SCRATCH, Scratch};
pub use inputs::Inputs;
use inputs::Tiles;
pub(crate) use load::{Bf16, F32, widen};
pub(crate) use segments::WAITING;
pub use segments::{SEGMENTS, Segments, tree_sum};
#[cfg(target_arch = "x86_64")]
pub(crate) use tiled::sums_are_right;
pub use weight::{Element, WeightView};

use crate::simd::{Isa, Kernel, Simd};
use crate::tiles::TileUnit;
use crate::{Pool, pool::SharedMut};
use load::F16;

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
        let columns = Columns { x, w, bias, columns, tiles: Tiles::of(isa, x.rows()), out: &out };
        SCRATCH.with_borrow_mut(|scratch| isa.run(Product { columns, scratch }));
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

/// A task and what its thread works with.
struct Product<'a> {
    columns: Columns<'a>,
    scratch: &'a mut Scratch,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { columns, scratch } = self;
        // SAFETY: `matmul` has checked the shapes.
        unsafe {
            match columns.w.element {
                Element::F32 => columns.blocks::<S, F32>(scratch),
                Element::F16 => columns.blocks::<S, F16>(scratch),
                Element::Bf16 => columns.blocks::<S, Bf16>(scratch),
            }
        }
    }
}

#[cfg(test)]
mod tests;
