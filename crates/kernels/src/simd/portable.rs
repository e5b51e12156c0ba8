//! The plain twin of every vector kernel: arrays of eight, which any compiler can make something of.

use half::{bf16, f16};

use super::{MAX_LANES, Simd};

const LANES: usize = 8;

#[derive(Clone, Copy)]
pub(crate) struct Portable;

// SAFETY (all functions): see `Simd`; needs no special instructions, and reads and writes exactly the lanes named.
impl Simd for Portable {
    type V = [f32; LANES];
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller grants LANES readable floats.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_head(from: *const f32, count: usize) -> Self::V {
        // SAFETY: the caller grants `count` readable floats.
        std::array::from_fn(|i| if i < count { unsafe { from.add(i).read_unaligned() } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self::V {
        // SAFETY: the caller grants LANES readable elements.
        unsafe { Self::load_bf16_head(from, LANES) }
    }
    #[inline(always)]
    unsafe fn load_bf16_head(from: *const u8, count: usize) -> Self::V {
        let from = from.cast::<u16>();
        // SAFETY: the caller grants `count` readable elements.
        std::array::from_fn(|i| {
            if i < count { bf16::from_bits(unsafe { from.add(i).read_unaligned() }).to_f32() } else { 0.0 }
        })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::V {
        // SAFETY: the caller grants LANES readable elements.
        unsafe { Self::load_f16_head(from, LANES) }
    }
    #[inline(always)]
    unsafe fn load_f16_head(from: *const u8, count: usize) -> Self::V {
        let from = from.cast::<u16>();
        // SAFETY: the caller grants `count` readable elements.
        std::array::from_fn(|i| {
            if i < count { f16::from_bits(unsafe { from.add(i).read_unaligned() }).to_f32() } else { 0.0 }
        })
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller grants LANES writable floats.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_head(to: *mut f32, v: Self::V, count: usize) {
        // SAFETY: the caller grants `count` writable floats, fewer than LANES.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), to, count) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Two roundings: without the instruction, a fused one is a slow library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn round(v: Self::V) -> Self::V {
        v.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn exp2_int(v: Self::V) -> Self::V {
        v.map(|v| f32::from_bits(((v as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let four: [f32; 4] = std::array::from_fn(|i| v[i] + v[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    unsafe fn max_lane(v: Self::V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
    #[inline(always)]
    unsafe fn transpose(v: &mut [Self::V; MAX_LANES]) {
        let from = *v;
        for (j, v) in v.iter_mut().enumerate().take(LANES) {
            *v = std::array::from_fn(|i| from[i][j]);
        }
    }
    #[inline(always)]
    unsafe fn sums(v: &[Self::V; MAX_LANES]) -> Self::V {
        // SAFETY: arithmetic only.
        std::array::from_fn(|i| unsafe { Self::sum(v[i]) })
    }
    #[inline(always)]
    unsafe fn load_pairs_head(from: *const u8, count: usize) -> Self::V {
        let from = from.cast::<u16>();
        // SAFETY: the caller grants `count` readable values.
        let value = |i| if i < count { u32::from(unsafe { from.add(i).read_unaligned() }) } else { 0 };
        std::array::from_fn(|i| f32::from_bits(value(2 * i + 1) << 16 | value(2 * i)))
    }
    #[inline(always)]
    unsafe fn low_bf16(pairs: Self::V) -> Self::V {
        pairs.map(|pair| f32::from_bits(pair.to_bits() << 16))
    }
    #[inline(always)]
    unsafe fn high_bf16(pairs: Self::V) -> Self::V {
        pairs.map(|pair| f32::from_bits(pair.to_bits() & 0xFFFF_0000))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
