//! The left side of products by tiles: rounded to bf16 and laid out pair by pair.

#![expect(unsafe_code, reason = "disjoint writes from several threads")]

use std::ops::Range;

use super::super::segments::{Segments, TreeStep};
use super::GROUP;
use super::block::DEPTH;
use crate::simd::{Isa, Kernel, Simd};
use crate::tiles::SIDE;
use crate::{Pool, pool::SharedMut};

/// Pairs in a line of memory.
const LINE: usize = 16;

/// With fewer values than this, waking a thread costs more than it helps.
const FEW: usize = 1 << 14;

/// Rows ready for products with bf16 weights. Kept from step to step, so that a warm step allocates nothing.
#[derive(Default, Debug)]
pub(in super::super) struct TiledInputs {
    /// From `start` on `[tile][pair of padded k][column]`, two bf16 values each.
    pairs: Vec<u32>,
    /// Where a line of memory starts.
    start: usize,
    rows: usize,
    segments: Option<Segments>,
}

/// A segment as the tiles read it.
pub(super) struct Part {
    /// Of the weights' rows.
    pub(super) k: Range<usize>,
    /// Values of a padded row before it.
    pub(super) at: usize,
    pub(super) step: TreeStep,
}

impl TiledInputs {
    /// Takes `x`, `[rows][k]`.
    pub(in super::super) fn fill(&mut self, isa: Isa, pool: &Pool, segments: &Segments, x: &[f32]) {
        let width = segments.len();
        self.make_room(segments, x.len() / width);
        let (tiles, columns, tile) = (self.tiles(), self.columns(), self.tile_pairs());
        let pairs = SharedMut::new(&mut self.pairs[self.start..]);
        let share = if x.len() < FEW { tiles } else { tiles.div_ceil(pool.threads()) }.max(1);
        pool.run(tiles.div_ceil(share), |task| {
            for index in task * share..((task + 1) * share).min(tiles) {
                let rows = index * columns..((index + 1) * columns).min(x.len() / width);
                // SAFETY: each task has tiles of its own.
                let to = unsafe { pairs.slice(index * tile, tile) };
                isa.run(LayOut { x: &x[rows.start * width..rows.end * width], segments, columns, to });
            }
        });
    }

    /// For so many rows, whose values are to be written.
    fn make_room(&mut self, segments: &Segments, rows: usize) {
        self.rows = rows;
        self.segments = Some(*segments);
        self.pairs.resize(self.tiles() * self.tile_pairs() + LINE, 0);
        self.start = self.pairs.as_ptr().align_offset(4 * LINE).min(LINE);
    }

    /// As [`TiledInputs::fill`], but the values of so many rows come later, by pairs.
    pub(super) fn pairs(&mut self, segments: &Segments, rows: usize) -> Pairs<'_> {
        self.make_room(segments, rows);
        let (columns, tile) = (self.columns(), self.tile_pairs());
        for tile in self.pairs[self.start..].chunks_exact_mut(tile.max(1)).take(rows.div_ceil(SIDE)) {
            let mut at = 0;
            for k in segments.ranges() {
                let end = at + k.len().next_multiple_of(DEPTH);
                tile[(at + k.len()) / 2 * columns..end / 2 * columns].fill(0);
                at = end;
            }
        }
        Pairs { columns, tile, segments: *segments, values: SharedMut::new(&mut self.pairs[self.start..]) }
    }

    /// Nothing is laid out.
    pub(in super::super) fn clear(&mut self) {
        self.segments = None;
    }

    pub(in super::super) fn rows(&self) -> usize {
        self.rows
    }

    /// They were laid out for weights with rows of this length.
    pub(in super::super) fn fit(&self, k: usize) -> bool {
        self.segments.is_some_and(|segments| segments.len() == k)
    }

    /// Tiles of rows: as few as can be.
    pub(super) fn tiles(&self) -> usize {
        self.rows.div_ceil(SIDE)
    }

    /// Rows of a tile, as few as can be; the last one may have fewer.
    pub(super) fn columns(&self) -> usize {
        self.rows.div_ceil(self.tiles().max(1))
    }

    /// The rows of a tile.
    pub(super) fn rows_of(&self, tile: usize) -> Range<usize> {
        let columns = self.columns();
        tile * columns..self.rows.min((tile + 1) * columns)
    }

    /// Groups of tiles that stay in the second-level cache.
    pub(super) fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        let tile_bytes = self.tile_pairs() * size_of::<u32>();
        let (tiles, group) = (self.tiles(), (GROUP / tile_bytes.max(1)).next_multiple_of(2).max(2));
        (0..tiles).step_by(group).map(move |first| first..(first + group).min(tiles))
    }

    /// Pairs of a tile along all of `k`.
    fn tile_pairs(&self) -> usize {
        self.segments.map_or(0, |segments| padded(&segments) / 2 * self.columns())
    }

    /// A tile from [`Part::at`] on.
    pub(super) fn tile(&self, tile: usize, at: usize) -> *const u8 {
        let first = self.start + tile * self.tile_pairs();
        self.pairs[first + at / 2 * self.columns()..].as_ptr().cast()
    }

    /// The segments, in the order in which they are summed.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        let mut next = 0;
        let segments = self.segments.iter().flat_map(|segments| segments.tree().zip(segments.ranges()));
        segments.map(move |(step, k)| {
            let at = next;
            next += k.len().next_multiple_of(DEPTH);
            Part { k, at, step }
        })
    }
}

/// Inputs that are written as they come to be, two neighbouring values of a tile's rows at a time.
pub(super) struct Pairs<'a> {
    /// Rows of a tile, and pairs.
    columns: usize,
    tile: usize,
    segments: Segments,
    values: SharedMut<'a, u32>,
}

impl Pairs<'_> {
    /// Whether no pair lies in two segments.
    pub(super) fn are_whole(segments: &Segments) -> bool {
        segments.ranges().all(|k| k.start.is_multiple_of(2))
    }

    /// Where in a tile the pairs of at most a tile's columns lie, which begin at an even one.
    pub(super) fn places(&self, columns: &Range<usize>) -> [usize; SIDE / 2] {
        let mut places = [0; SIDE / 2];
        for (place, k) in places.iter_mut().zip(columns.clone().step_by(2)) {
            let before = self.segments.ranges().take_while(|part| part.end <= k);
            let (padded, plain) =
                before.fold((0, 0), |(padded, _), part| (padded + part.len().next_multiple_of(DEPTH), part.end));
            *place = (padded + k - plain) / 2 * self.columns;
        }
        places
    }

    /// Takes the values of two neighbouring columns of the rows of a tile.
    ///
    /// # Safety
    /// Pairs are whole, the tile exists, the place is one of [`Pairs::places`], and nobody else writes to it.
    #[inline(always)]
    pub(super) unsafe fn put(&self, tile: usize, place: usize, low: &[f32; SIDE], high: &[f32; SIDE]) {
        // SAFETY: the caller grants it.
        let to = unsafe { self.values.slice(tile * self.tile + place, self.columns) };
        for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
            *to = rounded(*high) << 16 | rounded(*low);
        }
    }
}

/// Length of a row whose segments are whole steps.
fn padded(segments: &Segments) -> usize {
    segments.ranges().map(|k| k.len().next_multiple_of(DEPTH)).sum()
}

/// Lays a tile out.
struct LayOut<'a> {
    /// Its rows, `columns` of them at most.
    x: &'a [f32],
    segments: &'a Segments,
    columns: usize,
    /// `[pair of padded k][column]`
    to: &'a mut [u32],
}

impl Kernel for LayOut<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, segments, columns, to } = self;
        to.fill(0);
        for (column, row) in x.chunks_exact(segments.len()).enumerate() {
            let mut to = to.chunks_exact_mut(DEPTH / 2 * columns);
            for k in segments.ranges() {
                for (values, to) in row[k].chunks(DEPTH).zip(&mut to) {
                    let mut step = [0.0; DEPTH];
                    step[..values.len()].copy_from_slice(values);
                    let step = step.map(rounded);
                    for (pair, to) in step.chunks_exact(2).zip(to.chunks_exact_mut(columns)) {
                        to[column] = pair[1] << 16 | pair[0];
                    }
                }
            }
        }
    }
}

/// The bits of the nearest bf16 value, the even one of two; what is not a number stays so.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    if value.is_nan() { bits >> 16 | 0x40 } else { nearest }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn values_are_rounded_to_the_nearest_and_even() {
        let ends = [0.0, -0.0, f32::MAX, f32::MIN_POSITIVE, f32::INFINITY, f32::NEG_INFINITY, 1e-42, -f32::MAX];
        for value in crate::testing::values(1, 10_000).into_iter().chain(ends) {
            assert_eq!(rounded(value), u32::from(bf16::from_f32(value).to_bits()), "{value}");
        }
        for (bits, expected) in [(0x3F80_8000, 0x3F80), (0x3F81_8000, 0x3F82), (0x3F80_8001, 0x3F81)] {
            assert_eq!(rounded(f32::from_bits(bits)), expected, "{bits:x}");
        }
        for bits in [0x7F80_0001, 0x7FFF_FFFF, 0xFFC0_0000] {
            assert!(f32::from_bits(rounded(f32::from_bits(bits)) << 16).is_nan(), "{bits:x}");
        }
    }
}
