//! The innermost loop: rows of `x` times strips of a panel, with every sum in a register.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use super::panel::{COLUMNS, DEPTH, STRIP};
use crate::simd::Simd;

/// `sums += x * strips` for one panel. Strides are in floats.
pub(super) struct Block {
    /// `[row][k]`
    pub(super) x: *const f32,
    pub(super) x_stride: usize,
    /// `[strip][k][STRIP * LANES]`, DEPTH rows to a strip.
    pub(super) strips: *const f32,
    pub(super) k: usize,
    /// `[row][COLUMNS]`
    pub(super) sums: *mut f32,
    /// The sums start at 0 instead of what is in `sums`.
    pub(super) fresh: bool,
}

impl Block {
    /// Rows `0..rows` times `strips` strips. Shapes are chosen so that the sums fill the registers of the level.
    ///
    /// # Safety
    /// `x` and `sums` have `rows` rows, the panel `strips` strips; unless `fresh`, `sums` is written. The CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn all<S: Simd>(self, rows: usize, strips: usize) {
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            // SAFETY: each arm takes at most the rows that are left.
            unsafe {
                row += match (S::LANES, left) {
                    (16, 12..) => self.rows::<S, 12, 1>(row, strips),
                    (16, 8..) => self.rows::<S, 8, 1>(row, strips),
                    (8, 6..) => self.rows::<S, 6, 1>(row, strips),
                    (16, 4..) => self.rows::<S, 4, 2>(row, strips),
                    (_, 4..) => self.rows::<S, 4, 1>(row, strips),
                    (_, 2..) => self.rows::<S, 2, 2>(row, strips),
                    _ => self.rows::<S, 1, 2>(row, strips),
                };
            }
        }
    }

    /// `M` rows from `row` on, `T` strips at a time; returns `M`.
    ///
    /// # Safety
    /// As [`Block::all`].
    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize, const T: usize>(&self, row: usize, strips: usize) -> usize {
        let mut strip = 0;
        // SAFETY: strips `strip..strip + T` exist.
        unsafe {
            while strip + T <= strips {
                self.tile::<S, M, T>(row, strip);
                strip += T;
            }
            while strip < strips {
                self.tile::<S, M, 1>(row, strip);
                strip += 1;
            }
        }
        M
    }

    /// # Safety
    /// As [`Block::all`], for rows `row..row + M` and strips `strip..strip + T`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const T: usize>(&self, row: usize, strip: usize) {
        // SAFETY: rows and strips exist; a row of `sums` holds all strips.
        unsafe {
            let x: [*const f32; M] = std::array::from_fn(|m| self.x.add((row + m) * self.x_stride));
            let w: [*const f32; T] = std::array::from_fn(|t| self.strips.add((strip + t) * DEPTH * STRIP * S::LANES));
            let at = |m: usize, t: usize, v: usize| {
                self.sums.add((row + m) * COLUMNS + ((strip + t) * STRIP + v) * S::LANES)
            };
            let mut sums = [[[S::splat(0.0); STRIP]; T]; M];
            if !self.fresh {
                for m in 0..M {
                    for t in 0..T {
                        for v in 0..STRIP {
                            sums[m][t][v] = S::load(at(m, t, v));
                        }
                    }
                }
            }
            for k in 0..self.k {
                let mut row = [[S::splat(0.0); STRIP]; T];
                for t in 0..T {
                    for v in 0..STRIP {
                        row[t][v] = S::load(w[t].add((k * STRIP + v) * S::LANES));
                    }
                }
                for m in 0..M {
                    let x = S::splat(*x[m].add(k));
                    for t in 0..T {
                        for v in 0..STRIP {
                            sums[m][t][v] = S::mul_add(x, row[t][v], sums[m][t][v]);
                        }
                    }
                }
            }
            for m in 0..M {
                for t in 0..T {
                    for v in 0..STRIP {
                        S::store(at(m, t, v), sums[m][t][v]);
                    }
                }
            }
        }
    }
}
