//! AVX2 with FMA and F16C: eight lanes.

use std::arch::x86_64::*;

use super::{Kernel, MAX_LANES, Simd};
use crate::checksum::{AHEAD, STRIPE, To};

const LANES: usize = 8;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn new() -> Option<Self> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

/// # Safety
/// The CPU has the instructions (an [`Avx2`] exists), and see [`Kernel::run`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: passed on to the caller.
    unsafe { kernel.run::<Avx2>() }
}

/// `count < 8` elements of two bytes, zero-extended to eight.
///
/// # Safety
/// `count` elements are readable.
#[inline(always)]
unsafe fn load_halves(from: *const u8, count: usize) -> __m128i {
    let mut bytes = [0u8; 16];
    // SAFETY: `count <= 8`, so at most 16 bytes are copied, which the caller grants.
    unsafe {
        std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), 2 * count);
        _mm_loadu_si128(bytes.as_ptr().cast())
    }
}

/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn widen_bf16(halves: __m128i) -> __m256 {
    // SAFETY: arithmetic only.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))) }
}

/// Lane `i` plus lane `i + 4`.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn fold(v: __m256) -> __m128 {
    // SAFETY: arithmetic only.
    unsafe { _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v)) }
}

/// Transposes each 4 by 4 block of 128-bit lanes: result `j` has elements `j` and `j + 4` of the four vectors.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn transpose4([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    // SAFETY: arithmetic only.
    unsafe {
        let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
        let (ab2, cd2) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0x44>(ab, cd),
            _mm256_shuffle_ps::<0xEE>(ab, cd),
            _mm256_shuffle_ps::<0x44>(ab2, cd2),
            _mm256_shuffle_ps::<0xEE>(ab2, cd2),
        ]
    }
}

// SAFETY (all functions): see `Simd`; the instructions are there because `run` above is the only way in.
impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_head(from: *const f32, count: usize) -> Self::V {
        let mut lanes = [0.0f32; LANES];
        unsafe {
            std::ptr::copy_nonoverlapping(from.cast::<u8>(), lanes.as_mut_ptr().cast(), 4 * count);
            _mm256_loadu_ps(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self::V {
        unsafe { widen_bf16(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_head(from: *const u8, count: usize) -> Self::V {
        unsafe { widen_bf16(load_halves(from, count)) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::V {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16_head(from: *const u8, count: usize) -> Self::V {
        unsafe { _mm256_cvtph_ps(load_halves(from, count)) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn store_head(to: *mut f32, v: Self::V, count: usize) {
        let mut lanes = [0.0f32; LANES];
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn round(v: Self::V) -> Self::V {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    unsafe fn exp2_int(v: Self::V) -> Self::V {
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        unsafe {
            let four = fold(v);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn max_lane(v: Self::V) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn transpose(v: &mut [Self::V; MAX_LANES]) {
        unsafe {
            let low = transpose4([v[0], v[1], v[2], v[3]]);
            let high = transpose4([v[4], v[5], v[6], v[7]]);
            for j in 0..4 {
                v[j] = _mm256_permute2f128_ps::<0x20>(low[j], high[j]);
                v[j + 4] = _mm256_permute2f128_ps::<0x31>(low[j], high[j]);
            }
        }
    }
    /// Halves, then what is left of pairs of vectors, until a lane is a sum.
    #[inline(always)]
    unsafe fn sums(v: &[Self::V; MAX_LANES]) -> Self::V {
        unsafe {
            let mut four = [_mm256_setzero_ps(); 4];
            for (i, four) in four.iter_mut().enumerate() {
                let (low, high) = (v[i], v[i + 4]);
                *four =
                    _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high));
            }
            let [a, b, c, d] = four;
            let ab = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xEE>(a, b));
            let cd = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(c, d), _mm256_shuffle_ps::<0xEE>(c, d));
            _mm256_add_ps(_mm256_shuffle_ps::<0x88>(ab, cd), _mm256_shuffle_ps::<0xDD>(ab, cd))
        }
    }
    #[inline(always)]
    unsafe fn load_pairs_head(from: *const u8, count: usize) -> Self::V {
        let mut bytes = [0u8; 4 * LANES];
        unsafe {
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), 2 * count);
            _mm256_loadu_ps(bytes.as_ptr().cast())
        }
    }
    #[inline(always)]
    unsafe fn low_bf16(pairs: Self::V) -> Self::V {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(pairs))) }
    }
    #[inline(always)]
    unsafe fn high_bf16(pairs: Self::V) -> Self::V {
        unsafe { _mm256_and_ps(pairs, _mm256_castsi256_ps(_mm256_set1_epi32(-0x1_0000))) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn eat_stripes(lanes: &mut [u64; 8], secret: *const u8, from: *const u8, to: To, count: usize) {
        unsafe {
            let halves = lanes.as_ptr().cast::<__m256i>();
            let mut sums = [_mm256_loadu_si256(halves), _mm256_loadu_si256(halves.add(1))];
            for at in 0..count {
                Self::prefetch(from.wrapping_add(at * STRIPE + AHEAD));
                for (half, sums) in sums.iter_mut().enumerate() {
                    let values = _mm256_loadu_si256(from.add(at * STRIPE + 32 * half).cast());
                    match to {
                        To::Nowhere => {}
                        To::Near(to) => _mm256_storeu_si256(to.add(at * STRIPE + 32 * half).cast(), values),
                        To::Far(to) => _mm256_stream_si256(to.add(at * STRIPE + 32 * half).cast(), values),
                    }
                    let keyed = _mm256_xor_si256(values, _mm256_loadu_si256(secret.add(8 * at + 32 * half).cast()));
                    let product = _mm256_mul_epu32(keyed, _mm256_srli_epi64::<32>(keyed));
                    let swapped = _mm256_shuffle_epi32::<0x4E>(values);
                    *sums = _mm256_add_epi64(*sums, _mm256_add_epi64(product, swapped));
                }
            }
            for (half, sums) in sums.into_iter().enumerate() {
                _mm256_storeu_si256(lanes.as_mut_ptr().add(4 * half).cast(), sums);
            }
        }
    }

    #[inline(always)]
    unsafe fn settle_far() {
        // SAFETY: of every x86-64.
        unsafe { _mm_sfence() }
    }
}
