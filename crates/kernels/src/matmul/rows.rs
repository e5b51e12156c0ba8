//! A vector's worth of columns of a product (rows of `w`), turned in registers: one vector per `k`.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use std::ops::Range;

use super::load::Load;
use super::weight::WeightView;
use crate::simd::{MAX_LANES, Simd};

/// What is done with the turned columns.
pub(super) trait Visit<S: Simd> {
    /// Lane `r` of `column` is element `k` of row `r`. Called once for every `k`, in order.
    ///
    /// # Safety
    /// The CPU has `S`; else as the visitor's fields say.
    unsafe fn column(&mut self, k: usize, column: S::V);
}

/// `LANES` rows of `w`, a range of `k` of each.
pub(super) struct Rows {
    start: [*const u8; MAX_LANES],
    k: usize,
}

impl Rows {
    /// Rows `columns.start + vector * LANES ..`; those beyond the end repeat the last one.
    #[inline(always)]
    pub(super) fn new<S: Simd, E: Load>(
        w: &WeightView<'_>,
        columns: &Range<usize>,
        vector: usize,
        k: &Range<usize>,
    ) -> Self {
        let row = |lane: usize| (columns.start + vector * S::LANES + lane).min(columns.end - 1);
        let at = |row: usize| w.bytes.as_ptr().wrapping_add((row * w.stride + k.start) * E::SIZE);
        Self { start: std::array::from_fn(|lane| at(row(lane))), k: k.len() }
    }

    /// # Safety
    /// The rows exist and store `E`; the visitor's own contract. The CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn visit<S: Simd, E: Load, V: Visit<S>>(&self, visitor: &mut V, ahead: &mut Ahead) {
        let block = E::PER_LANE * S::LANES;
        let mut k = 0;
        // SAFETY: whole blocks within `k`, then what is left of it.
        unsafe {
            while k + block <= self.k {
                let columns = E::columns::<S>(&self.start, k, ahead);
                for (j, lanes) in columns.iter().enumerate().take(S::LANES) {
                    for index in 0..E::PER_LANE {
                        visitor.column(k + j * E::PER_LANE + index, E::element::<S>(*lanes, index));
                    }
                }
                k += block;
            }
            while k < self.k {
                let count = (self.k - k).min(S::LANES);
                let columns = self.rest::<S, E>(k, count);
                for (j, column) in columns.iter().enumerate().take(count) {
                    visitor.column(k + j, *column);
                }
                k += count;
            }
        }
    }

    /// `count <= LANES` elements from `k` on, one per lane.
    ///
    /// # Safety
    /// As [`Rows::visit`]; the elements are there.
    #[inline(always)]
    unsafe fn rest<S: Simd, E: Load>(&self, k: usize, count: usize) -> [S::V; MAX_LANES] {
        // SAFETY: passed on.
        unsafe {
            let mut v = [S::splat(0.0); MAX_LANES];
            for (v, row) in v.iter_mut().zip(self.start).take(S::LANES) {
                let from = row.add(k * E::SIZE);
                *v = if count == S::LANES { E::load::<S>(from) } else { E::load_head::<S>(from, count) };
            }
            S::transpose(&mut v);
            v
        }
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
    /// Elements `k` of the rows of `w` from `row` on, which need not exist.
    #[inline(always)]
    pub(super) fn new<E: Load>(w: &WeightView<'_>, row: usize, k: &Range<usize>) -> Self {
        let at = w.bytes.as_ptr().wrapping_add((row * w.stride + k.start) * E::SIZE);
        let row_bytes = k.len() * E::SIZE;
        Self { at, row_end: at.wrapping_add(row_bytes), row_bytes, gap: w.stride * E::SIZE - row_bytes }
    }

    /// Asks for the next `bytes`, at most one line of memory.
    ///
    /// # Safety
    /// The CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn prefetch<S: Simd>(&mut self, bytes: usize) {
        // SAFETY: passed on.
        unsafe { S::prefetch(self.at) };
        self.at = self.at.wrapping_add(bytes);
        if self.at >= self.row_end {
            self.at = self.at.wrapping_add(self.gap);
            self.row_end = self.row_end.wrapping_add(self.row_bytes + self.gap);
        }
    }
}
