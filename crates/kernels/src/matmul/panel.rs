//! Some columns of a product (rows of `w`), widened and turned so that a vector holds neighbouring columns of one `k`.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::load::{Ahead, Load};
use super::weight::WeightView;
use crate::simd::{MAX_LANES, Simd};

/// Columns of one panel.
pub(super) const COLUMNS: usize = 64;

/// Elements of `k` in one panel: with the widest vectors a strip takes 32 KiB, so that it stays in the first-level cache while all
/// rows of `x` are multiplied with it.
pub(super) const DEPTH: usize = 256;

/// Vectors side by side in a strip.
pub(super) const STRIP: usize = 2;

/// `[strip][k][STRIP * LANES]`: columns of a panel lie in strips of two vectors.
#[repr(align(64))]
pub(super) struct Panel(MaybeUninit<[f32; COLUMNS * DEPTH]>);

impl Panel {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Strip `index`, of which `fill` has written the first `k` rows.
    #[inline(always)]
    pub(super) fn strip<S: Simd>(&self, index: usize) -> *const f32 {
        self.0.as_ptr().cast::<f32>().wrapping_add(index * DEPTH * STRIP * S::LANES)
    }

    /// How many strips `columns` take.
    #[inline(always)]
    pub(super) fn strips<S: Simd>(columns: usize) -> usize {
        columns.div_ceil(STRIP * S::LANES)
    }

    /// Takes `k` (at most DEPTH) of `columns` (at most COLUMNS) of `w`. Whole strips are written: those that stick out repeat the
    /// last column. The weights that lie behind these in memory are fetched on the way.
    ///
    /// # Safety
    /// Columns and `k` lie within `w`, which stores `E`; the CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn fill<S: Simd, E: Load>(&mut self, w: &WeightView<'_>, columns: Range<usize>, k: Range<usize>) {
        let (stride, start) = (w.stride * E::SIZE, k.start * E::SIZE);
        let base = w.bytes.as_ptr().wrapping_add(start);
        let next = base.wrapping_add(columns.end * stride);
        let mut ahead = Ahead::new(next, k.len() * E::SIZE, stride);
        let lanes = Self::strips::<S>(columns.len()) * STRIP;
        for vector in 0..lanes {
            let column = |lane: usize| (columns.start + vector * S::LANES + lane).min(columns.end - 1);
            let rows: [*const u8; MAX_LANES] = std::array::from_fn(|lane| base.wrapping_add(column(lane) * stride));
            let to = self.strip::<S>(vector / STRIP).cast_mut().wrapping_add(vector % STRIP * S::LANES);
            // SAFETY: the rows exist and are read for `k`; a strip has room for DEPTH rows of STRIP vectors.
            unsafe {
                let whole = E::transpose::<S>(&rows, k.len(), to, STRIP * S::LANES, &mut ahead);
                transpose_rest::<S, E>(&rows, whole..k.len(), to);
            }
        }
    }
}

/// The last elements, which fill no vector.
///
/// # Safety
/// As [`Load::transpose`], for the elements `rest`.
#[inline(always)]
unsafe fn transpose_rest<S: Simd, E: Load>(rows: &[*const u8; MAX_LANES], rest: Range<usize>, to: *mut f32) {
    let mut i = rest.start;
    while i < rest.end {
        let count = (rest.end - i).min(S::LANES);
        // SAFETY: `count` elements from `i` on exist, and as many rows of the strip.
        unsafe {
            let mut v = [S::splat(0.0); MAX_LANES];
            for (v, row) in v.iter_mut().zip(rows).take(S::LANES) {
                let from = row.add(i * E::SIZE);
                *v = if count == S::LANES { E::load::<S>(from) } else { E::load_head::<S>(from, count) };
            }
            S::transpose(&mut v);
            for (j, v) in v.iter().enumerate().take(count) {
                S::store(to.add((i + j) * STRIP * S::LANES), *v);
            }
        }
        i += count;
    }
}
