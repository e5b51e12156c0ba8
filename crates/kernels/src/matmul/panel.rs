//! A block's weights, widened once for many rows.

#![expect(unsafe_code, reason = "vector loads and stores within a panel")]

use super::block::Weights;
use super::load::{HALVES, Load};
use crate::simd::{MAX_LANES, Simd};

/// A line of memory, so that no vector lies in two.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _values: [f32; MAX_LANES],
}

/// `[column][vector of k][lane]`, padded with 0 to whole steps.
#[derive(Default)]
pub(super) struct Panel(Vec<Line>);

impl Panel {
    /// Takes some columns. What comes back is of type [`super::load::F32`], and good until the next call.
    ///
    /// # Safety
    /// The weights exist and are of type `E`. The CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn fill<S: Simd, E: Load>(&mut self, weights: &Weights, columns: usize) -> Weights {
        let step = HALVES * S::LANES;
        let k = weights.k.next_multiple_of(step);
        // One more line, so that columns do not all lie in one set of a cache.
        let lines = k.div_ceil(MAX_LANES) + 1;
        if self.0.len() < columns * lines {
            self.0.resize(columns * lines, Line { _values: [0.0; MAX_LANES] });
        }
        for (column, to) in self.0.chunks_exact_mut(lines).take(columns).enumerate() {
            let from = weights.start.wrapping_add(column * weights.stride);
            let to = to.as_mut_ptr().cast::<f32>();
            for k in (0..weights.k).step_by(step) {
                // SAFETY: the caller grants `weights.k` elements, and there is room for as many whole steps.
                unsafe {
                    let from = from.add(k * E::SIZE);
                    S::prefetch(from.wrapping_add(weights.stride));
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
        Weights { start: self.0.as_ptr().cast(), stride: lines * size_of::<Line>(), k, new: false }
    }
}
