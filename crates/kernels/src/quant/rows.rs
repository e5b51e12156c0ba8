//! Inputs of a quantised product: each group of a row as signed bytes and one scale.

#![expect(unsafe_code, reason = "vector loads within a row; disjoint writes from several threads")]

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
        let (width, padded, count) = (groups.row(), groups.padded_row(), groups.len());
        assert!(x.len().is_multiple_of(width), "{} values are not rows of {width}", x.len());
        self.rows = x.len() / width;
        self.values.resize(self.rows * padded, 0);
        self.scales.resize(self.rows * count, 0.0);
        self.starts.resize(self.rows * count, 0);
        self.quarter_starts.resize(self.rows * count * QUARTERS, 0);
        let values = SharedMut::new(&mut self.values);
        let (scales, starts) = (SharedMut::new(&mut self.scales), SharedMut::new(&mut self.starts));
        let quarter_starts = SharedMut::new(&mut self.quarter_starts);
        let threads = if self.rows < FEW { 1 } else { pool.threads() };
        let share = self.rows.div_ceil(threads).max(1);
        pool.run(self.rows.div_ceil(share), |task| {
            for row in task * share..((task + 1) * share).min(x.len() / width) {
                // SAFETY: each row belongs to one task.
                let to = unsafe {
                    QuantizeRow {
                        x: &x[row * width..][..width],
                        groups,
                        values: values.slice(row * padded, padded),
                        scales: scales.slice(row * count, count),
                        starts: starts.slice(row * count, count),
                        quarter_starts: quarter_starts
                            .slice(row * count * QUARTERS, count * QUARTERS)
                            .as_chunks_mut()
                            .0,
                    }
                };
                isa.run(to);
            }
        });
    }
}

/// With fewer rows than this, waking a thread costs more than it helps.
const FEW: usize = 16;

/// Largest absolute value of an input.
const MAX: f32 = 127.0;

/// Added to a small number, it leaves the nearest integer (ties to even) in the lowest bits.
const ROUND: f32 = (3u32 << 22) as f32;

struct QuantizeRow<'a> {
    x: &'a [f32],
    groups: &'a Groups,
    values: &'a mut [i8],
    scales: &'a mut [f32],
    starts: &'a mut [i32],
    quarter_starts: &'a mut [[i32; QUARTERS]],
}

impl Kernel for QuantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for index in 0..self.groups.len() {
            let x = &self.x[self.groups.plain(index)];
            let values = &mut self.values[self.groups.padded(index)];
            // SAFETY: the CPU has `S`.
            let largest = unsafe { largest::<S>(x) };
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
            self.scales[index] = largest / MAX;
            self.starts[index] = -OFFSET * sums.iter().sum::<i32>();
            self.quarter_starts[index] = sums.map(|sum| -HALF_OFFSET * sum);
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
