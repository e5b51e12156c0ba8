//! The innermost loop of many rows: vectors of rows times a few columns, with every sum in a register.
//!
//! A vector holds the same value of `k` of neighbouring rows, and is multiplied by one weight: so nothing is added across a vector, and a
//! weight's load serves several of them. To keep the order of a few rows (../tile.rs), whose vectors hold neighbouring values of `k`,
//! what would be one of their lanes is summed over a whole chunk before the next, in the order in which the lanes' tree joins them.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use std::mem::MaybeUninit;

use super::super::inputs::{Part, STEP};
use super::panel::WIDTH;
use super::{Ahead, Sums};
use crate::simd::{MAX_LANES, Simd};

/// Vectors of rows that a tile takes at most, and columns: together as many sums as a level has registers for, besides what is loaded.
pub(in super::super) const fn vectors(lanes: usize) -> usize {
    if lanes == 16 { 3 } else { 2 }
}

/// See [`vectors`].
pub(super) const fn columns(lanes: usize) -> usize {
    if lanes == 16 { 8 } else { 6 }
}

/// Levels of the tree of lanes.
const LEVELS: usize = MAX_LANES.ilog2() as usize;

/// When a lane has its turn: neighbours in this order are added first, as [`Simd::sum`] does.
#[inline(always)]
pub(super) const fn turn(lanes: usize, lane: usize) -> usize {
    lane.reverse_bits() >> (usize::BITS - lanes.ilog2())
}

/// What a tile multiplies.
pub(super) struct Tile {
    /// `[lane, in its turn][vector of k][row]`
    pub(super) x: *const f32,
    /// See [`super::panel::Panel`].
    pub(super) panel: *const f32,
    /// Vectors of `k`: whole [`STEP`]s.
    pub(super) k: usize,
}

impl Tile {
    /// Adds the sums over a chunk of `vectors` vectors of rows, at most [`vectors`] of them, and the columns of a panel to `sums`.
    ///
    /// # Safety
    /// All three are as their fields say. The CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd>(&self, vectors: usize, part: &Part, sums: &Sums, ahead: &mut Ahead) {
        // SAFETY: passed on.
        unsafe {
            match (S::LANES == 16, vectors) {
                (true, 1) => sums.take::<S, 1, 8>(part, self.chunk::<S, 1, 8>(ahead)),
                (true, 2) => sums.take::<S, 2, 8>(part, self.chunk::<S, 2, 8>(ahead)),
                (true, _) => sums.take::<S, 3, 8>(part, self.chunk::<S, 3, 8>(ahead)),
                (false, 1) => sums.take::<S, 1, 6>(part, self.chunk::<S, 1, 6>(ahead)),
                (false, _) => sums.take::<S, 2, 6>(part, self.chunk::<S, 2, 6>(ahead)),
            }
        }
    }

    /// The sums of `V` vectors of rows and `N` columns.
    ///
    /// # Safety
    /// As [`Tile::add`].
    #[inline(always)]
    unsafe fn chunk<S: Simd, const V: usize, const N: usize>(&self, ahead: &mut Ahead) -> [[S::V; V]; N] {
        // SAFETY: passed on; what a lane joins, lanes before it have written, as in any tree that is walked from the left.
        unsafe {
            // Not zeros: the kilobytes of them that nobody reads would be written for each tile.
            let mut waiting = [[[MaybeUninit::<S::V>::uninit(); V]; N]; LEVELS];
            let mut total = [[S::splat(0.0); V]; N];
            for lane in 0..S::LANES {
                ahead.ask::<S>();
                let mut sums = self.lane::<S, V, N>(lane);
                let (place, joins) = (lane.count_ones() as usize, lane.trailing_ones() as usize);
                for waiting in waiting[place - joins..place].iter().rev() {
                    for (sum, waiting) in sums.as_flattened_mut().iter_mut().zip(waiting.as_flattened()) {
                        *sum = S::add(waiting.assume_init(), *sum);
                    }
                }
                for (waiting, sum) in waiting[place - joins].as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
                    waiting.write(*sum);
                }
                total = sums;
            }
            total
        }
    }

    /// The sums of the lane whose turn it is.
    ///
    /// # Safety
    /// As [`Tile::add`].
    #[inline(always)]
    unsafe fn lane<S: Simd, const V: usize, const N: usize>(&self, index: usize) -> [[S::V; V]; N] {
        // SAFETY: as many vectors and weights as the fields say.
        unsafe {
            let mut sums = [[S::splat(0.0); V]; N];
            let mut x = self.x.add(index * self.k * V * S::LANES);
            let mut weights = self.panel.add(index * self.k * WIDTH);
            // Several at a time: where a core is shared, what bounds this loop is how many instructions it has.
            let step = STEP / S::LANES;
            for _ in 0..self.k / step {
                for k in 0..step {
                    let mut rows = [S::splat(0.0); V];
                    for (vector, rows) in rows.iter_mut().enumerate() {
                        *rows = S::load(x.add((k * V + vector) * S::LANES));
                    }
                    for (n, sums) in sums.iter_mut().enumerate() {
                        let weight = S::splat(*weights.add(k * WIDTH + n));
                        for (sum, rows) in sums.iter_mut().zip(rows) {
                            *sum = S::mul_add(rows, weight, *sum);
                        }
                    }
                }
                (x, weights) = (x.add(step * V * S::LANES), weights.add(step * WIDTH));
            }
            sums
        }
    }
}
