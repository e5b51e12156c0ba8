//! The order in which one thread goes over its columns and all rows, so that what is used again soon is still in a cache.
//!
//! ```text
//! block  ─► some tiles of columns, times all rows, whose part of `k` stays in the second-level cache
//! part   ─► of `k`: a chunk of a segment
//! rows   ─► a tile of rows, whose part stays in the first-level cache
//! tile   ─► times a tile of columns, sums in registers (tile.rs)
//! ```
//!
//! With one tile of rows, neighbours in a tile of columns lie far apart: see [`Streams`].

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

/// Runs of neighbouring columns that a task reads at the same time.
const STREAMS: usize = 4;

/// How many bytes ahead a stream is asked for, where each byte is used once.
const AHEAD: usize = 1 << 10;

/// `[waiting sum][output of a tile]`
type Sums = [[f32; OUTPUTS]; WAITING];

/// What a thread works with, kept from product to product: of a block, `[tile of rows][tile of columns]`.
#[derive(Default)]
pub(super) struct Scratch(Vec<Sums>);

/// The order in which a task takes its columns: in turns from runs that lie far apart. A row of weights after the other, in each run, is
/// one stretch of memory; several of those at once are read faster than one, and much faster than rows that are neighbours, which lie in
/// the same few pages (docs/figures.md, AVX2 only).
#[derive(Clone, Copy)]
struct Streams {
    /// Columns of each; none if they come one after the other.
    run: usize,
}

impl Streams {
    /// Of so many columns, which meet so many tiles of rows: with several, weights come from a cache most of the time.
    fn of(columns: usize, tiles: usize) -> Self {
        Self { run: if tiles == 1 { columns / STREAMS } else { 0 } }
    }

    /// Which of the task's columns has its turn; what no stream has comes last.
    #[inline(always)]
    fn place(&self, turn: usize) -> usize {
        if turn < self.run * STREAMS { turn % STREAMS * self.run + turn / STREAMS } else { turn }
    }
}

/// Some of a task's columns, in their turns: at most `across` tiles of these.
struct Block {
    streams: Streams,
    turns: Range<usize>,
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
        // What is used once is read as it lies in memory: all of a column first.
        let once = self.down.len() == 1 && self.x.parts().len() > 1;
        let across = if once { 1 } else { (BLOCK / bytes).clamp(1, ACROSS) };
        let room = (self.down.len() * across).max(scratch.0.len());
        scratch.0.resize(room, [[0.0; OUTPUTS]; WAITING]);
        let streams = Streams::of(self.columns.len(), self.down.len());
        for start in (0..self.columns.len()).step_by(across * width) {
            let turns = start..(start + across * width).min(self.columns.len());
            // SAFETY: rows and columns exist, and `across` leaves none over.
            unsafe { self.block::<S, E>(&Block { streams, turns, across }, scratch, out) };
        }
        self.add_biases(out);
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
            self.finish::<S>(&self.tiles.rows(tile), block, sums, out);
        }
    }

    /// Adds a part of `k` to the sums of a block.
    ///
    /// # Safety
    /// The block's rows, and the weights of its columns exist. The CPU has `S`.
    #[inline(always)]
    unsafe fn part<S: Simd, E: Load>(&self, block: &Block, part: &Part, sums: &mut [Sums]) {
        let stride = self.w.stride * E::SIZE;
        let start = self.columns.start * stride + part.k.start * E::SIZE;
        let start = self.w.bytes.as_ptr().wrapping_add(start);
        for (down, sums) in self.down.clone().zip(sums.chunks_mut(block.across)) {
            let rows = self.tiles.rows(down);
            let (x, width) = (self.x.tile(&rows, part.at), columns_max(S::LANES, rows.len()));
            let ahead = match down == self.down.start {
                true if self.down.len() == 1 => AHEAD,
                // The next tile's.
                true => width * stride,
                // Later tiles of rows find in a cache what the first one has asked for.
                false => 0,
            };
            for (turn, sums) in block.turns.clone().step_by(width).zip(sums) {
                // Where a tile has fewer columns, the last one is repeated.
                let place = |n: usize| block.streams.place((turn + n).min(block.turns.end - 1));
                let w = |n: usize| start.wrapping_add(place(n) * stride);
                let tile = Tile { x, k: part.k.len(), ahead };
                let mut chunk = [0.0; OUTPUTS];
                // SAFETY: rows, columns and the part of `k` exist on both sides.
                unsafe { tile.sums::<S, E>(rows.len(), w, &mut chunk) };
                take(sums, part, &chunk);
            }
        }
    }

    /// Writes the outputs of a tile of rows.
    #[inline(always)]
    fn finish<S: Simd>(&self, rows: &Range<usize>, block: &Block, sums: &[Sums], out: &SharedMut<'_, f32>) {
        for (index, row) in rows.clone().enumerate() {
            // SAFETY: the output row has `w.rows` columns, of which this task owns `columns`.
            let out = unsafe { out.slice(row * self.w.rows + self.columns.start, self.columns.len()) };
            match columns_max(S::LANES, rows.len()) {
                2 => block.put::<2>(index, sums, out),
                3 => block.put::<3>(index, sums, out),
                4 => block.put::<4>(index, sums, out),
                5 => block.put::<5>(index, sums, out),
                _ => block.put::<8>(index, sums, out),
            }
        }
    }

    /// Adds the bias, if there is one, to what was written.
    #[inline(always)]
    fn add_biases(&self, out: &SharedMut<'_, f32>) {
        let Some(bias) = self.bias else { return };
        for row in self.down.clone().flat_map(|tile| self.tiles.rows(tile)) {
            // SAFETY: as in `finish`.
            let out = unsafe { out.slice(row * self.w.rows + self.columns.start, self.columns.len()) };
            out.iter_mut().zip(&bias[self.columns.clone()]).for_each(|(out, bias)| *out += bias);
        }
    }
}

impl Block {
    /// Copies a row's outputs of each tile of `N` columns to their places in `out`, the task's part of the row.
    #[inline(always)]
    fn put<const N: usize>(&self, row: usize, sums: &[Sums], out: &mut [f32]) {
        let mut sums = sums.iter().map(|sums| &sums[0][row * N..][..N]);
        if self.streams.run > 0 {
            for (turn, sum) in self.turns.clone().zip(sums.flatten()) {
                out[self.streams.place(turn)] = *sum;
            }
            return;
        }
        let (whole, rest) = out[self.turns.clone()].as_chunks_mut::<N>();
        for (out, sums) in whole.iter_mut().zip(&mut sums) {
            out.copy_from_slice(sums);
        }
        rest.iter_mut().zip(sums.flatten()).for_each(|(out, sum)| *out = *sum);
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
