//! Some columns' weights, widened once for many rows.

#![expect(unsafe_code, reason = "vector loads and stores within a panel")]

use super::super::inputs::CHUNK;
use super::super::load::{HALVES, Load};
use super::tile::{columns, turn};
use super::{Weights, vectors_of_k};
use crate::simd::{MAX_LANES, Simd};

/// A line of memory, so that no vector lies in two.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line {
    _values: [f32; MAX_LANES],
}

impl Line {
    pub(super) const ZERO: Self = Self { _values: [0.0; MAX_LANES] };
}

/// Floats from a vector of `k` to the next: room for the columns of any level.
pub(super) const WIDTH: usize = 8;

/// Panels that meet a tile of rows together: what a lane's turn takes of them and of the rows stays in the first-level cache.
pub(super) const PANELS: usize = 4;

/// `[lane, in its turn][panel][vector of k][column]`, padded with 0 to whole steps: what a lane's turn takes lies in one run.
pub(super) struct Panels(Box<[Line; PANELS * CHUNK * WIDTH / MAX_LANES]>);

impl Default for Panels {
    fn default() -> Self {
        Self(Box::new([Line::ZERO; _]))
    }
}

impl Panels {
    /// Takes weights of some columns, of which the last is repeated where a panel has fewer, and a chunk. Returns how many panels they
    /// are.
    ///
    /// # Safety
    /// They exist and are of type `E`, and are no more than [`PANELS`] panels take. The CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn fill<S: Simd, E: Load>(&mut self, weights: &Weights) -> usize {
        let panels = weights.columns.div_ceil(columns(S::LANES));
        for panel in 0..panels {
            // SAFETY: passed on.
            unsafe { self.fill_one::<S, E>(weights, panel, panels) };
        }
        panels
    }

    /// # Safety
    /// As [`Panels::fill`].
    #[inline(always)]
    unsafe fn fill_one<S: Simd, E: Load>(&mut self, weights: &Weights, panel: usize, panels: usize) {
        let vectors = vectors_of_k(weights.k, S::LANES);
        // So many vectors of `k` fill the vectors of columns that they become.
        let together = S::LANES / WIDTH;
        for first in (0..vectors).step_by(together) {
            // SAFETY: the caller grants the weights, and there is room for as many vectors.
            unsafe {
                let mut values = [S::splat(0.0); MAX_LANES];
                for vector in 0..together {
                    for column in 0..columns(S::LANES) {
                        let of_all = panel * columns(S::LANES) + column;
                        values[vector * WIDTH + column] = weights.vector::<S, E>(of_all, first + vector);
                    }
                }
                S::transpose(&mut values);
                let to = self.0.as_mut_ptr().cast::<f32>();
                for (lane, values) in values.iter().enumerate().take(S::LANES) {
                    let run = turn(S::LANES, lane) * panels + panel;
                    S::store(to.add((run * vectors + first) * WIDTH), *values);
                }
            }
        }
    }

    pub(super) fn start(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }
}

impl Weights {
    /// A vector of `k` of a column, widened.
    ///
    /// # Safety
    /// As [`Panels::fill`].
    #[inline(always)]
    unsafe fn vector<S: Simd, E: Load>(&self, column: usize, vector: usize) -> S::V {
        let (half, step) = (vector % HALVES, HALVES * S::LANES);
        let k = (vector - half) * S::LANES;
        let from = self.start.wrapping_add(column.min(self.columns - 1) * self.stride + k * E::SIZE);
        // SAFETY: the caller grants `k` elements of a column.
        unsafe {
            match self.k.saturating_sub(k) {
                rest if rest < step => E::half_head::<S>(from, half, rest),
                _ => E::half::<S>(from, half),
            }
        }
    }
}
