//! Some columns' weights, widened once for many rows.

#![expect(unsafe_code, reason = "vector loads and stores within a panel")]

use super::super::inputs::CHUNK;
use super::super::load::{HALVES, Load};
use super::{COLUMNS_MAX, Weights};
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

/// Lines of a column: a chunk, and one more, so that columns do not all lie in one set of a cache.
const LINES: usize = CHUNK / MAX_LANES + 1;

/// Floats from a column to the next.
pub(super) const STRIDE: usize = LINES * MAX_LANES;

/// `[column][vector of k][lane]`, padded with 0 to whole steps: small enough for the first-level cache.
pub(super) struct Panel(Box<[Line; COLUMNS_MAX * LINES]>);

impl Default for Panel {
    fn default() -> Self {
        Self(Box::new([Line::ZERO; COLUMNS_MAX * LINES]))
    }
}

impl Panel {
    /// Takes weights of at most [`COLUMNS_MAX`] columns and a chunk.
    ///
    /// # Safety
    /// They exist and are of type `E`. The CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn fill<S: Simd, E: Load>(&mut self, weights: &Weights) {
        let step = HALVES * S::LANES;
        for (column, to) in self.0.chunks_exact_mut(LINES).take(weights.columns).enumerate() {
            let from = weights.start.wrapping_add(column * weights.stride);
            let to = to.as_mut_ptr().cast::<f32>();
            for k in (0..weights.k).step_by(step) {
                // SAFETY: the caller grants `weights.k` elements, and there is room for as many whole steps.
                unsafe {
                    let from = from.add(k * E::SIZE);
                    for half in 0..HALVES {
                        let values = match weights.k - k {
                            rest if rest < step => E::half_head::<S>(from, half, rest),
                            _ => E::half::<S>(from, half),
                        };
                        S::store(to.add(k + half * S::LANES), values);
                    }
                }
            }
        }
    }

    pub(super) fn start(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }
}
