//! Some columns of a product (rows of `w`), turned so that a vector holds neighbouring columns of one `k`.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::load::Load;
use super::rows::{Ahead, Rows, Visit};
use super::weight::WeightView;
use crate::simd::{MAX_LANES, Simd};

/// Vectors side by side in a strip: all of them and some rows' sums fit into registers.
pub(super) const WIDTH: usize = 2;

/// Strips of a panel: `x` is read once for all of them.
pub(super) const STRIPS: usize = 2;

/// Most columns of a panel.
pub(super) const COLUMNS_MAX: usize = STRIPS * WIDTH * MAX_LANES;

/// Elements of `k` in one panel: a strip takes at most 16 KiB, so that it stays in the first-level cache from filling to the last row.
pub(super) const DEPTH: usize = 128;

/// `[strip][k][WIDTH * LANES]`, DEPTH rows to a strip.
#[repr(align(64))]
pub(super) struct Panel(MaybeUninit<[f32; COLUMNS_MAX * DEPTH]>);

impl Panel {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Strip `index`.
    #[inline(always)]
    pub(super) fn strip<S: Simd>(&self, index: usize) -> *const f32 {
        self.0.as_ptr().cast::<f32>().wrapping_add(index * DEPTH * WIDTH * S::LANES)
    }

    /// How many strips `columns` take.
    #[inline(always)]
    pub(super) fn strips<S: Simd>(columns: usize) -> usize {
        columns.div_ceil(WIDTH * S::LANES)
    }

    /// Takes `k` (at most DEPTH) of `columns` (at most COLUMNS_MAX, in STRIPS strips) of `w`; vectors that stick out of the last strip
    /// repeat the last column.
    ///
    /// # Safety
    /// Columns and `k` lie within `w`, which stores `E`; the CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn fill<S: Simd, E: Load>(
        &mut self,
        w: &WeightView<'_>,
        columns: &Range<usize>,
        k: &Range<usize>,
    ) {
        let mut ahead = Ahead::new::<E>(w, columns.end, k);
        for vector in 0..Self::strips::<S>(columns.len()) * WIDTH {
            let to = self.strip::<S>(vector / WIDTH).cast_mut().wrapping_add(vector % WIDTH * S::LANES);
            let mut store = Store { to };
            // SAFETY: the rows exist; a strip has room for DEPTH rows of WIDTH vectors.
            unsafe { Rows::new::<S, E>(w, columns, vector, k).visit::<S, E, _>(&mut store, &mut ahead) };
        }
    }
}

/// Writes column vectors into a strip, the first at `to`.
struct Store {
    to: *mut f32,
}

impl<S: Simd> Visit<S> for Store {
    #[inline(always)]
    unsafe fn column(&mut self, k: usize, column: S::V) {
        // SAFETY: row `k` of the strip exists and holds WIDTH vectors.
        unsafe { S::store(self.to.add(k * WIDTH * S::LANES), column) };
    }
}
