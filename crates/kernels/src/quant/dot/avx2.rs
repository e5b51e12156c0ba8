//! AVX2: its product of unsigned and signed bytes adds neighbours in 16 bits, where bytes would saturate, so they are widened first. Half
//! bytes stay so small that a quarter of a group is summed in 16 bits.

use std::arch::x86_64::*;

use super::super::{HALF_OFFSET, OFFSET};
use super::{Dot, DotKernel};
use crate::tiles::NoTiles;

#[derive(Clone, Copy)]
struct Avx2;

/// # Safety
/// The CPU has AVX2; and see [`DotKernel::run`].
#[target_feature(enable = "avx2")]
pub(super) unsafe fn run<K: DotKernel>(kernel: K) -> K::Output {
    // SAFETY: passed on to the caller.
    unsafe { kernel.run::<Avx2, NoTiles>() }
}

/// Eight columns: `sum + w . x`.
///
/// # Safety
/// The CPU has AVX2; `x` holds the same four values in every lane.
#[inline(always)]
unsafe fn dot8(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: arithmetic only.
    unsafe {
        let even_x = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
        let even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)), even_x);
        let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), _mm256_srai_epi16::<8>(x));
        _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
    }
}

/// The first eight of sixteen signed bytes, each twice with 16 bits.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn factors8(bytes: __m128i) -> __m256i {
    // SAFETY: arithmetic only.
    unsafe {
        let wide = _mm256_cvtepi8_epi32(bytes);
        _mm256_blend_epi16::<0xAA>(wide, _mm256_slli_epi32::<16>(wide))
    }
}

/// Eight columns of [`Dot::add_multiple`].
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn add_multiple8(whole: __m256, sum: __m256i, factors: __m256i) -> __m256 {
    // SAFETY: arithmetic only.
    unsafe { _mm256_add_ps(whole, _mm256_cvtepi32_ps(_mm256_madd_epi16(sum, factors))) }
}

/// Of sixteen steps: their magnitudes; 255 where they are negative, else 0; and what is added to multiples of them.
///
/// # Safety
/// Sixteen bytes are readable.
#[inline(always)]
pub(super) unsafe fn steps16(from: *const i8) -> [__m128i; 3] {
    // SAFETY: passed on; SSE2 is part of every x86-64.
    unsafe {
        let steps = _mm_loadu_si128(from.cast());
        let negative = _mm_cmplt_epi8(steps, _mm_setzero_si128());
        // `!a` is `-a - 1`.
        let magnitudes = _mm_sub_epi8(_mm_xor_si128(steps, negative), negative);
        let of_zero = _mm_xor_si128(_mm_slli_epi16::<ZERO_BITS>(magnitudes), negative);
        [magnitudes, negative, _mm_sub_epi8(_mm_set1_epi8(OFFSET as i8), of_zero)]
    }
}

/// `1 << ZERO_BITS` is what a half byte is larger than it means.
const ZERO_BITS: i32 = HALF_OFFSET.ilog2() as i32;

/// Which bytes of four columns of 32 bits go where: a magnitude into the lower half of each 16 bits, above it 0; anything else into all
/// bytes.
#[inline(always)]
pub(super) fn spread() -> [__m128i; 2] {
    const WORDS: [u32; 4] = [0x8000_8000, 0x8004_8004, 0x8008_8008, 0x800C_800C];
    const BYTES: [u32; 4] = [0, 0x0404_0404, 0x0808_0808, 0x0C0C_0C0C];
    // SAFETY: sixteen bytes each; SSE2 is part of every x86-64.
    unsafe { [_mm_loadu_si128(WORDS.as_ptr().cast()), _mm_loadu_si128(BYTES.as_ptr().cast())] }
}

/// The first eight of sixteen steps, for eight columns.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn steps8([magnitudes, negative, plus]: [__m128i; 3]) -> [__m256i; 3] {
    // SAFETY: arithmetic only.
    unsafe {
        let [to_words, to_bytes] = spread();
        let (to_words, to_bytes) = (_mm256_broadcastsi128_si256(to_words), _mm256_broadcastsi128_si256(to_bytes));
        [
            _mm256_shuffle_epi8(_mm256_cvtepu8_epi32(magnitudes), to_words),
            _mm256_shuffle_epi8(_mm256_cvtepu8_epi32(negative), to_bytes),
            _mm256_shuffle_epi8(_mm256_cvtepu8_epi32(plus), to_bytes),
        ]
    }
}

/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn multiples8(halves: __m256i, [magnitudes, negative, plus]: [__m256i; 3]) -> __m256i {
    // SAFETY: arithmetic only. A multiple is below 256, so none reaches the next byte.
    unsafe { _mm256_add_epi8(_mm256_xor_si256(_mm256_mullo_epi16(halves, magnitudes), negative), plus) }
}

/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn add_scaled8(sum: __m256, whole: __m256, w: __m256, x: f32) -> __m256 {
    // SAFETY: arithmetic only.
    unsafe { _mm256_add_ps(sum, _mm256_mul_ps(_mm256_mul_ps(whole, w), _mm256_set1_ps(x))) }
}

/// # Safety
/// The CPU has AVX2; eight bf16 values are readable.
#[inline(always)]
unsafe fn scales8(from: *const u8) -> __m256 {
    // SAFETY: sixteen bytes.
    unsafe {
        let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
    }
}

// SAFETY (all functions): see `Dot`; the instructions are there because `run` above is the only way in.
impl Dot for Avx2 {
    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    /// Two of 16 bits for each column: each wraps around, and what comes out at the end fits.
    type HalfSums = [__m256i; 2];
    type Factors = [__m256i; 2];
    type Floats = [__m256; 2];
    const TILE_ROWS: usize = 4;
    const CHAINS: usize = 4;
    /// Products of half bytes are the faster ones.
    const APART: usize = usize::MAX;

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Bytes {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [Self::Bytes; 2] {
        unsafe {
            let ([a, b], mask) = (Self::bytes(from), _mm256_set1_epi8(15));
            let high = |v| _mm256_and_si256(_mm256_srli_epi16::<4>(v), mask);
            [[_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)], [high(a), high(b)]]
        }
    }
    type Steps = [[__m256i; 3]; 2];
    #[inline(always)]
    unsafe fn steps(from: *const i8) -> Self::Steps {
        unsafe {
            let [a, b, c] = steps16(from);
            [steps8([a, b, c]), steps8([_mm_srli_si128::<8>(a), _mm_srli_si128::<8>(b), _mm_srli_si128::<8>(c)])]
        }
    }
    #[inline(always)]
    unsafe fn multiples(halves: Self::Bytes, steps: Self::Steps) -> Self::Bytes {
        unsafe { [multiples8(halves[0], steps[0]), multiples8(halves[1], steps[1])] }
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, v: Self::Bytes) {
        unsafe {
            _mm256_storeu_si256(to.cast(), v[0]);
            _mm256_storeu_si256(to.add(32).cast(), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn start(correction: i32) -> Self::Ints {
        unsafe { [_mm256_set1_epi32(correction); 2] }
    }
    #[inline(always)]
    unsafe fn ints_plus(from: *const i32, plus: i32) -> Self::Ints {
        unsafe {
            let (plus, from) = (_mm256_set1_epi32(plus), from.cast::<__m256i>());
            let (low, high) = (_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1)));
            [_mm256_add_epi32(low, plus), _mm256_add_epi32(high, plus)]
        }
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::Ints, w: Self::Bytes, x: *const i8) -> Self::Ints {
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            [dot8(sum[0], w[0], x), dot8(sum[1], w[1], x)]
        }
    }
    #[inline(always)]
    unsafe fn zero() -> Self::Floats {
        unsafe { [_mm256_setzero_ps(); 2] }
    }
    #[inline(always)]
    unsafe fn floats(from: *const f32) -> Self::Floats {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn scales(from: *const u8) -> Self::Floats {
        unsafe { [scales8(from), scales8(from.add(16))] }
    }
    #[inline(always)]
    unsafe fn half_start(correction: i32) -> Self::HalfSums {
        // All of it in the first of a column's two sums: with 32 inputs it is below 2^15.
        unsafe { [_mm256_set1_epi32(correction & 0xFFFF); 2] }
    }
    #[inline(always)]
    unsafe fn dot_halves(sum: Self::HalfSums, w: Self::Bytes, x: *const i8) -> Self::HalfSums {
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            [
                _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(w[0], x)),
                _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(w[1], x)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn factors(from: *const i8) -> Self::Factors {
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            [factors8(bytes), factors8(_mm_srli_si128::<8>(bytes))]
        }
    }
    #[inline(always)]
    unsafe fn converted(ints: Self::Ints) -> Self::Floats {
        unsafe { [_mm256_cvtepi32_ps(ints[0]), _mm256_cvtepi32_ps(ints[1])] }
    }
    #[inline(always)]
    unsafe fn add_multiple(whole: Self::Floats, sum: Self::HalfSums, factors: Self::Factors) -> Self::Floats {
        unsafe { [add_multiple8(whole[0], sum[0], factors[0]), add_multiple8(whole[1], sum[1], factors[1])] }
    }
    #[inline(always)]
    unsafe fn add_scaled(sum: Self::Floats, whole: Self::Floats, w: Self::Floats, x: f32) -> Self::Floats {
        unsafe { [add_scaled8(sum[0], whole[0], w[0], x), add_scaled8(sum[1], whole[1], w[1], x)] }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::Floats) {
        unsafe {
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(8), v[1]);
        }
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
