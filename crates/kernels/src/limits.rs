//! What the machine can do at most, measured beside a figure that is to be judged by it.
//!
//! Two limits: arithmetic that never leaves registers, and reading of memory that no cache holds. Both use every thread of a pool,
//! so they are the limits of a computation on that pool.

#![expect(unsafe_code, reason = "kernels over Simd; contracts stand at each")]

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::quant::dot::{self, Dot, DotKernel};
use crate::quant::tiles;
use crate::simd::{Kernel, Simd};
use crate::tiles::{ROW_BYTES, SIDE, Tiles};
use crate::{Isa, Pool};

/// Chains of dependent multiply-adds: more than latency x ports of any CPU we know (4 x 2), and few enough for 16 registers.
const CHAINS: usize = 12;
/// Multiply-adds of each chain in one measurement: a millisecond, so that starting the threads does not show and most measurements
/// are over before the system interrupts them.
const STEPS: usize = 600_000;
/// As [`STEPS`], for products of bytes: slower where the level has no instruction for them.
const DOT_STEPS: usize = 100_000;
/// Independent sums, so that loads and not additions set the pace.
const SUMS: usize = 8;

/// Floating-point operations per second of fused multiply-adds (two each) that stay in registers, all threads together.
pub fn fma_peak(isa: Isa, pool: &Pool) -> f64 {
    let start = Instant::now();
    pool.run(pool.threads(), |_| {
        black_box(isa.run(Chains { factor: black_box(0.5), steps: STEPS }));
    });
    let lanes = isa.run(Lanes);
    let operations = 2 * CHAINS * STEPS * lanes * pool.threads();
    operations as f64 / start.elapsed().as_secs_f64()
}

/// Integer operations per second (a multiplication and an addition each) of products of bytes that stay in registers, all threads
/// together.
pub fn dot_peak(isa: Isa, pool: &Pool) -> f64 {
    let products = AtomicUsize::new(0);
    let start = Instant::now();
    pool.run(pool.threads(), |_| {
        products.fetch_add(dot::run(isa, DotChains { steps: DOT_STEPS }), Ordering::Relaxed);
    });
    (2 * products.into_inner()) as f64 / start.elapsed().as_secs_f64()
}

/// Bytes per second at which the pool's threads together read `data` once. It says what memory can do only if `data` is larger than
/// every cache.
pub fn read_bandwidth(isa: Isa, pool: &Pool, data: &[f32]) -> f64 {
    let share = data.len().div_ceil(pool.threads()).max(1);
    let start = Instant::now();
    pool.run(pool.threads(), |thread| {
        let part = data.chunks(share).nth(thread).unwrap_or_default();
        black_box(isa.run(Sum(part)));
    });
    size_of_val(data) as f64 / start.elapsed().as_secs_f64()
}

struct Lanes;

impl Kernel for Lanes {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        S::LANES
    }
}

/// `x = x * factor + 1`, `steps` times in each chain; the sum of all lanes of all chains.
struct Chains {
    factor: f32,
    steps: usize,
}

impl Kernel for Chains {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: arithmetic only.
        unsafe {
            let (factor, one) = (S::splat(self.factor), S::splat(1.0));
            let mut chains = [S::splat(0.0); CHAINS];
            for _ in 0..self.steps {
                for chain in &mut chains {
                    *chain = S::mul_add(*chain, factor, one);
                }
            }
            chains.into_iter().map(|chain| S::sum(chain)).sum()
        }
    }
}

/// `steps` products in each of some chains, of tiles if there are any; returns how many bytes were multiplied.
struct DotChains {
    steps: usize,
}

impl DotKernel for DotChains {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<D: Dot, T: Tiles>(self) -> usize {
        // SAFETY: the caller vouches for `D` and `T`.
        unsafe {
            match T::configure(&tiles::shapes(ROW_BYTES)) {
                Some(tiles) => self.tiles(tiles),
                None => self.vectors::<D>(),
            }
        }
    }
}

impl DotChains {
    /// # Safety
    /// The tiles are configured.
    #[inline(always)]
    unsafe fn tiles<T: Tiles>(self, mut tiles: T) -> usize {
        const X: usize = tiles::INPUTS;
        const W: usize = tiles::WEIGHTS[0];
        let ones = black_box([1u8; SIDE * ROW_BYTES]);
        // SAFETY: `ones` is as large as a tile; tile numbers are those of the configuration.
        unsafe {
            tiles.load::<X>(ones.as_ptr(), ROW_BYTES);
            tiles.load::<W>(ones.as_ptr(), ROW_BYTES);
            for _ in 0..self.steps {
                tiles.dot_bytes::<{ tiles::SUMS[0] }, X, W>();
                tiles.dot_bytes::<{ tiles::SUMS[1] }, X, W>();
                tiles.dot_bytes::<{ tiles::SUMS[2] }, X, W>();
                tiles.dot_bytes::<{ tiles::SUMS[3] }, X, W>();
            }
        }
        tiles::SUMS.len() * self.steps * SIDE * SIDE * ROW_BYTES
    }

    /// # Safety
    /// The CPU has `D`.
    #[inline(always)]
    unsafe fn vectors<D: Dot>(self) -> usize {
        let (bytes, x) = (black_box([1u8; dot::PRODUCTS]), black_box([1i8; 4]));
        // SAFETY: `bytes` and `x` hold what one product reads, `out` sixteen floats.
        unsafe {
            let w = D::bytes(bytes.as_ptr());
            let mut chains = [D::ints(0); CHAINS];
            for _ in 0..self.steps {
                for chain in &mut chains {
                    *chain = D::dot(*chain, w, x.as_ptr());
                }
            }
            let mut out = [0.0; dot::PRODUCTS / 4];
            for chain in chains {
                D::store(out.as_mut_ptr(), D::add_scaled(D::zero(), chain, D::zero(), 1.0));
                black_box(&out);
            }
        }
        dot::PRODUCTS * CHAINS * self.steps
    }
}

/// The sum of all values, in whatever order is fastest.
struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let whole = self.0.chunks_exact(SUMS * S::LANES);
        let rest: f32 = whole.remainder().iter().sum();
        // SAFETY: each chunk holds SUMS vectors.
        unsafe {
            let mut sums = [S::splat(0.0); SUMS];
            for chunk in whole {
                for (index, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(chunk.as_ptr().add(index * S::LANES)));
                }
            }
            sums.into_iter().map(|sum| S::sum(sum)).sum::<f32>() + rest
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiles::TileUnit;

    #[test]
    fn the_loops_do_the_work_that_is_counted() {
        for isa in Isa::available() {
            let lanes = isa.run(Lanes);
            // x = x / 2 + 1 from 0: 1, 1.5, 1.75, ...
            for (steps, expected) in [(0, 0.0), (1, 1.0), (2, 1.5), (3, 1.75)] {
                let sum = isa.run(Chains { factor: 0.5, steps });
                assert_eq!(sum, expected * (CHAINS * lanes) as f32, "{isa}, {steps} steps");
            }
        }
    }

    #[test]
    fn chains_of_vectors_and_of_tiles_say_how_much_they_multiply() {
        for isa in Isa::all() {
            let expected = if isa.tiles() == TileUnit::None { 3 * 64 * CHAINS } else { 3 * 4 * 16 * 16 * 64 };
            assert_eq!(dot::run(isa, DotChains { steps: 3 }), expected, "{isa}");
        }
    }

    #[test]
    fn every_value_is_read_once() {
        for isa in Isa::available() {
            for count in [0, 1, 7, 127, 128, 129, 1000] {
                let data: Vec<f32> = (0..count).map(|value| value as f32).collect();
                let expected: f32 = data.iter().sum();
                assert_eq!(isa.run(Sum(&data)), expected, "{isa}, {count} values");
            }
        }
    }

    #[test]
    fn limits_are_numbers_for_any_share_of_threads() {
        for threads in [1, 3] {
            let pool = Pool::new("limits", threads).unwrap();
            for count in [1, 2, 100] {
                let bandwidth = read_bandwidth(Isa::PORTABLE, &pool, &vec![1.0; count]);
                assert!(bandwidth.is_finite() && bandwidth > 0.0);
            }
            assert!(dot_peak(Isa::PORTABLE, &pool).is_finite());
        }
    }
}
