//! The product itself: rows of bytes times packed panels, sums in registers.

#![expect(unsafe_code, reason = "vector loads and disjoint writes from several threads")]

mod tiled;

use std::mem::MaybeUninit;
use std::ops::Range;

use super::dot::{self, Dot, DotKernel};
use super::tiles;
use super::unit::{Ahead, EightBits, FourBits, Unit, Unpacked, dot_unit, unpack};
use super::{Bits, GROUP, LANES, QuantizedMatrix, QuantizedRows, UNIT};
use crate::matmul::WAITING;
use crate::pool::SharedMut;
use crate::tiles::{SIDE, Tiles};
use crate::{Isa, Pool};

/// Most panels worked on together.
pub(super) const PANELS: usize = 2;

/// Rows that go through all panels together: their inputs stay in the second-level cache, and the pages of their outputs within
/// reach, which a panel's columns of all rows would not.
pub(super) const ROWS: usize = 128;

/// Values along the inner dimension that all rows are multiplied by before the next ones: two panels of them take 32 KiB, so they
/// stay in the first-level cache with the rows at hand. Whole groups.
pub(super) const DEPTH: usize = 1024;

/// How far ahead of the weights memory is asked for where few rows use them at once.
const AHEAD_BYTES: usize = 2048;

/// Floats from one waiting sum of segments to the next.
const PLACE: usize = ROWS * PANELS * LANES;

/// Tasks of each thread with many rows.
pub(super) const TASKS: usize = 4;

/// `out = x * w^T (+ bias)`: `out` is `[rows of x][w.rows]`, `bias` `[w.rows]`. Panics if the shapes do not agree.
pub fn quantized_matmul(
    isa: Isa,
    pool: &Pool,
    x: &QuantizedRows,
    w: &QuantizedMatrix,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    x.check(w, bias);
    assert_eq!(out.len(), x.rows * w.rows(), "output of another product");
    let panels = w.panels();
    // Few tasks, so that each reads one long run of memory; with many rows, enough for a thread to make up for a slower one.
    let tasks = pool.threads() * if x.rows < ROWS { 1 } else { TASKS };
    let share = panels.div_ceil(tasks).next_multiple_of(PANELS);
    let out = SharedMut::new(out);
    pool.run(panels.div_ceil(share), |task| {
        let panels = task * share..((task + 1) * share).min(panels);
        let out = Outputs { to: &out, first: (0, 0), width: w.rows() };
        dot::run(isa, Panels { x, w, bias, rows: 0..x.rows, panels, out });
    });
}

impl QuantizedRows {
    /// Panics if these are not rows for products with `w`.
    pub(super) fn check(&self, w: &QuantizedMatrix, bias: Option<&[f32]>) {
        assert_eq!(self.values.len(), self.rows * w.groups().padded_row(), "rows of other groups");
        assert_eq!(self.scales.len(), self.rows * w.groups().len(), "rows of other groups");
        assert!(bias.is_none_or(|bias| bias.len() == w.rows()), "bias of another product");
    }
}

/// Some rows times some panels; a task.
pub(super) struct Panels<'a> {
    pub(super) x: &'a QuantizedRows,
    pub(super) w: &'a QuantizedMatrix,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) rows: Range<usize>,
    pub(super) panels: Range<usize>,
    /// This task writes its rows, the columns of its panels and nothing else.
    pub(super) out: Outputs<'a>,
}

/// Where outputs are written: `[row][column]`.
pub(super) struct Outputs<'a> {
    pub(super) to: &'a SharedMut<'a, f32>,
    /// The first row and column that have a place.
    pub(super) first: (usize, usize),
    /// Columns from one row to the next.
    pub(super) width: usize,
}

impl Outputs<'_> {
    /// # Safety
    /// No two parts that are alive at the same time overlap.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "disjoint parts of one slice")]
    unsafe fn row(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        let start = (row - self.first.0) * self.width + columns.start - self.first.1;
        // SAFETY: passed on.
        unsafe { self.to.slice(start, columns.len()) }
    }
}

impl DotKernel for Panels<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<D: Dot, T: Tiles>(self) {
        // SAFETY: `quantized_matmul` has checked the shapes; tiles exist where `T` does.
        unsafe {
            match self.w.bits() {
                Bits::Eight => self.all::<D, EightBits, T>(),
                Bits::Four => self.all::<D, FourBits, T>(),
            }
        }
    }
}

/// `[waiting sum][row][panel][column]`
type Sums = MaybeUninit<[f32; WAITING * PLACE]>;

/// What a thread works with beside the registers.
struct Room<T> {
    unpacked: Unpacked,
    tiles: Option<T>,
}

/// Some neighbouring groups of `P` panels.
#[derive(Clone)]
struct Part<const P: usize> {
    groups: Range<usize>,
    /// Units of the padded rows.
    units: Range<usize>,
    /// The first group's values in each panel.
    w: [*const u8; P],
    /// The first group's steps in each panel, if it has any.
    steps: [*const i8; P],
    /// Where each panel's scales start.
    scales: [*const u8; P],
    ahead: Ahead<P>,
    /// Sums start at 0 instead of what is there.
    fresh: bool,
    /// The first panel, if its outputs are written after this part.
    written: Option<usize>,
}

impl Panels<'_> {
    /// # Safety
    /// As [`DotKernel::run`]; the weights are stored as `U`.
    #[inline(always)]
    unsafe fn all<D: Dot, U: Unit, T: Tiles>(&self) {
        // SAFETY: tiles exist where `T` does.
        let tiles = if self.rows.len() < SIDE { None } else { unsafe { T::configure(&tiles::shapes()) } };
        let room = &mut Room { unpacked: Unpacked::new(), tiles };
        let mut sums = Sums::uninit();
        let sums = sums.as_mut_ptr().cast::<f32>();
        for row in self.rows.clone().step_by(ROWS) {
            let rows = row..(row + ROWS).min(self.rows.end);
            for panel in self.panels.clone().step_by(PANELS) {
                // SAFETY: these rows and panels exist; sums are there once they are computed.
                unsafe {
                    match self.panels.end - panel {
                        1 => {
                            self.tree::<D, U, T, 1>(&rows, panel, sums, room);
                            self.finish::<1>(&rows, panel, sums);
                        }
                        _ => {
                            self.tree::<D, U, T, PANELS>(&rows, panel, sums, room);
                            self.finish::<PANELS>(&rows, panel, sums);
                        }
                    }
                }
            }
        }
    }

    /// Some rows times `P` panels: segments are summed and joined as they come.
    ///
    /// # Safety
    /// At most ROWS rows, which exist as panels `panel..panel + P` do; `sums` has room for WAITING parts. The CPU has `D`.
    #[inline(always)]
    unsafe fn tree<D: Dot, U: Unit, T: Tiles, const P: usize>(
        &self,
        rows: &Range<usize>,
        panel: usize,
        sums: *mut f32,
        room: &mut Room<T>,
    ) {
        for step in self.w.groups().segments().tree() {
            // SAFETY: the tree never has more than WAITING parts; those that are joined are written and differ.
            unsafe {
                self.segment::<D, U, T, P>(rows, panel, step.segment, sums.add(step.place * PLACE), room);
                for place in (step.place - step.joins..step.place).rev() {
                    for i in 0..rows.len() * P * LANES {
                        *sums.add(place * PLACE + i) += *sums.add((place + 1) * PLACE + i);
                    }
                }
            }
        }
    }

    /// `to[row][p][column]` = the sum of a segment's scaled groups, one after the other.
    ///
    /// # Safety
    /// As [`Panels::tree`]; `to` has room for one part.
    #[inline(always)]
    unsafe fn segment<D: Dot, U: Unit, T: Tiles, const P: usize>(
        &self,
        rows: &Range<usize>,
        panel: usize,
        segment: usize,
        to: *mut f32,
        room: &mut Room<T>,
    ) {
        let groups = self.w.groups();
        let all = groups.of_segment(segment);
        if all.is_empty() {
            // SAFETY: room for these rows.
            unsafe { to.write_bytes(0, rows.len() * P * LANES) };
        }
        let share = DEPTH / GROUP;
        for start in all.clone().step_by(share) {
            let part = start..(start + share).min(all.end);
            let units = groups.padded(start).start / UNIT..groups.padded(part.end - 1).end / UNIT;
            let w = std::array::from_fn(|p| self.w.panel(panel + p).as_ptr().wrapping_add(units.start * U::BYTES));
            let ahead = self.ahead::<U, P>(panel, &w, &units, rows.len() / D::TILE_ROWS);
            let scales = std::array::from_fn(|p| self.w.scales(panel + p).as_ptr());
            let steps = std::array::from_fn(|p| self.w.steps(panel + p, start).as_ptr().cast::<i8>());
            let written = (part.end == groups.len()).then_some(panel);
            let mut part = Part { groups: part, units, w, steps, scales, ahead, fresh: start == all.start, written };
            // SAFETY: groups of a part are neighbours, DEPTH values at most, and exist in the panels.
            unsafe {
                let least = if room.tiles.is_some() { SIDE } else { D::APART };
                if U::BYTES < EightBits::BYTES && rows.len() >= least {
                    part.w = unpack::<D, P>(&part.w, &steps, part.units.len(), &mut room.unpacked);
                    self.part::<D, EightBits, T, P>(rows, &part, room, to);
                } else {
                    self.part::<D, U, T, P>(rows, &part, room, to);
                }
            }
        }
    }

    /// What to ask for while `tiles` go over a part: few read memory themselves and need what follows soon; more of them share out
    /// the next part, so that none waits for memory.
    #[inline(always)]
    fn ahead<U: Unit, const P: usize>(
        &self,
        panel: usize,
        w: &[*const u8; P],
        units: &Range<usize>,
        tiles: usize,
    ) -> Ahead<P> {
        if tiles < 2 {
            return Ahead { at: w.map(|w| w.wrapping_add(AHEAD_BYTES)), step: U::BYTES };
        }
        let panel_bytes = self.w.panel(panel).len();
        let is_last = units.end * U::BYTES == panel_bytes;
        let forward = if is_last { P * panel_bytes - units.start * U::BYTES } else { units.len() * U::BYTES };
        Ahead { at: w.map(|w| w.wrapping_add(forward)), step: U::BYTES / tiles }
    }

    /// Adds a part to all rows' sums, as many at a time as there are registers for.
    ///
    /// # Safety
    /// As [`Panels::segment`]; the part's values are stored as `U`.
    #[inline(always)]
    unsafe fn part<D: Dot, U: Unit, T: Tiles, const P: usize>(
        &self,
        rows: &Range<usize>,
        part: &Part<P>,
        room: &mut Room<T>,
        to: *mut f32,
    ) {
        let mut row = rows.start;
        if let Some(tiles) = &mut room.tiles
            && P == PANELS
            && U::BYTES == EightBits::BYTES
        {
            while rows.end - row >= SIDE {
                // SAFETY: so many rows are left, and panels are stored as tiles take them.
                unsafe { self.tiled::<D, T, P>(row, part, tiles, to.add((row - rows.start) * P * LANES)) };
                row += SIDE;
            }
        }
        while row < rows.end {
            // SAFETY: each arm takes at most the rows that are left.
            // Shapes that a level has no registers for, or that a last single panel would need alone, are not compiled.
            unsafe {
                let to = to.add((row - rows.start) * P * LANES);
                row += match rows.end - row {
                    8.. if const { D::TILE_ROWS >= 8 && P == PANELS } => self.tile::<D, U, 8, P>(row, part, to),
                    4.. if const { D::TILE_ROWS >= 4 && P == PANELS } => self.tile::<D, U, 4, P>(row, part, to),
                    2.. => self.tile::<D, U, 2, P>(row, part, to),
                    _ => self.tile::<D, U, 1, P>(row, part, to),
                };
            }
        }
    }

    /// Adds a part to the sums of `M` rows; returns `M`.
    ///
    /// # Safety
    /// As [`Panels::part`]; rows `row..row + M` exist, and `to` is where their sums are.
    #[inline(always)]
    unsafe fn tile<D: Dot, U: Unit, const M: usize, const P: usize>(
        &self,
        row: usize,
        part: &Part<P>,
        to: *mut f32,
    ) -> usize {
        let (padded, count, units) = (self.w.groups().padded_row(), self.w.groups().len(), part.units.len());
        let ahead = part.ahead.after(row % ROWS / D::TILE_ROWS * units);
        let x = self.x.values[row * padded + part.units.start * UNIT..].as_ptr();
        let x: [*const i8; M] = std::array::from_fn(|m| x.wrapping_add(m * padded));
        let parts = GROUP / UNIT / U::PART;
        let starts = U::starts(self.x)[(row * count + part.groups.start) * parts..].as_ptr();
        let factors = self.x.scales[row * count..].as_ptr();
        // SAFETY: groups lie within the padded rows, of `x` and of the panels; scales and starts exist for every group.
        unsafe {
            if let Some(panel) = part.written {
                self.expect_writes::<D, M, P>(row, panel);
            }
            let mut sums = [[D::zero(); P]; M];
            if !part.fresh {
                for (i, sum) in sums.as_flattened_mut().iter_mut().enumerate() {
                    *sum = D::floats(to.add(i * LANES));
                }
            }
            for (index, group) in part.groups.clone().enumerate() {
                let mut whole = [[D::zero(); P]; M];
                for at in 0..parts {
                    let at = index * parts + at;
                    let mut part_sums = [[U::start::<D>(0); P]; M];
                    for (m, sums) in part_sums.iter_mut().enumerate() {
                        *sums = [U::start::<D>(*starts.add(m * count * parts + at)); P];
                    }
                    for unit in at * U::PART..((at + 1) * U::PART).min(units) {
                        ahead.prefetch::<D>(unit);
                        dot_unit::<D, U, M, P>(&mut part_sums, &x, &part.w, unit);
                    }
                    U::add::<D, M, P>(&mut whole, &part_sums, part.steps.map(|steps| steps.wrapping_add(at * LANES)));
                }
                for (p, scales) in part.scales.into_iter().enumerate() {
                    let w = D::scales(scales.add(group * 2 * LANES));
                    for (m, (sums, whole)) in sums.iter_mut().zip(&whole).enumerate() {
                        sums[p] = D::add_scaled(sums[p], whole[p], w, *factors.add(m * count + group));
                    }
                }
            }
            for (i, sum) in sums.as_flattened().iter().enumerate() {
                D::store(to.add(i * LANES), *sum);
            }
        }
        M
    }

    /// Asks for the memory of outputs before it is written to, all rows at once; a row's part lies on a page of its own.
    ///
    /// # Safety
    /// The CPU has `D`; rows and panels exist.
    #[inline(always)]
    unsafe fn expect_writes<D: Dot, const M: usize, const P: usize>(&self, row: usize, panel: usize) {
        for m in 0..M {
            // SAFETY: an empty part of a row that exists; passed on.
            unsafe {
                let out = self.out.row(row + m, panel * LANES..panel * LANES).as_ptr();
                for p in 0..P {
                    D::prefetch_write(out.wrapping_add(p * LANES).cast());
                }
            }
        }
    }

    /// Writes the outputs of some rows and `P` panels.
    ///
    /// # Safety
    /// `sums` holds them; the panels and the rows exist.
    #[inline(always)]
    unsafe fn finish<const P: usize>(&self, rows: &Range<usize>, panel: usize, sums: *const f32) {
        let n = self.w.rows();
        for p in 0..P {
            let columns = (panel + p) * LANES..((panel + p + 1) * LANES).min(n);
            let bias = self.bias.map(|bias| &bias[columns.clone()]);
            for (m, row) in rows.clone().enumerate() {
                // SAFETY: this task owns the columns of its panels in these rows.
                let (sum, out) = unsafe {
                    let sum = &*sums.add((m * P + p) * LANES).cast::<[f32; LANES]>();
                    (sum, self.out.row(row, columns.clone()))
                };
                write(out, sum, bias);
            }
        }
    }
}

/// `out = sum (+ bias)`: sixteen outputs, or those that exist.
#[inline(always)]
fn write(out: &mut [f32], sum: &[f32; LANES], bias: Option<&[f32]>) {
    match (<&mut [f32; LANES]>::try_from(&mut *out), bias) {
        (Ok(out), None) => *out = *sum,
        (_, None) => out.iter_mut().zip(sum).for_each(|(out, sum)| *out = *sum),
        (_, Some(bias)) => out.iter_mut().zip(sum).zip(bias).for_each(|((out, sum), bias)| *out = sum + bias),
    }
}
