//! The innermost loop: rows of `x` times strips of a panel, with every sum in a register.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use super::panel::{COLUMNS_MAX, WIDTH};
use crate::simd::Simd;

/// `sums += x * strip`.
pub(super) struct Block {
    /// `[row][k]`
    pub(super) x: *const f32,
    /// Floats from one row to the next.
    pub(super) x_stride: usize,
    /// `[k][WIDTH * LANES]`
    pub(super) strip: *const f32,
    pub(super) k: usize,
    /// `[row][..]`, COLUMNS_MAX floats from one row to the next.
    pub(super) sums: *mut f32,
    /// The sums start at 0 instead of what is in `sums`.
    pub(super) fresh: bool,
}

impl Block {
    /// Rows `0..rows`, as many at a time as the level has registers for their sums.
    ///
    /// # Safety
    /// `x` and `sums` have `rows` rows, the strip `k`; unless `fresh`, `sums` is written. The CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn all<S: Simd>(self, rows: usize) {
        let mut row = 0;
        while row < rows {
            // SAFETY: each arm takes at most the rows that are left.
            unsafe {
                row += match (S::LANES, rows - row) {
                    (16, 12..) => self.some::<S, 12>(row),
                    (16, 8..) => self.some::<S, 8>(row),
                    (8, 6..) => self.some::<S, 6>(row),
                    (_, 4..) => self.some::<S, 4>(row),
                    (_, 2..) => self.some::<S, 2>(row),
                    _ => self.some::<S, 1>(row),
                };
            }
        }
    }

    /// `M` rows from `row` on; returns `M`.
    ///
    /// # Safety
    /// As [`Block::all`].
    #[inline(always)]
    unsafe fn some<S: Simd, const M: usize>(&self, row: usize) -> usize {
        let x: [*const f32; M] = std::array::from_fn(|m| self.x.wrapping_add((row + m) * self.x_stride));
        let to: [*mut f32; M] = std::array::from_fn(|m| self.sums.wrapping_add((row + m) * COLUMNS_MAX));
        // SAFETY: rows `row..row + M` exist; a row of `sums` holds WIDTH vectors.
        unsafe {
            let mut sums = [[S::splat(0.0); WIDTH]; M];
            if !self.fresh {
                for (sums, to) in sums.iter_mut().zip(to) {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = S::load(to.add(v * S::LANES));
                    }
                }
            }
            for k in 0..self.k {
                let mut columns = [S::splat(0.0); WIDTH];
                for (v, columns) in columns.iter_mut().enumerate() {
                    *columns = S::load(self.strip.add((k * WIDTH + v) * S::LANES));
                }
                for (sums, x) in sums.iter_mut().zip(x) {
                    let x = S::splat(*x.add(k));
                    for (sum, columns) in sums.iter_mut().zip(columns) {
                        *sum = S::mul_add(x, columns, *sum);
                    }
                }
            }
            for (sums, to) in sums.iter().zip(to) {
                for (v, sum) in sums.iter().enumerate() {
                    S::store(to.add(v * S::LANES), *sum);
                }
            }
        }
        M
    }
}
