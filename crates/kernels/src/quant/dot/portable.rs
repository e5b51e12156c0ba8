//! The plain twin of the integer kernels.

use half::bf16;

use super::super::{HALF_OFFSET, LANES, OFFSET};
use super::Dot;

#[derive(Clone, Copy)]
pub(crate) struct Portable;

// SAFETY (all functions): see `Dot`; needs no special instructions, and reads and writes exactly what is named.
impl Dot for Portable {
    type Bytes = [u8; 4 * LANES];
    type Ints = [i32; LANES];
    type HalfSums = Self::Ints;
    type Factors = [i8; LANES];
    type Floats = [f32; LANES];
    const TILE_ROWS: usize = 2;
    const CHAINS: usize = 4;
    const APART: usize = 32;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Bytes {
        unsafe { from.cast::<Self::Bytes>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [Self::Bytes; 2] {
        let both = unsafe { Self::bytes(from) };
        [both.map(|byte| byte & 15), both.map(|byte| byte >> 4)]
    }
    type Steps = [i8; LANES];
    #[inline(always)]
    unsafe fn steps(from: *const i8) -> Self::Steps {
        unsafe { from.cast::<Self::Steps>().read() }
    }
    #[inline(always)]
    unsafe fn multiples(mut halves: Self::Bytes, steps: Self::Steps) -> Self::Bytes {
        for (halves, step) in halves.chunks_exact_mut(4).zip(steps) {
            for half in halves {
                *half = ((i32::from(*half) - HALF_OFFSET) * i32::from(step) + OFFSET) as u8;
            }
        }
        halves
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, v: Self::Bytes) {
        unsafe { to.cast::<Self::Bytes>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn start(correction: i32) -> Self::Ints {
        [correction; LANES]
    }
    #[inline(always)]
    unsafe fn ints_plus(from: *const i32, plus: i32) -> Self::Ints {
        unsafe { from.cast::<Self::Ints>().read_unaligned() }.map(|value| value + plus)
    }
    #[inline(always)]
    unsafe fn dot(mut sum: Self::Ints, w: Self::Bytes, x: *const i8) -> Self::Ints {
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
        for (sum, w) in sum.iter_mut().zip(w.chunks_exact(4)) {
            *sum += w.iter().zip(x).map(|(w, x)| i32::from(*w) * i32::from(x)).sum::<i32>();
        }
        sum
    }
    #[inline(always)]
    unsafe fn zero() -> Self::Floats {
        [0.0; LANES]
    }
    #[inline(always)]
    unsafe fn floats(from: *const f32) -> Self::Floats {
        unsafe { from.cast::<Self::Floats>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn scales(from: *const u8) -> Self::Floats {
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|bits| bf16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn half_start(correction: i32) -> Self::HalfSums {
        [correction; LANES]
    }
    #[inline(always)]
    unsafe fn dot_halves(sum: Self::HalfSums, w: Self::Bytes, x: *const i8) -> Self::HalfSums {
        unsafe { Self::dot(sum, w, x) }
    }
    #[inline(always)]
    unsafe fn factors(from: *const i8) -> Self::Factors {
        unsafe { Self::steps(from) }
    }
    #[inline(always)]
    unsafe fn converted(ints: Self::Ints) -> Self::Floats {
        ints.map(|int| int as f32)
    }
    #[inline(always)]
    unsafe fn add_multiple(mut whole: Self::Floats, sum: Self::HalfSums, factors: Self::Factors) -> Self::Floats {
        for (whole, (sum, factor)) in whole.iter_mut().zip(sum.into_iter().zip(factors)) {
            *whole += (sum * i32::from(factor)) as f32;
        }
        whole
    }
    #[inline(always)]
    unsafe fn add_scaled(mut sum: Self::Floats, whole: Self::Floats, w: Self::Floats, x: f32) -> Self::Floats {
        for (sum, (whole, w)) in sum.iter_mut().zip(whole.into_iter().zip(w)) {
            *sum += whole * w * x;
        }
        sum
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::Floats) {
        unsafe { to.cast::<Self::Floats>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_write(_: *const u8) {}
}
