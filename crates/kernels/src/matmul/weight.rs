//! Matrices as they lie in a model file.

#![expect(unsafe_code, reason = "vector loads within a view")]

use std::ops::Range;

use super::load::{Bf16, F16, F32, widen};
use crate::simd::{Isa, Kernel, Simd};

/// How weights are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
        }
    }

    /// Products take two vectors of elements apart into those at even and those at odd places, instead of the first and the last.
    pub(super) fn interleaved(self) -> bool {
        self == Element::Bf16
    }
}

/// A matrix `[rows][cols]` inside a larger row-major one, little endian, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) element: Element,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Elements from one row to the next.
    pub(super) stride: usize,
}

impl<'a> WeightView<'a> {
    /// The whole of `bytes`; `None` unless it holds exactly `rows * cols` elements.
    pub fn new(bytes: &'a [u8], element: Element, rows: usize, cols: usize) -> Option<Self> {
        let expected = rows.checked_mul(cols)?.checked_mul(element.size())?;
        (bytes.len() == expected).then_some(Self { bytes, element, rows, cols, stride: cols })
    }

    /// A rank's part. Panics if the ranges are not inside.
    pub fn shard(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(cols.start <= cols.end && cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        let size = self.element.size();
        let start = if rows.is_empty() { 0 } else { (rows.start * self.stride + cols.start) * size };
        let end = if rows.is_empty() { 0 } else { ((rows.end - 1) * self.stride + cols.end) * size };
        Self { bytes: &self.bytes[start..end], rows: rows.len(), cols: cols.len(), ..self }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn element(&self) -> Element {
        self.element
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row as `f32`. Panics if there is no such row or `out` is not `cols` long.
    pub fn copy_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {} into {}", self.rows, out.len());
        let start = row * self.stride * self.element.size();
        let bytes = &self.bytes[start..start + self.cols * self.element.size()];
        isa.run(Widen { bytes, element: self.element, out });
    }
}

/// Stored elements to `f32`; `bytes` holds as many as `out`.
struct Widen<'a> {
    bytes: &'a [u8],
    element: Element,
    out: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `copy_row` cut `bytes` to the length of `out`.
        unsafe {
            match self.element {
                Element::F32 => widen::<S, F32>(self.bytes.as_ptr(), self.out),
                Element::F16 => widen::<S, F16>(self.bytes.as_ptr(), self.out),
                Element::Bf16 => widen::<S, Bf16>(self.bytes.as_ptr(), self.out),
            }
        }
    }
}
