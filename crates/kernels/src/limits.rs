//! What the machine can do at most, measured beside a figure that is to be judged by it.
//!
//! Two limits: arithmetic that never leaves registers, of the kind that a level multiplies weights with, and reading of memory that no
//! cache holds. Both use every thread of a pool, so they are the limits of a computation on that pool.

#![expect(unsafe_code, reason = "kernels over Simd; contracts stand at each")]

use std::fmt;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::matmul::by_tiles;
use crate::quant::dot::{self, Dot, DotKernel};
use crate::quant::tiles;
use crate::simd::{Kernel, Simd};
use crate::tiles::{self as tile, ROW_BYTES, SIDE, TileKernel, TileUnit, Tiles};
use crate::{Element, Isa, Pool};

/// Chains of dependent multiply-adds: more than latency x ports of any CPU we know (4 x 2), and few enough for 16 registers.
const CHAINS: usize = 12;
/// Multiply-adds of each chain in one measurement: a millisecond, so that starting the threads does not show and most measurements
/// are over before the system interrupts them.
const STEPS: usize = 600_000;
/// As [`STEPS`], for products of bytes: slower where the level has no instruction for them.
const DOT_STEPS: usize = 100_000;
/// As [`STEPS`], for products of tiles: four of 16 cycles each in a step.
const TILE_STEPS: usize = 40_000;
/// The same where a product of tiles is a loop.
const EMULATED_STEPS: usize = 40;
/// Independent sums, so that loads and not additions set the pace; as many vectors of a stream are read in turn.
const SUMS: usize = 4;
/// Runs of memory that a thread reads at the same time: which number is fastest depends on the CPU.
const STREAMS: [usize; 2] = [1, 4];
/// How many bytes ahead memory is asked for.
const AHEAD: usize = 1 << 10;
/// Bytes of a line of memory.
const LINE: usize = 64;

/// What a level multiplies weights with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arithmetic {
    /// Fused multiply-adds of f32.
    Fma,
    /// Products of bf16 in tile registers.
    Bf16Tiles,
    /// Products of bytes in vectors.
    Int8,
    /// Products of bytes in tile registers.
    Int8Tiles,
}

impl Arithmetic {
    /// As products choose it for weights that are stored so; `None` stands for packed ones.
    pub fn of(isa: Isa, weights: Option<Element>) -> Self {
        match weights {
            None if isa.tiles() == TileUnit::None => Self::Int8,
            None => Self::Int8Tiles,
            Some(element) if by_tiles(isa, element) => Self::Bf16Tiles,
            Some(_) => Self::Fma,
        }
    }

    /// Operations per second, a multiplication and an addition each, that stay in registers, all threads together. `isa` is one that
    /// multiplies so.
    pub fn peak(self, isa: Isa, pool: &Pool) -> f64 {
        let products = AtomicUsize::new(0);
        let start = Instant::now();
        pool.run(pool.threads(), |_| {
            products.fetch_add(self.products(isa), Ordering::Relaxed);
        });
        (2 * products.into_inner()) as f64 / start.elapsed().as_secs_f64()
    }

    /// Multiplies for about a millisecond; how many products that were.
    fn products(self, isa: Isa) -> usize {
        let steps = match isa.tiles() {
            TileUnit::None => DOT_STEPS,
            #[cfg(target_arch = "x86_64")]
            TileUnit::Amx => TILE_STEPS,
            TileUnit::Emulated => EMULATED_STEPS,
        };
        match self {
            Self::Fma => {
                black_box(isa.run(Chains { factor: black_box(0.5), steps: STEPS }));
                CHAINS * STEPS * isa.lanes()
            }
            Self::Bf16Tiles => tile::run(isa, Bf16Chains { steps }),
            Self::Int8 | Self::Int8Tiles => dot::run(isa, DotChains { steps }),
        }
    }
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fma => "fma",
            Self::Bf16Tiles => "bf16 tiles",
            Self::Int8 => "int8",
            Self::Int8Tiles => "int8 tiles",
        })
    }
}

/// Bytes per second at which the pool's threads together read `data` once, in the fastest of a few ways. It says what memory can do
/// only if `data` is larger than every cache.
pub fn read_bandwidth(isa: Isa, pool: &Pool, data: &[f32]) -> f64 {
    let share = data.len().div_ceil(pool.threads()).max(1);
    let seconds = |streams| {
        let start = Instant::now();
        pool.run(pool.threads(), |thread| {
            let data = data.chunks(share).nth(thread).unwrap_or_default();
            black_box(isa.run(Sum { data, streams }));
        });
        start.elapsed().as_secs_f64()
    };
    size_of_val(data) as f64 / STREAMS.into_iter().map(seconds).fold(f64::INFINITY, f64::min)
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
            match T::configure(&tiles::shapes()) {
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
        let (bytes, x) = (black_box([[1u8; dot::PRODUCTS]; CHAINS]), [1i8; 4]);
        // SAFETY: each of `bytes`, and `x`, hold what one product reads, `out` sixteen floats.
        unsafe {
            let mut w = [D::bytes(bytes[0].as_ptr()); CHAINS];
            for (w, bytes) in w.iter_mut().zip(&bytes) {
                *w = D::bytes(bytes.as_ptr());
            }
            let mut chains = [D::start(0); CHAINS];
            for _ in 0..self.steps {
                // Others each time, for all that the compiler knows: else it would multiply once and only add in the loop.
                let x = black_box(x);
                for (chain, w) in chains[..D::CHAINS].iter_mut().zip(w) {
                    *chain = D::dot(*chain, w, x.as_ptr());
                }
            }
            let mut out = [0.0; dot::PRODUCTS / 4];
            for chain in &chains[..D::CHAINS] {
                D::store(out.as_mut_ptr(), D::converted(*chain));
                black_box(&out);
            }
        }
        dot::PRODUCTS * D::CHAINS * self.steps
    }
}

/// `steps` products of bf16 tiles in each of four sums; returns how many values were multiplied. All of them are 1, so the sums say so.
struct Bf16Chains {
    steps: usize,
}

impl TileKernel for Bf16Chains {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<S: Simd, T: Tiles>(self) -> usize {
        const X: usize = tiles::INPUTS;
        const W: usize = tiles::WEIGHTS[0];
        const A: usize = tiles::SUMS[0];
        const B: usize = tiles::SUMS[1];
        const C: usize = tiles::SUMS[2];
        const D: usize = tiles::SUMS[3];
        /// 1 in bf16.
        const ONE: u16 = 0x3F80;
        let (ones, mut sums) = ([ONE; SIDE * ROW_BYTES / 2], [[0.0f32; SIDE * SIDE]; 4]);
        // SAFETY: `ones` and each of `sums` are as large as a tile; tile numbers are those of the configuration.
        unsafe {
            let mut tiles = T::configure(&tiles::shapes()).expect("a level with tiles");
            tiles.load::<X>(ones.as_ptr().cast(), ROW_BYTES);
            tiles.load::<W>(ones.as_ptr().cast(), ROW_BYTES);
            tiles.zero::<A>();
            tiles.zero::<B>();
            tiles.zero::<C>();
            tiles.zero::<D>();
            for _ in 0..self.steps {
                tiles.dot_bf16::<A, X, W>();
                tiles.dot_bf16::<B, X, W>();
                tiles.dot_bf16::<C, X, W>();
                tiles.dot_bf16::<D, X, W>();
            }
            tiles.store::<A>(sums[0].as_mut_ptr().cast());
            tiles.store::<B>(sums[1].as_mut_ptr().cast());
            tiles.store::<C>(sums[2].as_mut_ptr().cast());
            tiles.store::<D>(sums[3].as_mut_ptr().cast());
        }
        sums.as_flattened().iter().map(|sum| *sum as usize).sum()
    }
}

/// The sum of all values, of which some runs are read at the same time.
struct Sum<'a> {
    data: &'a [f32],
    streams: usize,
}

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let Self { data, streams } = self;
        let step = SUMS * S::LANES;
        let run = data.len() / (streams * step) * step;
        let rest: f32 = data[streams * run..].iter().sum();
        // SAFETY: each stream has `run` values, whole steps.
        unsafe {
            let mut sums = [S::splat(0.0); SUMS];
            for at in (0..run).step_by(step) {
                for stream in 0..streams {
                    let from = data.as_ptr().add(stream * run + at);
                    for line in (0..step * size_of::<f32>()).step_by(LINE) {
                        S::prefetch(from.cast::<u8>().wrapping_add(line + AHEAD));
                    }
                    for (index, sum) in sums.iter_mut().enumerate() {
                        *sum = S::add(*sum, S::load(from.add(index * S::LANES)));
                    }
                }
            }
            sums.into_iter().map(|sum| S::sum(sum)).sum::<f32>() + rest
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loops_do_the_work_that_is_counted() {
        for isa in Isa::available() {
            let lanes = isa.lanes();
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
            let products = dot::run(isa, DotChains { steps: 3 });
            let expected = match isa.tiles() {
                TileUnit::None => [3 * 64 * CHAINS, 3 * 64 * 4],
                _ => [3 * 4 * 16 * 16 * 64; 2],
            };
            assert!(expected.contains(&products), "{isa}: {products}");
        }
    }

    /// The sums are what tiles added up, so they would tell of a product that was left out.
    #[test]
    fn chains_of_bf16_tiles_add_up_what_they_multiply() {
        for isa in Isa::all().into_iter().filter(|isa| isa.tiles() != TileUnit::None) {
            for steps in [0, 1, 3, EMULATED_STEPS] {
                assert_eq!(tile::run(isa, Bf16Chains { steps }), steps * 4 * 16 * 16 * 32, "{isa}, {steps} steps");
            }
        }
    }

    #[test]
    fn the_limit_is_that_of_how_weights_are_multiplied() {
        let pool = Pool::new("limits", 2).unwrap();
        for isa in Isa::all() {
            let tiles = isa.tiles() != TileUnit::None;
            let of = |weights| Arithmetic::of(isa, weights).to_string();
            assert_eq!([of(Some(Element::F32)), of(Some(Element::F16))], ["fma"; 2], "{isa}");
            assert_eq!(of(Some(Element::Bf16)), if tiles { "bf16 tiles" } else { "fma" }, "{isa}");
            assert_eq!(of(None), if tiles { "int8 tiles" } else { "int8" }, "{isa}");
            for weights in [Some(Element::Bf16), None] {
                let peak = Arithmetic::of(isa, weights).peak(isa, &pool);
                assert!(peak.is_finite() && peak > 0.0, "{isa}, {weights:?}: {peak}");
            }
        }
    }

    #[test]
    fn every_value_is_read_once() {
        for isa in Isa::available() {
            for count in [0, 1, 7, 127, 128, 129, 1000] {
                let data: Vec<f32> = (0..count).map(|value| value as f32).collect();
                let expected: f32 = data.iter().sum();
                for streams in STREAMS {
                    assert_eq!(isa.run(Sum { data: &data, streams }), expected, "{isa}, {count} values, {streams}");
                }
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
        }
    }
}
