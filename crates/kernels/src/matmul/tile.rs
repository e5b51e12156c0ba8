//! The innermost loop: a few rows of inputs times a few rows of weights, with every sum in a register.
//!
//! The sum of one output is a vector: lane `i` adds the products of every `LANES`-th pair, one after the other; at the end the lanes
//! are added as a tree. Inputs and weights are read along their rows, as they lie in memory, so nothing is turned.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use std::hint::black_box;

use super::load::{HALVES, Load};
use crate::simd::{MAX_LANES, Simd};

/// Outputs of a tile, in whole vectors.
pub(super) const OUTPUTS: usize = 2 * MAX_LANES;

/// Rows of inputs that a tile takes at most, and how many rows of weights go with `rows` of them: as many sums as a level has
/// registers for, besides what is loaded.
pub(super) const fn rows_max(lanes: usize) -> usize {
    if lanes == 16 { 8 } else { 6 }
}

/// See [`rows_max`].
pub(super) const fn columns_max(lanes: usize, rows: usize) -> usize {
    match (lanes == 16, rows) {
        (true, ..=2) => 8,
        (true, ..=4) => 5,
        (true, _) => 3,
        (false, ..=2) => 4,
        (false, 3) => 3,
        (false, _) => 2,
    }
}

/// What a tile multiplies.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// `[vector of k][row][lane]`, padded with 0 to whole steps.
    pub(super) x: *const f32,
    pub(super) k: usize,
    /// How many bytes behind each weight the one lies that is asked for while it is used.
    pub(super) ahead: usize,
}

impl Tile {
    /// `to[m * N + n]`, sums over `k` of `rows` rows, at most [`rows_max`], and `N` columns: [`columns_max`] of `rows`. `w` says where
    /// a column's weights begin.
    ///
    /// # Safety
    /// The rows exist, as long as the fields say, and weights are of type `E`. The CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn sums<S: Simd, E: Load>(
        &self,
        rows: usize,
        w: impl Fn(usize) -> *const u8,
        to: &mut [f32; OUTPUTS],
    ) {
        // SAFETY: passed on.
        unsafe {
            // A level's code holds its own shapes only.
            if const { S::LANES == 16 } {
                match rows {
                    1 => self.some::<S, E, 1, 8>(w, to),
                    2 => self.some::<S, E, 2, 8>(w, to),
                    3 => self.some::<S, E, 3, 5>(w, to),
                    4 => self.some::<S, E, 4, 5>(w, to),
                    5 => self.some::<S, E, 5, 3>(w, to),
                    6 => self.some::<S, E, 6, 3>(w, to),
                    7 => self.some::<S, E, 7, 3>(w, to),
                    _ => self.some::<S, E, 8, 3>(w, to),
                }
            } else {
                match rows {
                    1 => self.some::<S, E, 1, 4>(w, to),
                    2 => self.some::<S, E, 2, 4>(w, to),
                    3 => self.some::<S, E, 3, 3>(w, to),
                    4 => self.some::<S, E, 4, 2>(w, to),
                    5 => self.some::<S, E, 5, 2>(w, to),
                    _ => self.some::<S, E, 6, 2>(w, to),
                }
            }
        }
    }

    /// # Safety
    /// As [`Tile::sums`], for `M` rows and `N` columns.
    #[inline(always)]
    unsafe fn some<S: Simd, E: Load, const M: usize, const N: usize>(
        &self,
        w: impl Fn(usize) -> *const u8,
        to: &mut [f32; OUTPUTS],
    ) {
        // Opaque to the compiler, which would else compute them again for every step.
        let w: [*const u8; N] = black_box(std::array::from_fn(w));
        let step = HALVES * S::LANES;
        // SAFETY: `k` elements of each row are read, and of the inputs whole steps.
        unsafe {
            let mut sums = [[S::splat(0.0); N]; M];
            let mut k = 0;
            while k + step <= self.k {
                for w in w {
                    S::prefetch(w.wrapping_add(k * E::SIZE + self.ahead));
                }
                for half in 0..HALVES {
                    let mut weights = [S::splat(0.0); N];
                    for (weights, w) in weights.iter_mut().zip(w) {
                        *weights = E::half::<S>(w.add(k * E::SIZE), half);
                    }
                    self.multiply::<S, M, N>(k + half * S::LANES, &weights, &mut sums);
                }
                k += step;
            }
            if k < self.k {
                for half in 0..HALVES {
                    let mut weights = [S::splat(0.0); N];
                    for (weights, w) in weights.iter_mut().zip(w) {
                        *weights = E::half_head::<S>(w.add(k * E::SIZE), half, self.k - k);
                    }
                    self.multiply::<S, M, N>(k + half * S::LANES, &weights, &mut sums);
                }
            }
            fold::<S, M, N>(&sums, to);
        }
    }

    /// `sums += x * weights` for one vector of `k` from `at` on.
    ///
    /// # Safety
    /// `M` input rows have a vector at `at`; the CPU has `S`.
    #[inline(always)]
    unsafe fn multiply<S: Simd, const M: usize, const N: usize>(
        &self,
        at: usize,
        weights: &[S::V; N],
        sums: &mut [[S::V; N]; M],
    ) {
        for (m, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller grants it.
            unsafe {
                let x = S::load(self.x.add(at * M + m * S::LANES));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = S::mul_add(x, *weights, *sum);
                }
            }
        }
    }
}

/// Adds the lanes of each sum.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
unsafe fn fold<S: Simd, const M: usize, const N: usize>(sums: &[[S::V; N]; M], to: &mut [f32; OUTPUTS]) {
    for (sums, to) in sums.as_flattened().chunks(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
        // SAFETY: the caller grants the CPU; `to` is a vector long.
        unsafe {
            let mut vectors = [S::splat(0.0); MAX_LANES];
            vectors[..sums.len()].copy_from_slice(sums);
            S::store(to.as_mut_ptr(), S::sums(&vectors));
        }
    }
}
