//! `y[m][n] = sum over k of x[m][k] * w[n][k]`, with `w` as it lies in the model file.
//!
//! One order per output element: `k` is cut into segments, and those into chunks, at fixed places; within a chunk, each lane of a
//! vector adds its share of the products one after the other as `k` grows, and the lanes are added as a tree; chunks are added one
//! after the other, segments as a tree. How many rows or columns are worked on together changes which elements share a load, never
//! this order.
//!
//! ```text
//! Inputs    ─► x, once for all products of it (inputs.rs)
//! task      ─► a run of columns (rows of `w`), of many rows some tiles
//! few rows  ─► blocks (block.rs) of tiles (tile.rs): a vector holds neighbouring values of `k` of one row
//! many rows ─► panels of widened weights (many.rs): a vector holds one value of `k` of neighbouring rows
//!            ─► gate and up of an MLP at once, into the Inputs of what follows (gated.rs)
//! ```
//!
//! Where there are tile registers, products with bf16 weights go by them instead (tiled.rs).
//!
//! Every weight is loaded along its row, where memory is fastest, and taken apart at two instructions for 32 of them; so weights need
//! no second, packed copy.

#![expect(unsafe_code, reason = "vector loads and disjoint writes from several threads")]

mod block;
mod gated;
mod inputs;
mod load;
mod many;
mod segments;
mod tile;
mod tiled;
mod weight;

use std::cell::RefCell;
use std::ops::Range;

pub use gated::{Projection, gated_matmul};
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
use load::{F16, Load};

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
    let tiles = Tiles::of(isa, x.rows());
    let (groups, share) = if tiles.many() {
        (many::groups(isa, x, tiles), many::share(isa, w.rows, pool.threads(), 1))
    } else {
        // Few tasks, so that each reads one long run of memory.
        (1, w.rows.div_ceil(pool.threads()))
    };
    let shares = w.rows.div_ceil(share);
    pool.run(groups * shares, |task| {
        let down = tiles.group(task / shares, groups);
        let start = task % shares * share;
        let columns = Columns { x, w: *w, bias, tiles, down, columns: start..(start + share).min(w.rows) };
        SCRATCH.with_borrow_mut(|scratch| isa.run(Product { columns, out: &out, scratch }));
    });
}

/// Products with these weights go by tile registers.
pub(crate) fn by_tiles(isa: Isa, element: Element) -> bool {
    isa.tiles() != TileUnit::None && element == Element::Bf16
}

/// Some tiles of rows of `x` times some columns (rows of `w`); a task.
struct Columns<'a> {
    x: &'a Inputs,
    w: WeightView<'a>,
    bias: Option<&'a [f32]>,
    tiles: Tiles,
    /// All tiles, if there are few rows.
    down: Range<usize>,
    columns: Range<usize>,
}

/// What a thread works with.
#[derive(Default)]
struct Scratch {
    few: block::Scratch,
    many: many::Scratch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A task and what its thread works with.
struct Product<'a> {
    columns: Columns<'a>,
    /// `[m][w.rows]`; this task writes its rows and columns and nothing else.
    out: &'a SharedMut<'a, f32>,
    scratch: &'a mut Scratch,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `matmul` has checked the shapes.
        unsafe {
            match self.columns.w.element {
                Element::F32 => self.of::<S, F32>(),
                Element::F16 => self.of::<S, F16>(),
                Element::Bf16 => self.of::<S, Bf16>(),
            }
        }
    }
}

impl Product<'_> {
    /// # Safety
    /// As [`Kernel::run`], and weights are of type `E`.
    #[inline(always)]
    unsafe fn of<S: Simd, E: Load>(self) {
        let Self { columns, out, scratch } = self;
        // SAFETY: passed on.
        unsafe {
            if columns.tiles.many() {
                columns.many::<S, E>(&mut scratch.many, out);
            } else {
                columns.blocks::<S, E>(&mut scratch.few, out);
            }
        }
    }
}

#[cfg(test)]
mod tests;
