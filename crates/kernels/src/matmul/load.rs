//! Element types as vectors are loaded from them.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use crate::simd::Simd;

/// Vectors that a product takes from a row of weights at a time.
pub(super) const HALVES: usize = 2;

/// An element type as vectors are loaded from it.
pub(crate) trait Load {
    const SIZE: usize;

    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(from: *const u8) -> S::V;

    /// # Safety
    /// As [`Simd::load_head`].
    unsafe fn load_head<S: Simd>(from: *const u8, count: usize) -> S::V;

    /// One half of `HALVES * LANES` elements: the first and the last ones, or if [`super::Element::interleaved`] those at even and at odd places.
    ///
    /// # Safety
    /// The elements are readable; the CPU has `S`.
    #[inline(always)]
    unsafe fn half<S: Simd>(from: *const u8, half: usize) -> S::V {
        // SAFETY: passed on.
        unsafe { Self::load::<S>(from.add(half * S::LANES * Self::SIZE)) }
    }

    /// One half of `count < HALVES * LANES` elements; the others are 0.
    ///
    /// # Safety
    /// The elements are readable; the CPU has `S`.
    #[inline(always)]
    unsafe fn half_head<S: Simd>(from: *const u8, half: usize, count: usize) -> S::V {
        let count = count.saturating_sub(half * S::LANES);
        // SAFETY: passed on; a vector is read where it is whole, and nothing where it is empty.
        unsafe {
            if count >= S::LANES {
                return Self::half::<S>(from, half);
            }
            Self::load_head::<S>(from.wrapping_add(half * S::LANES * Self::SIZE), count)
        }
    }
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

// SAFETY (all functions): passed on to the caller.
impl Load for F32 {
    const SIZE: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        unsafe { S::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_head<S: Simd>(from: *const u8, count: usize) -> S::V {
        unsafe { S::load_head(from.cast(), count) }
    }
}

// SAFETY (all functions): passed on to the caller.
impl Load for F16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        unsafe { S::load_f16(from) }
    }
    #[inline(always)]
    unsafe fn load_head<S: Simd>(from: *const u8, count: usize) -> S::V {
        unsafe { S::load_f16_head(from, count) }
    }
}

// SAFETY (all functions): passed on to the caller.
impl Load for Bf16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        unsafe { S::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn load_head<S: Simd>(from: *const u8, count: usize) -> S::V {
        unsafe { S::load_bf16_head(from, count) }
    }
    /// Pairs are loaded as they are and taken apart: no shuffle.
    #[inline(always)]
    unsafe fn half<S: Simd>(from: *const u8, half: usize) -> S::V {
        unsafe { take::<S>(S::load(from.cast()), half) }
    }
    #[inline(always)]
    unsafe fn half_head<S: Simd>(from: *const u8, half: usize, count: usize) -> S::V {
        unsafe { take::<S>(S::load_pairs_head(from, count), half) }
    }
}

/// # Safety
/// The CPU has `S`.
#[inline(always)]
unsafe fn take<S: Simd>(pairs: S::V, half: usize) -> S::V {
    // SAFETY: arithmetic only.
    unsafe { if half == 0 { S::low_bf16(pairs) } else { S::high_bf16(pairs) } }
}

/// # Safety
/// `from` has as many readable elements as `out`; the CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn widen<S: Simd, E: Load>(from: *const u8, out: &mut [f32]) {
    let count = out.len();
    let mut i = 0;
    // SAFETY: whole vectors while they fit, then a head.
    unsafe {
        while i + S::LANES <= count {
            S::store(out.as_mut_ptr().add(i), E::load::<S>(from.add(i * E::SIZE)));
            i += S::LANES;
        }
        if i < count {
            S::store_head(out.as_mut_ptr().add(i), E::load_head::<S>(from.add(i * E::SIZE), count - i), count - i);
        }
    }
}
