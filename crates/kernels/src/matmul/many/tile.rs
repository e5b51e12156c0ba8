//! The innermost loop of many rows: vectors of rows times a few columns, with every sum in a register.
//!
//! A vector holds the same value of `k` of neighbouring rows, and is multiplied by one weight: so nothing is added across a vector, and a
//! weight's load serves several of them. To keep the order of a few rows (../tile.rs), whose vectors hold neighbouring values of `k`,
//! what would be one of their lanes is summed over a whole chunk before the next, in the order in which the lanes' tree joins them.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use std::mem::MaybeUninit;

use super::super::inputs::{Part, STEP};
use super::panel::{PANELS, WIDTH};
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
    /// At most [`PANELS`].
    pub(super) panels: usize,
    /// Of all panels, see [`super::panel::Panels`].
    pub(super) weights: *const f32,
    /// Vectors of `k`: whole [`STEP`]s.
    pub(super) k: usize,
}

/// Sums of the lanes so far that wait for their neighbours, by level of the tree. Not zeros: the kilobytes of them that nobody reads would
/// be written for each tile.
type Waiting<T, const V: usize, const N: usize> = [[[MaybeUninit<T>; V]; N]; LEVELS];

impl Tile {
    /// Adds the sums over a chunk of `vectors` vectors of rows, at most [`vectors`] of them, and the columns of the panels to `sums`.
    ///
    /// # Safety
    /// All three are as their fields say. The CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd>(&self, vectors: usize, part: &Part, sums: &Sums, ahead: &mut Ahead) {
        // SAFETY: passed on.
        unsafe {
            // A level's code holds its own shapes only.
            if const { S::LANES == 16 } {
                match vectors {
                    1 => self.chunk::<S, 1, 8>(part, sums, ahead),
                    2 => self.chunk::<S, 2, 8>(part, sums, ahead),
                    _ => self.chunk::<S, 3, 8>(part, sums, ahead),
                }
            } else {
                match vectors {
                    1 => self.chunk::<S, 1, 6>(part, sums, ahead),
                    _ => self.chunk::<S, 2, 6>(part, sums, ahead),
                }
            }
        }
    }

    /// The same of `V` vectors of rows and panels of `N` columns. What a lane's turn takes of the rows is used by all panels at once.
    ///
    /// # Safety
    /// As [`Tile::add`].
    #[inline(always)]
    unsafe fn chunk<S: Simd, const V: usize, const N: usize>(&self, part: &Part, sums: &Sums, ahead: &mut Ahead) {
        // SAFETY: passed on; after the last lane nothing waits, and its sums are those of all lanes.
        unsafe {
            let mut waiting = [[[[MaybeUninit::uninit(); V]; N]; LEVELS]; PANELS];
            let waiting = &mut waiting[..self.panels];
            for lane in 0..S::LANES {
                ahead.ask::<S>();
                let place = (lane.count_ones() - lane.trailing_ones()) as usize;
                for (panel, waiting) in waiting.iter_mut().enumerate() {
                    let joined = join::<S, V, N>(lane, self.lane::<S, V, N>(lane, panel), waiting);
                    if lane + 1 == S::LANES {
                        sums.behind(panel * N * V * S::LANES).take::<S, V, N>(part, joined);
                    } else {
                        let joined = joined.as_flattened().iter();
                        waiting[place].as_flattened_mut().iter_mut().zip(joined).for_each(|(waiting, sum)| {
                            waiting.write(*sum);
                        });
                    }
                }
            }
        }
    }

    /// The sums of a panel and the lane whose turn it is.
    ///
    /// # Safety
    /// As [`Tile::add`].
    #[inline(always)]
    unsafe fn lane<S: Simd, const V: usize, const N: usize>(&self, index: usize, panel: usize) -> [[S::V; V]; N] {
        // SAFETY: as many vectors and weights as the fields say.
        unsafe {
            let mut sums = [[S::splat(0.0); V]; N];
            let mut x = self.x.add(index * self.k * V * S::LANES);
            let mut weights = self.weights.add((index * self.panels + panel) * self.k * WIDTH);
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

/// A lane's sums, to which those that wait for them were added.
///
/// # Safety
/// Of the lanes before it every one was joined, in their turns, as in any tree that is walked from the left. The CPU has `S`.
#[inline(always)]
unsafe fn join<S: Simd, const V: usize, const N: usize>(
    lane: usize,
    mut sums: [[S::V; V]; N],
    waiting: &Waiting<S::V, V, N>,
) -> [[S::V; V]; N] {
    let (place, joins) = (lane.count_ones() as usize, lane.trailing_ones() as usize);
    for waiting in waiting[place - joins..place].iter().rev() {
        for (sum, waiting) in sums.as_flattened_mut().iter_mut().zip(waiting.as_flattened()) {
            // SAFETY: the caller grants it.
            *sum = unsafe { S::add(waiting.assume_init(), *sum) };
        }
    }
    sums
}
