//! Products of many rows, by one thread, so that what is used again soon is still in a cache.
//!
//! ```text
//! task   ─► some tiles of rows, of which a chunk of `k` stays in the second-level cache, times some columns
//! part   ─► of `k`: a chunk of a segment
//! panels ─► of a few columns each: widened once, in the order in which they are used (many/panel.rs)
//! tile   ─► times some vectors of rows, sums in registers (many/tile.rs)
//! ```

#![expect(unsafe_code, reason = "vector loads and disjoint writes from several threads")]

mod gated;
mod panel;
mod tile;
mod turn;

use std::ops::Range;

use super::inputs::{Inputs, Part, STEP, Tiles};
use super::load::Load;
use super::{Columns, WAITING};
use crate::pool::SharedMut;
use crate::simd::{Isa, MAX_LANES, Simd};
pub(super) use gated::Gated;
use panel::{Line, PANELS, Panels};
pub(super) use tile::vectors;
use tile::{Tile, columns};
pub(super) use turn::{Turn, Turned};

/// Bytes of a chunk of a task's rows.
const GROUP: usize = 1 << 20;

/// Columns of a task at most: so many that outputs are written in long runs, and that their sums stay in the cache, too.
const BLOCK: usize = 512;

/// Columns that there is room for: whole tiles of them.
const ROOM: usize = BLOCK + COLUMNS_MAX;

/// Tasks of a thread for each group of rows, if there are columns enough: threads are not equally fast.
const TASKS: usize = 4;

/// Columns of a tile, whatever the level.
const COLUMNS_MAX: usize = columns(MAX_LANES);

/// Bytes of a line of memory.
const LINE: usize = size_of::<Line>();

/// What a thread works with, kept from product to product.
#[derive(Default)]
pub(super) struct Scratch {
    sums: TaskSums,
    /// Of another product of the same rows.
    others: TaskSums,
    panels: Panels,
}

/// `[waiting sum][tile of rows][column of the task][row]`; tiles have room for [`ROOM`] columns.
#[derive(Default)]
struct TaskSums(Vec<Line>);

/// Neighbouring columns' weights of a part of `k`.
struct Weights {
    /// Of the first column.
    start: *const u8,
    /// Bytes from one column's to the next.
    stride: usize,
    columns: usize,
    k: usize,
}

/// Into how many groups the tiles of rows are divided, one for a task.
pub(super) fn groups(isa: Isa, x: &Inputs, tiles: Tiles) -> usize {
    let longest = x.parts().iter().map(|part| part.k.len()).max().unwrap_or(0);
    let bytes = longest * size_of::<f32>() * vectors(isa.lanes()) * isa.lanes();
    tiles.count.div_ceil((GROUP / bytes.max(1)).max(1))
}

/// Columns of each of `products` that a task takes: so few that every thread has some tasks, and whole panels.
pub(super) fn share(isa: Isa, columns: usize, threads: usize, products: usize) -> usize {
    let together = PANELS * tile::columns(isa.lanes());
    let most = BLOCK / products / together * together;
    columns.div_ceil(threads * TASKS).next_multiple_of(together).min(most)
}

/// Vectors of so many values of `k`, padded to whole steps.
const fn vectors_of_k(k: usize, lanes: usize) -> usize {
    k.next_multiple_of(STEP) / lanes
}

impl Columns<'_> {
    /// # Safety
    /// As [`crate::simd::Kernel::run`]; the tiles are those of many rows, and there are no more of them and of columns than a task
    /// takes.
    #[inline(always)]
    pub(super) unsafe fn many<S: Simd, E: Load>(&self, scratch: &mut Scratch, out: &SharedMut<'_, f32>) {
        // SAFETY: passed on.
        let sums = unsafe { self.sums::<S, E>(&mut scratch.panels, &mut scratch.sums) };
        for tile in self.down.clone() {
            // SAFETY: sums of these rows and columns were written.
            unsafe { self.write::<S>(&self.tiles.rows(tile), sums.add(self.place(tile)), out) };
        }
    }

    /// Where sums of a tile of rows begin.
    fn place(&self, tile: usize) -> usize {
        (self.tiles.rows(tile).start - self.tiles.rows(self.down.start).start) * ROOM
    }

    /// The sums of all outputs of the task: see [`TaskSums`].
    ///
    /// # Safety
    /// As [`Columns::many`].
    #[inline(always)]
    unsafe fn sums<S: Simd, E: Load>(&self, panels: &mut Panels, sums: &mut TaskSums) -> *mut f32 {
        let level = self.place(self.down.end - 1) + self.tiles.rows(self.down.end - 1).len() * ROOM;
        let room = (WAITING * level / MAX_LANES).max(sums.0.len());
        sums.0.resize(room, Line::ZERO);
        let sums = Sums { start: sums.0.as_mut_ptr().cast(), level };
        let parts = self.x.parts();
        for (part, next_part) in parts.iter().zip(parts.iter().skip(1).map(Some).chain([None])) {
            let together = PANELS * columns(S::LANES);
            for column in self.columns.clone().step_by(together) {
                let weights = self.weights::<S, E>(column, part);
                let next = match (column + together, next_part) {
                    (next, Some(part)) if next >= self.columns.end => self.weights::<S, E>(self.columns.start, part),
                    (next, _) => self.weights::<S, E>(next, part),
                };
                let ahead = Ahead::new(&next, E::SIZE, self.down.len() * S::LANES);
                // SAFETY: rows and columns exist, and there is room for their sums.
                unsafe {
                    let count = panels.fill::<S, E>(&weights);
                    self.panels::<S>(part, column, (panels.start(), count), &sums, ahead);
                }
            }
        }
        sums.start
    }

    /// Some panels, whose first column is `column`, times all rows.
    ///
    /// # Safety
    /// The rows, the panels and the room for sums of the task exist. The CPU has `S`.
    #[inline(always)]
    unsafe fn panels<S: Simd>(
        &self,
        part: &Part,
        column: usize,
        (weights, panels): (*const f32, usize),
        sums: &Sums,
        mut ahead: Ahead,
    ) {
        let k = vectors_of_k(part.k.len(), S::LANES);
        for tile in self.down.clone() {
            let rows = self.tiles.rows(tile);
            let at = self.place(tile) + (column - self.columns.start) * rows.len();
            let tile = Tile { x: self.x.tile(&rows, part.at), panels, weights, k };
            // SAFETY: passed on.
            unsafe {
                tile.add::<S>(rows.len() / S::LANES, part, &sums.behind(at), &mut ahead);
            }
        }
    }

    /// The weights of some panels' columns from `column` on, none if the task ends there.
    #[inline(always)]
    fn weights<S: Simd, E: Load>(&self, column: usize, part: &Part) -> Weights {
        let start = (column * self.w.stride + part.k.start) * E::SIZE;
        Weights {
            start: self.w.bytes.as_ptr().wrapping_add(start),
            stride: self.w.stride * E::SIZE,
            columns: (PANELS * columns(S::LANES)).min(self.columns.end - column.min(self.columns.end)),
            k: part.k.len(),
        }
    }

    /// Writes the outputs of a tile of rows from `sums`, `[column][row]`.
    ///
    /// # Safety
    /// The sums exist, and no other task writes these rows and columns. The CPU has `S`.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, rows: &Range<usize>, sums: *const f32, out: &SharedMut<'_, f32>) {
        let columns = &self.columns;
        for row in (rows.start..rows.end.min(self.x.rows())).step_by(S::LANES) {
            for column in columns.clone().step_by(S::LANES) {
                let width = S::LANES.min(columns.end - column);
                // SAFETY: rows and columns exist; `out` has `width` places, and so has the bias.
                unsafe {
                    let sums = sums.add((column - columns.start) * rows.len() + row - rows.start);
                    let mut values = [S::load(sums); MAX_LANES];
                    for (index, values) in values.iter_mut().enumerate() {
                        *values = S::load(sums.add(index.min(width - 1) * rows.len()));
                    }
                    S::transpose(&mut values);
                    let bias = self.bias.map(|bias| S::load_upto(bias[column..].as_ptr(), width));
                    for (row, sums) in (row..self.x.rows()).zip(values.into_iter().take(S::LANES)) {
                        let out = out.slice(row * self.w.rows + column, width);
                        let sums = if let Some(bias) = bias { S::add(sums, bias) } else { sums };
                        S::store_upto(out.as_mut_ptr(), sums, width);
                    }
                }
            }
        }
    }
}

/// Where sums of a task, or of a tile of it, go: see [`Scratch`].
struct Sums {
    start: *mut f32,
    /// Floats from one waiting sum to the next.
    level: usize,
}

impl Sums {
    /// Those that lie so many floats further.
    ///
    /// # Safety
    /// There are as many.
    #[inline(always)]
    unsafe fn behind(&self, floats: usize) -> Self {
        // SAFETY: passed on.
        Self { start: unsafe { self.start.add(floats) }, ..*self }
    }

    /// Adds a chunk's sums to its segment's, and after the last one joins what waits for them.
    ///
    /// # Safety
    /// There is room for so many sums, and those before them in their tree were written. The CPU has `S`.
    #[inline(always)]
    unsafe fn take<S: Simd, const V: usize, const N: usize>(&self, part: &Part, chunk: [[S::V; V]; N]) {
        let place = part.step.place;
        let joins = if part.last { part.step.joins } else { 0 };
        for (index, chunk) in chunk.as_flattened().iter().enumerate() {
            // SAFETY: passed on.
            unsafe {
                let at = self.start.add(index * S::LANES);
                let mut sum = *chunk;
                if !part.first {
                    sum = S::add(S::load(at.add(place * self.level)), sum);
                }
                for place in (place - joins..place).rev() {
                    sum = S::add(S::load(at.add(place * self.level)), sum);
                }
                S::store(at.add((place - joins) * self.level), sum);
            }
        }
    }
}

/// Weights that are needed next, asked for in turns, so that the answers do not all come at once.
struct Ahead {
    at: *const u8,
    /// Lines of memory that a turn asks for.
    share: usize,
    /// Lines of a column, and those of the present one that have not been asked for.
    lines: usize,
    left: usize,
    /// Bytes from the end of a column's lines to the next column's.
    gap: usize,
}

impl Ahead {
    /// `weights` of `size` bytes each, in so many turns.
    fn new(weights: &Weights, size: usize, turns: usize) -> Self {
        let lines = (weights.k * size).div_ceil(LINE);
        let share = (lines * weights.columns).div_ceil(turns);
        Self { at: weights.start, share, lines, left: lines, gap: weights.stride.wrapping_sub(lines * LINE) }
    }

    /// # Safety
    /// The CPU has `S`.
    #[inline(always)]
    unsafe fn ask<S: Simd>(&mut self) {
        for _ in 0..self.share {
            // SAFETY: passed on.
            unsafe { S::prefetch(self.at) };
            self.at = self.at.wrapping_add(LINE);
            self.left -= 1;
            if self.left == 0 {
                (self.at, self.left) = (self.at.wrapping_add(self.gap), self.lines);
            }
        }
    }
}
