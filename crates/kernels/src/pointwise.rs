//! What is computed per row or per element: activation, softmax helpers.
//!
//! Rows are shared out among threads; no sum crosses a row, so the split changes nothing.

#![expect(unsafe_code, reason = "vector loads within slices")]

use crate::Pool;
use crate::simd::{Isa, Kernel, Simd};

/// `gate = silu(gate) * up`, with `silu(x) = x / (1 + e^-x)`. Panics if the lengths differ.
pub fn silu_mul(isa: Isa, pool: &Pool, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up");
    pool.run_rows(gate, 1, |first, gate| {
        let up = &up[first..first + gate.len()];
        isa.run(SiluMul { gate, up });
    });
}

/// Index of the largest value, the first of equals; `None` if there is none that compares.
pub fn argmax(isa: Isa, x: &[f32]) -> Option<usize> {
    let max = isa.run(Max(x));
    x.iter().position(|value| *value == max)
}

/// `ln(sum of e^x)`.
pub fn log_sum_exp(isa: Isa, x: &[f32]) -> f32 {
    let max = isa.run(Max(x));
    max + isa.run(SumExp { x, max }).ln()
}

/// `out[i] = e^((x[i] - max) / temperature)`: weights of which the largest is 1, if `max` is the largest of `x`. Those below `least`, and
/// those of minus infinity, are 0; `out` gets the length of `x`.
pub fn softmax_weights(isa: Isa, x: &[f32], max: f32, temperature: f32, least: f32, out: &mut Vec<f32>) {
    out.resize(x.len(), 0.0);
    isa.run(SoftmaxWeights { x, max, temperature, least, out });
}

struct SoftmaxWeights<'a> {
    x: &'a [f32],
    max: f32,
    temperature: f32,
    least: f32,
    /// As long as `x`.
    out: &'a mut [f32],
}

impl Kernel for SoftmaxWeights<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, max, temperature, least, out } = self;
        let count = x.len();
        // SAFETY: `i < count`, and at most `count - i` lanes are touched.
        unsafe {
            let (max, temperature) = (S::splat(max), S::splat(temperature));
            for i in (0..count).step_by(S::LANES) {
                let below = S::sub(S::load_upto(x.as_ptr().add(i), count - i), max);
                S::store_upto(out.as_mut_ptr().add(i), S::exp(S::div(below, temperature)), count - i);
            }
        }
        // `exp` of minus infinity is only as good as zero, and a weight of nothing is to be nothing.
        for (weight, x) in out.iter_mut().zip(x) {
            *weight = if *weight < least || *x == f32::NEG_INFINITY { 0.0 } else { *weight };
        }
    }
}

/// See [`silu_mul`].
pub(crate) struct SiluMul<'a> {
    pub(crate) gate: &'a mut [f32],
    /// As long as `gate`.
    pub(crate) up: &'a [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let count = self.gate.len();
        for i in (0..count).step_by(S::LANES) {
            // SAFETY: `i < count`, and at most `count - i` lanes are touched.
            unsafe {
                let x = S::load_upto(self.gate.as_ptr().add(i), count - i);
                let up = S::load_upto(self.up.as_ptr().add(i), count - i);
                let silu = S::div(x, S::add(S::splat(1.0), S::exp(S::sub(S::splat(0.0), x))));
                S::store_upto(self.gate.as_mut_ptr().add(i), S::mul(silu, up), count - i);
            }
        }
    }
}

struct Max<'a>(&'a [f32]);

impl Kernel for Max<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let whole = self.0.len() - self.0.len() % S::LANES;
        // SAFETY: whole vectors within the slice.
        unsafe {
            let mut max = S::splat(f32::NEG_INFINITY);
            for i in (0..whole).step_by(S::LANES) {
                max = S::max(S::load(self.0.as_ptr().add(i)), max);
            }
            self.0[whole..].iter().copied().fold(S::max_lane(max), f32::max)
        }
    }
}

struct SumExp<'a> {
    x: &'a [f32],
    max: f32,
}

impl Kernel for SumExp<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let whole = self.x.len() - self.x.len() % S::LANES;
        // SAFETY: whole vectors within the slice.
        unsafe {
            let mut sum = S::splat(0.0);
            for i in (0..whole).step_by(S::LANES) {
                sum = S::add(sum, S::exp(S::sub(S::load(self.x.as_ptr().add(i)), S::splat(self.max))));
            }
            self.x[whole..].iter().fold(S::sum(sum), |sum, x| sum + (x - self.max).exp())
        }
    }
}

#[cfg(test)]
mod tests;
