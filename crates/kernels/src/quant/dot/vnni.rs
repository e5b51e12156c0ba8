//! AVX-512 VNNI: 64 products of bytes, added by fours, in one instruction.

use std::arch::x86_64::*;

use super::avx2::{spread, steps16};
use super::{Dot, DotKernel};
use crate::tiles::Tiles;

#[derive(Clone, Copy)]
struct Vnni;

/// # Safety
/// The CPU has AVX-512 F, BW, VL, DQ and VNNI, and `T`; and see [`DotKernel::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
pub(super) unsafe fn run<K: DotKernel, T: Tiles>(kernel: K) -> K::Output {
    // SAFETY: passed on to the caller.
    unsafe { kernel.run::<Vnni, T>() }
}

// SAFETY (all functions): see `Dot`; the instructions are there because `run` above is the only way in.
impl Dot for Vnni {
    type Bytes = __m512i;
    type Ints = __m512i;
    type HalfSums = __m512i;
    type Factors = __m512;
    type Floats = __m512;
    const TILE_ROWS: usize = 8;
    const CHAINS: usize = 12;
    const APART: usize = 32;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Bytes {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [Self::Bytes; 2] {
        unsafe {
            let (both, mask) = (Self::bytes(from), _mm512_set1_epi8(15));
            [_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask)]
        }
    }
    type Steps = [__m512i; 3];
    #[inline(always)]
    unsafe fn steps(from: *const i8) -> Self::Steps {
        unsafe {
            let [magnitudes, negative, plus] = steps16(from);
            let [to_words, to_bytes] = spread();
            let (to_words, to_bytes) = (_mm512_broadcast_i32x4(to_words), _mm512_broadcast_i32x4(to_bytes));
            [
                _mm512_shuffle_epi8(_mm512_cvtepu8_epi32(magnitudes), to_words),
                _mm512_shuffle_epi8(_mm512_cvtepu8_epi32(negative), to_bytes),
                _mm512_shuffle_epi8(_mm512_cvtepu8_epi32(plus), to_bytes),
            ]
        }
    }
    #[inline(always)]
    unsafe fn multiples(halves: Self::Bytes, [magnitudes, negative, plus]: Self::Steps) -> Self::Bytes {
        // A multiple is below 256, so none reaches the next byte.
        unsafe { _mm512_add_epi8(_mm512_xor_si512(_mm512_mullo_epi16(halves, magnitudes), negative), plus) }
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, v: Self::Bytes) {
        unsafe { _mm512_storeu_si512(to.cast(), v) }
    }
    #[inline(always)]
    unsafe fn start(correction: i32) -> Self::Ints {
        unsafe { _mm512_set1_epi32(correction) }
    }
    #[inline(always)]
    unsafe fn ints_plus(from: *const i32, plus: i32) -> Self::Ints {
        unsafe { _mm512_add_epi32(_mm512_loadu_si512(from.cast()), _mm512_set1_epi32(plus)) }
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::Ints, w: Self::Bytes, x: *const i8) -> Self::Ints {
        unsafe { _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn zero() -> Self::Floats {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn floats(from: *const f32) -> Self::Floats {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn scales(from: *const u8) -> Self::Floats {
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn half_start(correction: i32) -> Self::HalfSums {
        unsafe { Self::start(correction) }
    }
    #[inline(always)]
    unsafe fn dot_halves(sum: Self::HalfSums, w: Self::Bytes, x: *const i8) -> Self::HalfSums {
        unsafe { Self::dot(sum, w, x) }
    }
    #[inline(always)]
    unsafe fn factors(from: *const i8) -> Self::Factors {
        unsafe { Self::converted(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn converted(ints: Self::Ints) -> Self::Floats {
        unsafe { _mm512_cvtepi32_ps(ints) }
    }
    #[inline(always)]
    unsafe fn add_multiple(whole: Self::Floats, sum: Self::HalfSums, factors: Self::Factors) -> Self::Floats {
        unsafe { _mm512_fmadd_ps(Self::converted(sum), factors, whole) }
    }
    #[inline(always)]
    unsafe fn add_scaled(sum: Self::Floats, whole: Self::Floats, w: Self::Floats, x: f32) -> Self::Floats {
        unsafe { _mm512_add_ps(sum, _mm512_mul_ps(_mm512_mul_ps(whole, w), _mm512_set1_ps(x))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::Floats) {
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_write(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) }
    }
}
