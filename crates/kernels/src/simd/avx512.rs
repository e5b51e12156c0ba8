//! AVX-512 (F, BW, VL, DQ): sixteen lanes.

use std::arch::x86_64::*;

use super::{Kernel, MAX_LANES, Simd};
use crate::checksum::{AHEAD, STRIPE, To};

/// Proof that the CPU has AVX-512 F, BW, VL and DQ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("fma");
        has.then_some(Self(()))
    }
}

/// # Safety
/// The CPU has the instructions (an [`Avx512`] exists), and see [`Kernel::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: passed on to the caller.
    unsafe { kernel.run::<Avx512>() }
}

/// The mask of the first `count <= 16` lanes.
#[inline(always)]
fn head(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

/// # Safety
/// The CPU has AVX-512.
#[inline(always)]
unsafe fn widen_bf16(halves: __m256i) -> __m512 {
    // SAFETY: arithmetic only.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))) }
}

/// Transposes each 4 by 4 block of 128-bit lanes: result `j` has elements `j`, `j + 4`, `j + 8` and `j + 12` of the four vectors.
///
/// # Safety
/// The CPU has AVX-512.
#[inline(always)]
unsafe fn transpose4([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
    // SAFETY: arithmetic only.
    unsafe {
        let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
        let (ab2, cd2) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
        [
            _mm512_shuffle_ps::<0x44>(ab, cd),
            _mm512_shuffle_ps::<0xEE>(ab, cd),
            _mm512_shuffle_ps::<0x44>(ab2, cd2),
            _mm512_shuffle_ps::<0xEE>(ab2, cd2),
        ]
    }
}

/// Four lanes of each vector, the first one's first: lane `i` plus `i + 8`, plus the same of `i + 4`.
///
/// # Safety
/// The CPU has AVX-512.
#[inline(always)]
unsafe fn fold4([a, b, c, d]: [__m512; 4]) -> __m512 {
    // SAFETY: arithmetic only.
    unsafe {
        let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b));
        let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xEE>(c, d));
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xDD>(ab, cd))
    }
}

// SAFETY (all functions): see `Simd`; the instructions are there because `run` above is the only way in.
impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_head(from: *const f32, count: usize) -> Self::V {
        unsafe { _mm512_maskz_loadu_ps(head(count), from) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self::V {
        unsafe { widen_bf16(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_head(from: *const u8, count: usize) -> Self::V {
        unsafe { widen_bf16(_mm256_maskz_loadu_epi16(head(count), from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::V {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16_head(from: *const u8, count: usize) -> Self::V {
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(head(count), from.cast())) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn store_head(to: *mut f32, v: Self::V, count: usize) {
        unsafe { _mm512_mask_storeu_ps(to, head(count), v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn round(v: Self::V) -> Self::V {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    unsafe fn exp2_int(v: Self::V) -> Self::V {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn max_lane(v: Self::V) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }
    /// Four by four within 128-bit lanes, then the lanes themselves.
    #[inline(always)]
    unsafe fn transpose(v: &mut [Self::V; MAX_LANES]) {
        unsafe {
            let a = transpose4([v[0], v[1], v[2], v[3]]);
            let b = transpose4([v[4], v[5], v[6], v[7]]);
            let c = transpose4([v[8], v[9], v[10], v[11]]);
            let d = transpose4([v[12], v[13], v[14], v[15]]);
            for j in 0..4 {
                let even_ab = _mm512_shuffle_f32x4::<0x88>(a[j], b[j]);
                let odd_ab = _mm512_shuffle_f32x4::<0xDD>(a[j], b[j]);
                let even_cd = _mm512_shuffle_f32x4::<0x88>(c[j], d[j]);
                let odd_cd = _mm512_shuffle_f32x4::<0xDD>(c[j], d[j]);
                v[j] = _mm512_shuffle_f32x4::<0x88>(even_ab, even_cd);
                v[j + 4] = _mm512_shuffle_f32x4::<0x88>(odd_ab, odd_cd);
                v[j + 8] = _mm512_shuffle_f32x4::<0xDD>(even_ab, even_cd);
                v[j + 12] = _mm512_shuffle_f32x4::<0xDD>(odd_ab, odd_cd);
            }
        }
    }
    /// Halves, then what is left of pairs of vectors, until a lane is a sum.
    #[inline(always)]
    unsafe fn sums(v: &[Self::V; MAX_LANES]) -> Self::V {
        unsafe {
            let mut four = [_mm512_setzero_ps(); 4];
            for (i, four) in four.iter_mut().enumerate() {
                *four = fold4([v[i], v[i + 4], v[i + 8], v[i + 12]]);
            }
            let [a, b, c, d] = four;
            let ab = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xEE>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(c, d), _mm512_shuffle_ps::<0xEE>(c, d));
            _mm512_add_ps(_mm512_shuffle_ps::<0x88>(ab, cd), _mm512_shuffle_ps::<0xDD>(ab, cd))
        }
    }
    #[inline(always)]
    unsafe fn load_pairs_head(from: *const u8, count: usize) -> Self::V {
        unsafe { _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(((1u64 << count) - 1) as __mmask32, from.cast())) }
    }
    #[inline(always)]
    unsafe fn low_bf16(pairs: Self::V) -> Self::V {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(pairs))) }
    }
    #[inline(always)]
    unsafe fn high_bf16(pairs: Self::V) -> Self::V {
        unsafe { _mm512_and_ps(pairs, _mm512_castsi512_ps(_mm512_set1_epi32(-0x1_0000))) }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn eat_stripes(lanes: &mut [u64; 8], secret: *const u8, from: *const u8, to: To, count: usize) {
        unsafe {
            let mut sums = _mm512_loadu_si512(lanes.as_ptr().cast());
            for at in 0..count {
                let values = _mm512_loadu_si512(from.add(at * STRIPE).cast());
                Self::prefetch(from.wrapping_add(at * STRIPE + AHEAD));
                match to {
                    To::Nowhere => {}
                    To::Near(to) => _mm512_storeu_si512(to.add(at * STRIPE).cast(), values),
                    To::Far(to) => _mm512_stream_si512(to.add(at * STRIPE).cast(), values),
                }
                let keyed = _mm512_xor_si512(values, _mm512_loadu_si512(secret.add(8 * at).cast()));
                let product = _mm512_mul_epu32(keyed, _mm512_srli_epi64::<32>(keyed));
                let swapped = _mm512_shuffle_epi32::<0x4E>(values);
                sums = _mm512_add_epi64(sums, _mm512_add_epi64(product, swapped));
            }
            _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sums);
        }
    }

    #[inline(always)]
    unsafe fn settle_far() {
        // SAFETY: of every x86-64.
        unsafe { _mm_sfence() }
    }
}
