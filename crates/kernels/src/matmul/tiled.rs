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
//!              ─► gate and up of an MLP at once, into the TiledInputs of what follows (gated.rs)
//! ```

#![expect(unsafe_code, reason = "tiles, and disjoint writes from several threads")]

mod block;
mod gated;
mod inputs;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod trial;

use std::ops::Range;

pub(super) use gated::gated;
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
    let share = share(w.rows, pool.threads());
    pool.run(w.rows.div_ceil(share), |task| {
        let columns = task * share..((task + 1) * share).min(w.rows);
        tiles::run(isa, Columns { x, w, bias, columns, out });
    });
}

/// Columns of a task: few tasks, so that each reads one long run of memory; and whole tiles.
fn share(columns: usize, threads: usize) -> usize {
    columns.div_ceil(threads).next_multiple_of(SIDE)
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

impl TileKernel for Columns<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd, T: Tiles>(self) {
        let room = &mut Room::new();
        // SAFETY: tiles exist where `T` does; `matmul` has checked the shapes.
        unsafe {
            let mut tiles = T::configure(&shapes(tile_rows(self.w), self.x.columns())).expect("a level with tiles");
            for group in self.x.groups() {
                for start in self.columns.clone().step_by(ROWS) {
                    let block = |start: usize| start..(start + ROWS).min(self.columns.end);
                    let (columns, next) = (block(start), block(start + ROWS));
                    match columns.len() {
                        ..=SIDE => self.block::<S, T, 1>(&columns, &next, &group, &mut tiles, room),
                        _ => self.block::<S, T, 2>(&columns, &next, &group, &mut tiles, room),
                    }
                }
            }
        }
    }
}

impl Columns<'_> {
    /// A group of tiles of rows times at most `W` tiles of columns.
    ///
    /// # Safety
    /// Tiles and columns exist, and `tiles` are configured for them. The CPU has `S`.
    #[inline(always)]
    unsafe fn block<S: Simd, T: Tiles, const W: usize>(
        &self,
        columns: &Range<usize>,
        next: &Range<usize>,
        group: &Range<usize>,
        tiles: &mut T,
        room: &mut Room,
    ) {
        let rows = |start| std::array::from_fn(|tile| Rows::of(self.w, start + tile * SIDE));
        let next = (!next.is_empty()).then(|| rows(next.start));
        let weights = Weights::<W> { x: self.x, rows: rows(columns.start), next };
        // SAFETY: passed on.
        unsafe { weights.times::<S, T, _>(group, &Outputs { task: self, columns: columns.clone() }, tiles, room) };
    }
}

/// Rows of weights in a tile.
fn tile_rows(w: &WeightView<'_>) -> usize {
    w.rows.min(SIDE)
}

/// The rows of weights of a tile.
#[derive(Clone, Copy)]
struct Rows<'a> {
    w: &'a WeightView<'a>,
    /// The first.
    top: usize,
}

impl<'a> Rows<'a> {
    /// The rows from `start` on. The last ones come with others before them, so that all tiles are whole.
    fn of(w: &'a WeightView<'a>, start: usize) -> Self {
        Self { w, top: start.min(w.rows - tile_rows(w)) }
    }

    /// Where the values from `k` on of a row lie, counted from the first.
    fn at(&self, row: usize, k: usize) -> *const u8 {
        self.w.bytes.as_ptr().wrapping_add(((self.top + row) * self.w.stride + k) * self.w.element.size())
    }

    /// Bytes from one row to the next.
    fn stride(&self) -> usize {
        self.w.stride * self.w.element.size()
    }
}

/// What becomes of the sums of some tiles.
trait Finish<const W: usize> {
    /// Takes `[weights][inputs][row of weights][row of inputs]` of the tiles of inputs from `x` on.
    ///
    /// # Safety
    /// The tiles exist, and no other task has these. The CPU has `S`.
    unsafe fn finish<S: Simd, const X: usize>(&self, x: usize, sums: &mut [f32; SUMS * AREA]);
}

/// What a thread works with beside the tiles.
struct Room {
    /// `[waiting sum][weights][inputs][row of weights][row of inputs]`
    sums: [[f32; SUMS * AREA]; WAITING],
    /// The rest of each segment of a block's weights, see [`Block::rest`].
    rests: [[[u8; ROW_BYTES]; ROWS]; SEGMENTS],
}

impl Room {
    fn new() -> Self {
        Self { sums: [[0.0; SUMS * AREA]; WAITING], rests: [[[0; ROW_BYTES]; ROWS]; SEGMENTS] }
    }
}

/// Tiles of weights, of matrices with the same stride.
struct Weights<'a, const W: usize> {
    x: &'a TiledInputs,
    rows: [Rows<'a>; W],
    /// Those that come after them, if any.
    next: Option<[Rows<'a>; W]>,
}

impl<const W: usize> Weights<'_, W> {
    /// Times a group of tiles of rows of inputs.
    ///
    /// # Safety
    /// The tiles exist, and `tiles` are configured for them. The CPU has `S`. As [`Finish::finish`].
    #[inline(always)]
    unsafe fn times<S: Simd, T: Tiles, F: Finish<W>>(
        &self,
        group: &Range<usize>,
        to: &F,
        tiles: &mut T,
        room: &mut Room,
    ) {
        let pairs = group.len().div_ceil(2);
        self.copy_rests(&mut room.rests);
        for (index, x) in group.clone().step_by(2).enumerate() {
            // Each pair asks for its share of the next tiles.
            let ahead = SIDE * index / pairs..SIDE * (index + 1) / pairs;
            // SAFETY: so many tiles are left.
            unsafe {
                match group.end - x {
                    1 => self.pair::<S, T, F, 1>(x, ahead, to, tiles, room),
                    _ => self.pair::<S, T, F, 2>(x, ahead, to, tiles, room),
                }
            }
        }
    }

    /// Copies what whole steps leave of each segment, so that nothing beyond it is read.
    fn copy_rests(&self, rests: &mut [[[u8; ROW_BYTES]; ROWS]; SEGMENTS]) {
        for (part, rests) in self.x.parts().zip(rests).filter(|(part, _)| !part.k.len().is_multiple_of(DEPTH)) {
            for (Rows { w, top }, rests) in self.rows.into_iter().zip(rests.chunks_exact_mut(SIDE)) {
                let (size, rows) = (w.element.size(), top..top + tile_rows(w));
                let bytes = part.k.len() % DEPTH * size;
                for (row, rest) in rows.zip(rests) {
                    let end = (row * w.stride + part.k.end) * size;
                    rest[..bytes].copy_from_slice(&w.bytes[end - bytes..end]);
                }
            }
        }
    }

    /// `X` tiles of inputs from `x` on: sums every segment and joins them.
    ///
    /// # Safety
    /// As [`Weights::times`]; `room` holds the rests.
    #[inline(always)]
    unsafe fn pair<S: Simd, T: Tiles, F: Finish<W>, const X: usize>(
        &self,
        x: usize,
        ahead: Range<usize>,
        to: &F,
        tiles: &mut T,
        room: &mut Room,
    ) {
        for (part, rests) in self.x.parts().zip(&room.rests) {
            let Part { k, at, step } = part;
            let block = Block::<W, X> {
                w: self.rows.map(|rows| rows.at(0, k.start)),
                w_stride: self.rows[0].stride(),
                steps: k.len() / DEPTH,
                rest: (!k.len().is_multiple_of(DEPTH)).then(|| std::array::from_fn(|tile| rests[tile * SIDE].as_ptr())),
                x: std::array::from_fn(|tile| self.x.tile(x + tile, at)),
                columns: self.x.columns(),
                ahead: self.ahead(&ahead, k.start),
            };
            // SAFETY: the tiles of weights are rows that exist, the tiles of inputs are padded to whole steps.
            unsafe { block.sums::<S, T>(tiles, room.sums[step.place].as_mut_ptr()) };
            for place in (step.place - step.joins..step.place).rev() {
                let (left, right) = room.sums.split_at_mut(place + 1);
                let all = W * X * AREA;
                left[place][..all].iter_mut().zip(&right[0][..all]).for_each(|(left, right)| *left += right);
            }
        }
        // SAFETY: passed on.
        unsafe { to.finish::<S, X>(x, &mut room.sums[0]) };
    }

    /// Some rows of each of the next tiles.
    fn ahead(&self, rows: &Range<usize>, k: usize) -> [Ahead; W] {
        let of = |next: Rows<'_>| Ahead { from: next.at(rows.start, k), stride: next.stride(), rows: rows.len() };
        self.next.map_or([Ahead::NOTHING; W], |next| next.map(of))
    }
}

/// Some columns of a task, and where their sums go.
struct Outputs<'a> {
    task: &'a Columns<'a>,
    columns: Range<usize>,
}

impl<const W: usize> Finish<W> for Outputs<'_> {
    #[inline(always)]
    unsafe fn finish<S: Simd, const X: usize>(&self, x: usize, sums: &mut [f32; SUMS * AREA]) {
        let Columns { x: inputs, w, bias, out, .. } = self.task;
        for index in 0..W {
            let start = self.columns.start + index * SIDE;
            let owned = start..(start + SIDE).min(self.columns.end);
            let top = Rows::of(w, start).top;
            let bias = bias.map(|bias| &bias[owned.clone()]);
            for tile in 0..X {
                let from = &sums[(index * X + tile) * AREA..][..AREA];
                // SAFETY: passed on.
                let turned = unsafe { turned::<S>(from) };
                for (row, sums) in inputs.rows_of(x + tile).zip(&turned) {
                    // SAFETY: the output row has `w.rows` columns, of which this task owns these.
                    let out = unsafe { out.slice(row * w.rows + start, owned.len()) };
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
