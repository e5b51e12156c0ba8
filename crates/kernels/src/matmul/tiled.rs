//! Products with bf16 weights by tile registers.
//!
//! Inputs are rounded to bf16; so this level has bits of its own. One order per output element here as everywhere: along a segment,
//! tiles add steps of 32 values one after the other; segments are added as a tree. A tile's element depends on its own row and column
//! only, so the number of rows does not show.
//!
//! ```text
//! TiledInputs ─► x in bf16, pair by pair (inputs.rs)
//! task        ─► a run of columns (rows of `w`)
//! group       ─► tiles of x that stay in the second-level cache while the task's weights pass
//! block       ─► 32 rows of `w`, read once per group, times two tiles of x at a time (block.rs)
//! ```

#![expect(unsafe_code, reason = "tiles, and disjoint writes from several threads")]

mod block;
mod inputs;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod trial;

use std::ops::Range;

pub(super) use inputs::TiledInputs;
#[cfg(target_arch = "x86_64")]
pub(crate) use trial::sums_are_right;

use super::WeightView;
use super::segments::{SEGMENTS, WAITING};
use crate::simd::{Isa, MAX_LANES, Simd};
use crate::tiles::{self, ROW_BYTES, SIDE, TileKernel, Tiles};
use crate::{Pool, pool::SharedMut};
use block::{AREA, Ahead, Block, DEPTH, SUMS, shapes};
use inputs::Part;

/// Bytes of inputs that a block of weights is multiplied by before the next.
const GROUP: usize = 1 << 20;

/// Rows of weights of a block, at most.
const ROWS: usize = 2 * SIDE;

/// `out = x * w^T (+ bias)` as [`super::matmul`], which has checked the shapes.
pub(super) fn matmul(
    isa: Isa,
    pool: &Pool,
    x: &TiledInputs,
    w: &WeightView<'_>,
    bias: Option<&[f32]>,
    out: &SharedMut<'_, f32>,
) {
    // Few tasks, so that each reads one long run of memory; and whole tiles.
    let share = w.rows.div_ceil(pool.threads()).next_multiple_of(SIDE);
    pool.run(w.rows.div_ceil(share), |task| {
        let columns = task * share..((task + 1) * share).min(w.rows);
        tiles::run(isa, Columns { x, w, bias, columns, out });
    });
}

/// All rows of `x` times some columns (rows of `w`); one thread's task.
struct Columns<'a> {
    x: &'a TiledInputs,
    w: &'a WeightView<'a>,
    bias: Option<&'a [f32]>,
    columns: Range<usize>,
    /// `[m][w.rows]`; this task writes `columns` of it and nothing else.
    out: &'a SharedMut<'a, f32>,
}

/// What a thread works with beside the tiles.
struct Room {
    /// `[waiting sum][weights][inputs][row of weights][row of inputs]`
    sums: [[f32; SUMS * AREA]; WAITING],
    /// The rest of each segment of a block's weights, see [`Block::rest`].
    rests: [[[u8; ROW_BYTES]; ROWS]; SEGMENTS],
}

impl TileKernel for Columns<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd, T: Tiles>(self) {
        let room = &mut Room { sums: [[0.0; SUMS * AREA]; WAITING], rests: [[[0; ROW_BYTES]; ROWS]; SEGMENTS] };
        // SAFETY: tiles exist where `T` does; `matmul` has checked the shapes.
        unsafe {
            let mut tiles = T::configure(&shapes(self.tile_rows(), self.x.columns())).expect("a level with tiles");
            let group = (GROUP / self.x.tile_bytes().max(1)).next_multiple_of(2).max(2);
            for first in (0..self.x.tiles()).step_by(group) {
                let group = first..(first + group).min(self.x.tiles());
                for start in self.columns.clone().step_by(ROWS) {
                    let columns = start..(start + ROWS).min(self.columns.end);
                    match columns.len() {
                        ..=SIDE => self.block::<S, T, 1>(&columns, &group, &mut tiles, room),
                        _ => self.block::<S, T, 2>(&columns, &group, &mut tiles, room),
                    }
                }
            }
        }
    }
}

impl Columns<'_> {
    /// Rows of a tile of weights.
    fn tile_rows(&self) -> usize {
        self.w.rows.min(SIDE)
    }

    /// The first rows of the tiles that hold these columns: the last ones may hold others, too, so that all tiles are whole.
    fn tops<const W: usize>(&self, columns: &Range<usize>) -> [usize; W] {
        std::array::from_fn(|tile| (columns.start + tile * SIDE).min(self.w.rows - self.tile_rows()))
    }

    /// Where the values from `k` on of a row of weights lie.
    fn row(&self, row: usize, k: usize) -> *const u8 {
        self.w.bytes.as_ptr().wrapping_add((row * self.w.stride + k) * self.w.element.size())
    }

    /// A group of tiles of rows times at most `W` tiles of columns.
    ///
    /// # Safety
    /// Tiles and columns exist, and `tiles` are configured for them. The CPU has `S`.
    #[inline(always)]
    unsafe fn block<S: Simd, T: Tiles, const W: usize>(
        &self,
        columns: &Range<usize>,
        group: &Range<usize>,
        tiles: &mut T,
        room: &mut Room,
    ) {
        let pairs = group.len().div_ceil(2);
        let next = (columns.end..self.columns.end).len().min(ROWS);
        self.copy_rests::<W>(columns, &mut room.rests);
        for (index, x) in group.clone().step_by(2).enumerate() {
            // Each pair asks for its share of the next block.
            let ahead = columns.end + next * index / pairs..columns.end + next * (index + 1) / pairs;
            // SAFETY: so many tiles are left.
            unsafe {
                match group.end - x {
                    1 => self.pair::<S, T, W, 1>(columns, x, ahead, tiles, room),
                    _ => self.pair::<S, T, W, 2>(columns, x, ahead, tiles, room),
                }
            }
        }
    }

    /// Copies what whole steps leave of each segment, so that nothing beyond it is read.
    fn copy_rests<const W: usize>(&self, columns: &Range<usize>, rests: &mut [[[u8; ROW_BYTES]; ROWS]; SEGMENTS]) {
        let size = self.w.element.size();
        for (part, rests) in self.x.parts().zip(rests).filter(|(part, _)| !part.k.len().is_multiple_of(DEPTH)) {
            let bytes = part.k.len() % DEPTH * size;
            for (top, rests) in self.tops::<W>(columns).into_iter().zip(rests.chunks_exact_mut(SIDE)) {
                for (row, rest) in (top..top + self.tile_rows()).zip(rests) {
                    let end = (row * self.w.stride + part.k.end) * size;
                    rest[..bytes].copy_from_slice(&self.w.bytes[end - bytes..end]);
                }
            }
        }
    }

    /// `W` tiles of columns times `X` tiles of rows from `x` on: sums every segment and joins them, and writes the outputs.
    ///
    /// # Safety
    /// As [`Columns::block`]; `room` holds the rests.
    #[inline(always)]
    unsafe fn pair<S: Simd, T: Tiles, const W: usize, const X: usize>(
        &self,
        columns: &Range<usize>,
        x: usize,
        ahead: Range<usize>,
        tiles: &mut T,
        room: &mut Room,
    ) {
        let w_stride = self.w.stride * self.w.element.size();
        for (part, rests) in self.x.parts().zip(&room.rests) {
            let Part { k, at, step } = part;
            let block = Block::<W, X> {
                w: self.tops::<W>(columns).map(|top| self.row(top, k.start)),
                w_stride,
                steps: k.len() / DEPTH,
                rest: (!k.len().is_multiple_of(DEPTH)).then(|| std::array::from_fn(|tile| rests[tile * SIDE].as_ptr())),
                x: std::array::from_fn(|tile| self.x.tile(x + tile, at)),
                columns: self.x.columns(),
                ahead: Ahead { from: self.row(ahead.start, k.start), stride: w_stride, rows: ahead.len() },
            };
            // SAFETY: the tiles of weights are rows that exist, the tiles of inputs are padded to whole steps.
            unsafe { block.sums::<S, T>(tiles, room.sums[step.place].as_mut_ptr()) };
            for place in (step.place - step.joins..step.place).rev() {
                let (left, right) = room.sums.split_at_mut(place + 1);
                let all = W * X * AREA;
                left[place][..all].iter_mut().zip(&right[0][..all]).for_each(|(left, right)| *left += right);
            }
        }
        // SAFETY: the columns and rows exist.
        unsafe { self.finish::<S, W, X>(columns, x, &room.sums[0]) };
    }

    /// Writes the outputs.
    ///
    /// # Safety
    /// As [`Columns::pair`].
    #[inline(always)]
    unsafe fn finish<S: Simd, const W: usize, const X: usize>(
        &self,
        columns: &Range<usize>,
        x: usize,
        sums: &[f32; SUMS * AREA],
    ) {
        for (index, top) in self.tops::<W>(columns).into_iter().enumerate() {
            let start = columns.start + index * SIDE;
            let owned = start..(start + SIDE).min(columns.end);
            let bias = self.bias.map(|bias| &bias[owned.clone()]);
            for tile in 0..X {
                let from = &sums[(index * X + tile) * AREA..][..AREA];
                // SAFETY: passed on.
                let turned = unsafe { turned::<S>(from) };
                let first = (x + tile) * self.x.columns();
                for (row, sums) in (first..self.x.rows().min(first + self.x.columns())).zip(&turned) {
                    // SAFETY: the output row has `w.rows` columns, of which this task owns these.
                    let out = unsafe { self.out.slice(row * self.w.rows + start, owned.len()) };
                    write(out, &sums[start - top..], bias);
                }
            }
        }
    }
}

/// `[column][row]` of a tile that is `[row][column]`.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
unsafe fn turned<S: Simd>(from: &[f32]) -> [[f32; SIDE]; SIDE] {
    let mut to = [[0.0; SIDE]; SIDE];
    for row in (0..SIDE).step_by(S::LANES) {
        for column in (0..SIDE).step_by(S::LANES) {
            // SAFETY: vectors within the tile.
            unsafe {
                let mut v = [S::splat(0.0); MAX_LANES];
                for (index, v) in v.iter_mut().enumerate().take(S::LANES) {
                    *v = S::load(from[(row + index) * SIDE + column..][..S::LANES].as_ptr());
                }
                S::transpose(&mut v);
                for (to, v) in to[column..].iter_mut().zip(v).take(S::LANES) {
                    S::store(to[row..][..S::LANES].as_mut_ptr(), v);
                }
            }
        }
    }
    to
}

/// `out = sums (+ bias)`: sixteen outputs, or those that are owned.
#[inline(always)]
fn write(out: &mut [f32], sums: &[f32], bias: Option<&[f32]>) {
    match (<&mut [f32; SIDE]>::try_from(&mut *out), <&[f32; SIDE]>::try_from(sums), bias) {
        (Ok(out), Ok(sums), None) => *out = *sums,
        (_, _, None) => out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum),
        (_, _, Some(bias)) => out.iter_mut().zip(sums).zip(bias).for_each(|((out, sum), bias)| *out = sum + bias),
    }
}
