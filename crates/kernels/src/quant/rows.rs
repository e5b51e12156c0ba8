//! Inputs of a quantised product: each group of a row as signed bytes and one scale.

#![expect(unsafe_code, reason = "vector loads within a row; disjoint writes from several threads")]

use std::ops::Range;

use super::{GROUP, Groups, HALF_OFFSET, OFFSET, QUARTERS};
use crate::Pool;
use crate::pool::SharedMut;
use crate::simd::{Isa, Kernel, Simd};

/// Rows ready for every product that has the same groups. Kept from step to step, so that a warm step allocates nothing.
#[derive(Default, Debug)]
pub struct QuantizedRows {
    /// `[row][padded k]`; padding is 0.
    pub(super) values: Vec<i8>,
    /// `[row][group]`
    pub(super) scales: Vec<f32>,
    /// `[row][group]`: what an integer sum starts from, to make up for the offset of the weights.
    pub(super) starts: Vec<i32>,
    /// `[row][group][quarter]`: the same for quarters and half bytes.
    pub(super) quarter_starts: Vec<i32>,
    pub(super) rows: usize,
}

impl QuantizedRows {
    /// Takes the rows of `x`, `[rows][k]`. Panics if `x` is not whole rows of `groups`.
    pub fn fill(&mut self, isa: Isa, pool: &Pool, groups: &Groups, x: &[f32]) {
        let width = groups.row();
        assert!(x.len().is_multiple_of(width), "{} values are not rows of {width}", x.len());
        let rows = x.len() / width;
        let to = &self.filling(groups, rows);
        let threads = if rows < FEW { 1 } else { pool.threads() };
        let share = rows.div_ceil(threads).max(1);
        pool.run(rows.div_ceil(share), |task| {
            isa.run(RoundRows { x, rows: task * share..((task + 1) * share).min(rows), to });
        });
    }

    /// Makes room for so many rows, all groups of which are to be put.
    pub(super) fn filling<'a>(&'a mut self, groups: &'a Groups, rows: usize) -> Filling<'a> {
        let count = rows * groups.len();
        self.rows = rows;
        self.values.resize(rows * groups.padded_row(), 0);
        self.scales.resize(count, 0.0);
        self.starts.resize(count, 0);
        self.quarter_starts.resize(count * QUARTERS, 0);
        Filling {
            groups,
            values: SharedMut::new(&mut self.values),
            scales: SharedMut::new(&mut self.scales),
            starts: SharedMut::new(&mut self.starts),
            quarter_starts: SharedMut::new(&mut self.quarter_starts),
        }
    }
}

/// With fewer rows than this, waking a thread costs more than it helps.
const FEW: usize = 16;

/// Largest absolute value of an input.
const MAX: f32 = 127.0;

/// Added to a small number, it leaves the nearest integer (ties to even) in the lowest bits.
const ROUND: f32 = (3u32 << 22) as f32;

/// Rows that are being filled, by several threads.
pub(super) struct Filling<'a> {
    groups: &'a Groups,
    values: SharedMut<'a, i8>,
    scales: SharedMut<'a, f32>,
    starts: SharedMut<'a, i32>,
    quarter_starts: SharedMut<'a, i32>,
}

impl Filling<'_> {
    /// Rounds a group of a row.
    ///
    /// # Safety
    /// Nobody else puts the same group of the row; the CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn put<S: Simd>(&self, row: usize, group: usize, x: &[f32]) {
        let (at, padded) = (row * self.groups.len() + group, self.groups.padded(group));
        // SAFETY: each group of each row has parts of its own; passed on.
        let (values, scale, start, quarter_starts, largest) = unsafe {
            (
                self.values.slice(row * self.groups.padded_row() + padded.start, padded.len()),
                self.scales.slice(at, 1),
                self.starts.slice(at, 1),
                self.quarter_starts.slice(at * QUARTERS, QUARTERS),
                largest::<S>(x),
            )
        };
        let factor = if largest > f32::MIN_POSITIVE { MAX / largest } else { 0.0 };
        values[x.len()..].fill(0);
        let mut sums = [0; QUARTERS];
        let quarters = values.chunks_mut(GROUP / QUARTERS).zip(x.chunks(GROUP / QUARTERS));
        for ((values, x), sum) in quarters.zip(&mut sums) {
            for (value, x) in values.iter_mut().zip(x) {
                *value = (x * factor + ROUND).to_bits() as i8;
                *sum += i32::from(*value);
            }
        }
        scale[0] = largest / MAX;
        start[0] = -OFFSET * sums.iter().sum::<i32>();
        quarter_starts.iter_mut().zip(sums).for_each(|(start, sum)| *start = -HALF_OFFSET * sum);
    }
}

/// Some rows of `x`; a task.
struct RoundRows<'a> {
    x: &'a [f32],
    rows: Range<usize>,
    to: &'a Filling<'a>,
}

impl Kernel for RoundRows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let groups = self.to.groups;
        for row in self.rows {
            let x = &self.x[row * groups.row()..][..groups.row()];
            for group in 0..groups.len() {
                // SAFETY: each row belongs to one task; the CPU has `S`.
                unsafe { self.to.put::<S>(row, group, &x[groups.plain(group)]) };
            }
        }
    }
}

/// The largest absolute value; not a number if any is not finite.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
unsafe fn largest<S: Simd>(x: &[f32]) -> f32 {
    // SAFETY: `i < x.len()`, and at most the lanes up to its end are touched.
    unsafe {
        let zero = S::splat(0.0);
        let (mut max, mut probe) = (zero, zero);
        for i in (0..x.len()).step_by(S::LANES) {
            let v = S::load_upto(x.as_ptr().add(i), x.len() - i);
            max = S::max(S::max(v, S::sub(zero, v)), max);
            probe = S::add(probe, S::mul(v, zero));
        }
        S::max_lane(max) + S::sum(probe)
    }
}
