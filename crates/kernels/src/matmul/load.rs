//! Element types as vectors are loaded from them.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use crate::simd::{MAX_LANES, Simd};

/// An element type as vectors are loaded from it.
pub(crate) trait Load {
    const SIZE: usize;

    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(from: *const u8) -> S::V;

    /// # Safety
    /// As [`Simd::load_head`].
    unsafe fn load_head<S: Simd>(from: *const u8, count: usize) -> S::V;

    /// `to[i * stride + row] = rows[row][i]` for the first `LANES` rows and the first elements that make whole vectors, one element
    /// per lane or, for [`Bf16`], two; returns how many elements that is. `ahead` is moved by as many bytes as are read.
    ///
    /// # Safety
    /// Every row has `count` readable elements, `to` room for `LANES` floats for each; the CPU has `S`.
    #[inline(always)]
    unsafe fn transpose<S: Simd>(
        rows: &[*const u8; MAX_LANES],
        count: usize,
        to: *mut f32,
        stride: usize,
        ahead: &mut Ahead,
    ) -> usize {
        let mut i = 0;
        // SAFETY: whole vectors within `count`.
        unsafe {
            while i + S::LANES <= count {
                let mut v = [S::splat(0.0); MAX_LANES];
                for (v, row) in v.iter_mut().zip(rows).take(S::LANES) {
                    *v = Self::load::<S>(row.add(i * Self::SIZE));
                    ahead.prefetch::<S>(S::LANES * Self::SIZE);
                }
                S::transpose(&mut v);
                for (j, v) in v.iter().enumerate().take(S::LANES) {
                    S::store(to.add((i + j) * stride), *v);
                }
                i += S::LANES;
            }
        }
        i
    }
}

/// Walks through the memory that is read after the current rows, so that it is on its way early.
pub(crate) struct Ahead {
    at: *const u8,
    /// Where the current row of the memory ahead ends.
    row_end: *const u8,
    row_bytes: usize,
    /// From the end of a row to the start of the next.
    gap: usize,
}

impl Ahead {
    /// Rows of `row_bytes`, `stride` bytes apart, the first at `start`. The memory need not exist.
    #[inline(always)]
    pub(crate) fn new(start: *const u8, row_bytes: usize, stride: usize) -> Self {
        Self { at: start, row_end: start.wrapping_add(row_bytes), row_bytes, gap: stride - row_bytes }
    }

    /// Asks for the next `bytes`, at most one line of memory.
    ///
    /// # Safety
    /// The CPU has `S`.
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&mut self, bytes: usize) {
        // SAFETY: passed on.
        unsafe { S::prefetch(self.at) };
        self.at = self.at.wrapping_add(bytes);
        if self.at >= self.row_end {
            self.at = self.at.wrapping_add(self.gap);
            self.row_end = self.row_end.wrapping_add(self.row_bytes + self.gap);
        }
    }
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

macro_rules! load {
    ($name:ident, $size:literal, $load:ident, $head:ident $(, $transpose:item)?) => {
        // SAFETY: passed on to the caller.
        impl Load for $name {
            const SIZE: usize = $size;
            #[inline(always)]
            unsafe fn load<S: Simd>(from: *const u8) -> S::V {
                unsafe { S::$load(from.cast()) }
            }
            #[inline(always)]
            unsafe fn load_head<S: Simd>(from: *const u8, count: usize) -> S::V {
                unsafe { S::$head(from.cast(), count) }
            }
            $($transpose)?
        }
    };
}
load!(F32, 4, load, load_head);
load!(F16, 2, load_f16, load_f16_head);
load!(
    Bf16,
    2,
    load_bf16,
    load_bf16_head,
    /// Pairs of elements are moved as one lane: half the shuffles.
    #[inline(always)]
    unsafe fn transpose<S: Simd>(
        rows: &[*const u8; MAX_LANES],
        count: usize,
        to: *mut f32,
        stride: usize,
        ahead: &mut Ahead,
    ) -> usize {
        let mut i = 0;
        // SAFETY: twice LANES elements of two bytes are a vector, within `count`.
        unsafe {
            while i + 2 * S::LANES <= count {
                let mut v = [S::splat(0.0); MAX_LANES];
                for (v, row) in v.iter_mut().zip(rows).take(S::LANES) {
                    *v = S::load(row.add(i * 2).cast());
                    ahead.prefetch::<S>(S::LANES * 4);
                }
                S::transpose(&mut v);
                for (j, v) in v.iter().enumerate().take(S::LANES) {
                    S::store(to.add((i + 2 * j) * stride), S::low_bf16(*v));
                    S::store(to.add((i + 2 * j + 1) * stride), S::high_bf16(*v));
                }
                i += 2 * S::LANES;
            }
        }
        i
    }
);

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
