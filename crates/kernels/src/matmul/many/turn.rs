//! Inputs of many rows, turned: made once for all products of them.

#![expect(unsafe_code, reason = "vector loads and stores within slices")]

use std::ops::Range;

use super::super::inputs::{Layout, Part, STEP};
use super::super::load::HALVES;
use super::tile::turn;
use super::vectors_of_k;
use crate::pool::SharedMut;
use crate::simd::{Kernel, MAX_LANES, Simd};

/// Lays out the rows of a tile: `[chunk][lane, in its turn][vector of k][row]`; rows that are missing in a last vector are 0.
pub(in super::super) struct Turn<'a> {
    pub(in super::super) x: &'a [f32],
    pub(in super::super) layout: &'a Layout,
    /// Rows of the tile, those that are missing too.
    pub(in super::super) rows: usize,
    /// As long as `rows` padded ones.
    pub(in super::super) to: &'a mut [f32],
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, layout, rows, to } = self;
        for part in layout.parts() {
            let to = &mut to[part.at * rows..][..part.k.len().next_multiple_of(STEP) * rows];
            let places = Places::new::<S>(layout, &part, rows);
            for row in (0..rows).step_by(S::LANES) {
                let x = &x[row * layout.segments.len()..];
                for vector in 0..places.vectors {
                    let start = part.k.start + (vector * S::LANES).min(part.k.len());
                    let k = start..part.k.end.min(start + S::LANES);
                    // SAFETY: `to` has room for `vectors` of each lane and row.
                    unsafe {
                        let values = turned::<S>(x, layout.segments.len(), k);
                        for (index, values) in values.iter().enumerate().take(S::LANES) {
                            S::store(to.as_mut_ptr().add(places.of(vector, index) + row), *values);
                        }
                    }
                }
            }
        }
    }
}

/// A vector of rows for each value of `k`, from as many of `x` as there are, `width` long.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
unsafe fn turned<S: Simd>(x: &[f32], width: usize, k: Range<usize>) -> [S::V; MAX_LANES] {
    // SAFETY: arithmetic, and loads of values that exist.
    unsafe {
        let mut values = [S::splat(0.0); MAX_LANES];
        for (row, values) in values.iter_mut().enumerate().take((x.len() / width).min(S::LANES)) {
            *values = S::load_upto(x[row * width..][k.clone()].as_ptr(), k.len());
        }
        S::transpose(&mut values);
        values
    }
}

/// Where values of a chunk go.
struct Places {
    interleaved: bool,
    lanes: usize,
    vectors: usize,
    rows: usize,
}

impl Places {
    fn new<S: Simd>(layout: &Layout, part: &Part, rows: usize) -> Self {
        let vectors = vectors_of_k(part.k.len(), S::LANES);
        Self { interleaved: layout.interleaved, lanes: S::LANES, vectors, rows }
    }

    /// Of value `index` of a vector's worth of values of `k`.
    #[inline(always)]
    fn of(&self, vector: usize, index: usize) -> usize {
        let (vector, lane) = match self.interleaved {
            // What a few rows take apart into vectors of values at even and at odd places.
            true => (vector - vector % HALVES + index % HALVES, (vector % HALVES * self.lanes + index) / HALVES),
            false => (vector, index),
        };
        (turn(self.lanes, lane) * self.vectors + vector) * self.rows
    }
}

/// Inputs of many rows that are written as they come to be, each in its turned place: see [`Turn`].
pub(in super::super) struct Turned<'a> {
    pub(in super::super) layout: Layout,
    pub(in super::super) parts: &'a [Part],
    /// `[tile of rows]`, each as long as its padded rows.
    pub(in super::super) values: SharedMut<'a, f32>,
}

impl Turned<'_> {
    /// Takes `values`, `[k][row]`, of a tile's `rows` and some `k`; whoever has a part's last ones pads it with 0.
    ///
    /// # Safety
    /// The rows, those that are missing too, are a tile's, and as many values exist. Nobody else writes these. The CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn put<S: Simd>(&self, rows: &Range<usize>, k: &Range<usize>, values: *const f32) {
        let width = rows.len();
        for part in self.parts.iter().filter(|part| part.k.start < k.end && k.start < part.k.end) {
            let places = Places::new::<S>(&self.layout, part, width);
            let start = rows.start * self.layout.padded() + part.at * width;
            // SAFETY: the values of these rows at one place of the part, which are nobody else's.
            let place = |at| unsafe { self.values.slice(start + places.of(at / S::LANES, at % S::LANES), width) };
            for at in k.start.max(part.k.start)..k.end.min(part.k.end) {
                let to = place(at - part.k.start).as_mut_ptr();
                for row in (0..width).step_by(S::LANES) {
                    // SAFETY: `width` values from either on, whole vectors.
                    unsafe { S::store(to.add(row), S::load(values.add((at - k.start) * width + row))) };
                }
            }
            if part.k.end <= k.end {
                (part.k.len()..places.vectors * S::LANES).for_each(|at| place(at).fill(0.0));
            }
        }
    }
}
