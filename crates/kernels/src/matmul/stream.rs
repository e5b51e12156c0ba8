//! Few rows of `x`: every weight is used as soon as it is turned, at the speed at which memory brings it.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use std::ops::Range;

use super::load::Load;
use super::rows::{Ahead, Rows, Visit};
use super::weight::WeightView;
use crate::simd::Simd;

/// Most rows that are streamed: with more, the registers for turning and those for sums are too many.
pub(super) const STREAMED: usize = 4;

/// `to[row][column] = x * w` for `M` rows, `k`, and at most `LANES` columns. Rows of `to` are `to_stride` floats apart.
///
/// # Safety
/// Columns and `k` lie within `w`, which stores `E`; `x` points to the rows' first elements; a row of `to` holds a whole vector. The
/// CPU has `S`.
#[inline(always)]
pub(super) unsafe fn stream<S: Simd, E: Load, const M: usize>(
    x: [*const f32; M],
    w: &WeightView<'_>,
    columns: &Range<usize>,
    k: &Range<usize>,
    to: *mut f32,
    to_stride: usize,
) {
    // SAFETY: passed on.
    unsafe {
        let mut sums = Accumulate::<S, M> { x, sums: [S::splat(0.0); M] };
        let mut ahead = Ahead::new::<E>(w, columns.end, k);
        Rows::new::<S, E>(w, columns, 0, k).visit::<S, E, _>(&mut sums, &mut ahead);
        for (m, sum) in sums.sums.into_iter().enumerate() {
            S::store(to.add(m * to_stride), sum);
        }
    }
}

/// `sums[m] += x[m][k] * column`
struct Accumulate<S: Simd, const M: usize> {
    x: [*const f32; M],
    sums: [S::V; M],
}

impl<S: Simd, const M: usize> Visit<S> for Accumulate<S, M> {
    #[inline(always)]
    unsafe fn column(&mut self, k: usize, column: S::V) {
        // SAFETY: the rows of `x` are as long as `k` goes.
        unsafe {
            for (sum, x) in self.sums.iter_mut().zip(self.x) {
                *sum = S::mul_add(S::splat(*x.add(k)), column, *sum);
            }
        }
    }
}
