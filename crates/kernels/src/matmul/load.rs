//! Element types as vectors are loaded from them.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use super::rows::Ahead;
use crate::simd::{MAX_LANES, Simd};

/// An element type as vectors are loaded from it.
pub(crate) trait Load {
    const SIZE: usize;

    /// Elements that [`Load::columns`] moves as one lane.
    const PER_LANE: usize;

    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(from: *const u8) -> S::V;

    /// # Safety
    /// As [`Simd::load_head`].
    unsafe fn load_head<S: Simd>(from: *const u8, count: usize) -> S::V;

    /// `PER_LANE * LANES` elements of each of `LANES` rows, turned: lane `r` of vector `j` holds elements `PER_LANE * j ..` of row `r`,
    /// to be taken apart by [`Load::element`]. `ahead` moves by what is read.
    ///
    /// # Safety
    /// Every row has these elements from `at` on; the CPU has `S`.
    #[inline(always)]
    unsafe fn columns<S: Simd>(rows: &[*const u8; MAX_LANES], at: usize, ahead: &mut Ahead) -> [S::V; MAX_LANES] {
        // SAFETY: passed on; only the first LANES vectors are used.
        unsafe {
            let mut v = [S::splat(0.0); MAX_LANES];
            for (v, row) in v.iter_mut().zip(rows).take(S::LANES) {
                *v = Self::load::<S>(row.add(at * Self::SIZE));
                ahead.prefetch::<S>(S::LANES * Self::SIZE);
            }
            S::transpose(&mut v);
            v
        }
    }

    /// Element `index < PER_LANE` of each lane.
    ///
    /// # Safety
    /// The CPU has `S`.
    #[inline(always)]
    unsafe fn element<S: Simd>(lanes: S::V, _index: usize) -> S::V {
        lanes
    }
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

// SAFETY (all functions): passed on to the caller.
impl Load for F32 {
    const SIZE: usize = 4;
    const PER_LANE: usize = 1;

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
    const PER_LANE: usize = 1;

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
    const PER_LANE: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        unsafe { S::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn load_head<S: Simd>(from: *const u8, count: usize) -> S::V {
        unsafe { S::load_bf16_head(from, count) }
    }
    /// Pairs are moved as they are and widened after: half the shuffles.
    #[inline(always)]
    unsafe fn columns<S: Simd>(rows: &[*const u8; MAX_LANES], at: usize, ahead: &mut Ahead) -> [S::V; MAX_LANES] {
        unsafe { F32::columns::<S>(&rows.map(|row| row.wrapping_add(at * 2)), 0, ahead) }
    }
    #[inline(always)]
    unsafe fn element<S: Simd>(lanes: S::V, index: usize) -> S::V {
        unsafe { if index == 0 { S::low_bf16(lanes) } else { S::high_bf16(lanes) } }
    }
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
