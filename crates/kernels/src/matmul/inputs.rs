//! The left side of products, laid out for the tiles: made once for all products of one input.

use std::ops::Range;

use super::many::{Turn, Turned, vectors};
use super::segments::{Segments, TreeStep};
use super::tile::rows_max;
use super::tiled::{self, TiledInputs};
use super::weight::{Element, WeightView};
use super::{Projection, by_tiles};
use crate::simd::{Isa, Kernel, MAX_LANES, Simd};
use crate::{Pool, pool::SharedMut};

/// Segments start at multiples of this many values, whatever the level: two of its widest vectors.
pub(super) const STEP: usize = 2 * MAX_LANES;

/// A segment is summed in chunks of so many, which are added one after the other: a tile's inputs then stay in the first-level cache.
pub(super) const CHUNK: usize = 1024;

/// Bytes of a line of memory.
const LINE: usize = 64;

/// With fewer values than this, waking a thread costs more than it helps.
const FEW: usize = 1 << 14;

/// Rows ready for products with weights of one element type and the same segments. Kept from step to step, so that a warm step
/// allocates nothing.
#[derive(Default, Debug)]
pub struct Inputs {
    /// From `start` on, so that a tile reads one run of memory: of a few rows `[tile][vector of padded k][row of the tile][lane]`, of
    /// many as [`Turn`] lays them out.
    values: Vec<f32>,
    /// Where a line of memory starts: a vector that lies in two of them takes twice as long to load.
    start: usize,
    rows: usize,
    layout: Option<Layout>,
    /// The chunks of each segment, in the order in which they are summed.
    parts: Vec<Part>,
    /// Instead of all that, where products go by tile registers.
    pub(super) tiled: TiledInputs,
}

/// How a row is laid out: each segment padded with 0 to whole steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    isa: Isa,
    pub(super) segments: Segments,
    /// See [`Element::interleaved`].
    pub(super) interleaved: bool,
}

/// A chunk of a segment as the tiles read it.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Of the weights' rows.
    pub(super) k: Range<usize>,
    /// Values of a row before it.
    pub(super) at: usize,
    /// Where the segment's sum goes, and what is joined after its last chunk.
    pub(super) step: TreeStep,
    pub(super) first: bool,
    pub(super) last: bool,
}

impl Inputs {
    /// Takes `x`, `[rows][k]`, for products with weights of type `element`. Panics if `x` is not whole rows of `segments`.
    pub fn fill(&mut self, isa: Isa, pool: &Pool, element: Element, segments: &Segments, x: &[f32]) {
        let width = segments.len();
        assert!(width > 0 && x.len().is_multiple_of(width), "{} values are not rows of {width}", x.len());
        if by_tiles(isa, element) {
            self.rows = x.len() / width;
            self.layout = None;
            return self.tiled.fill(isa, pool, segments, x);
        }
        let layout = Layout { isa, segments: *segments, interleaved: element.interleaved() };
        let (tiles, padded) = (self.make_room(layout, x.len() / width), layout.padded());
        let values = SharedMut::new(&mut self.values[self.start..]);
        let share = if x.len() < FEW { tiles.count } else { tiles.count.div_ceil(pool.threads()) }.max(1);
        pool.run(tiles.count.div_ceil(share), |task| {
            for tile in task * share..((task + 1) * share).min(tiles.count) {
                let rows = tiles.rows(tile);
                // SAFETY: each row belongs to one tile, and that to one task.
                #[expect(unsafe_code, reason = "disjoint writes from several threads")]
                let to = unsafe { values.slice(rows.start * padded, rows.len() * padded) };
                let x = &x[rows.start * width..rows.end.min(self.rows) * width];
                match tiles.many() {
                    true => isa.run(Turn { x, layout: &layout, rows: rows.len(), to }),
                    false => isa.run(LayOut { x, layout, to }),
                }
            }
        });
    }

    /// Room for so many rows, laid out so; what is there is to be overwritten.
    fn make_room(&mut self, layout: Layout, rows: usize) -> Tiles {
        let tiles = Tiles::of(layout.isa, rows);
        self.rows = rows;
        self.layout = Some(layout);
        self.parts.clear();
        self.parts.extend(layout.parts());
        self.tiled.clear();
        let room = tiles.of * tiles.unit * layout.padded() + MAX_LANES;
        // Never less again: inputs of another width would each time be filled with zeros first.
        self.values.resize(room.max(self.values.len()), 0.0);
        self.start = self.values.as_ptr().align_offset(LINE).min(MAX_LANES);
        tiles
    }

    /// As [`Inputs::fill`], but the values of so many rows, which are many, come later.
    pub(super) fn turned(&mut self, isa: Isa, element: Element, segments: &Segments, rows: usize) -> Turned<'_> {
        let layout = Layout { isa, segments: *segments, interleaved: element.interleaved() };
        self.make_room(layout, rows);
        Turned { layout, parts: &self.parts, values: SharedMut::new(&mut self.values[self.start..]) }
    }

    /// As [`super::gated_matmul`], where products go by tile registers.
    pub(super) fn gated_by_tiles(
        &mut self,
        isa: Isa,
        pool: &Pool,
        x: &Inputs,
        projections: [Projection<'_, WeightView<'_>>; 2],
        segments: &Segments,
    ) -> bool {
        let done = tiled::gated(isa, pool, &x.tiled, projections, segments, &mut self.tiled);
        if done {
            (self.rows, self.layout) = (x.rows, None);
        }
        done
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The values of a tile's `rows` from [`Part::at`] on.
    pub(super) fn tile(&self, rows: &Range<usize>, at: usize) -> *const f32 {
        let padded = self.layout.as_ref().map_or(0, Layout::padded);
        self.values[self.start + rows.start * padded + at * rows.len()..].as_ptr()
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// They were laid out for this level, and for weights of this type with rows of this length.
    pub(super) fn fit(&self, isa: Isa, element: Element, k: usize) -> bool {
        if by_tiles(isa, element) {
            return self.tiled.fit(k);
        }
        let fits = |layout: Layout| {
            layout.isa == isa && layout.interleaved == element.interleaved() && layout.segments.len() == k
        };
        self.layout.is_some_and(fits)
    }
}

/// Rows in as few tiles as can be, as even as can be: 9 are 5 and 4, not 8 and 1. Tiles of many rows are whole vectors of them.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) count: usize,
    /// So many units are divided.
    of: usize,
    /// Rows of a unit.
    unit: usize,
}

/// From so many rows on it pays to widen weights once for all of them, unless more than one in [`PADDED`] of a tile's would be padding.
const MANY: usize = 48;
const PADDED: usize = 8;

impl Tiles {
    pub(super) fn of(isa: Isa, rows: usize) -> Self {
        let of = rows.div_ceil(isa.lanes());
        let padding = of * isa.lanes() - rows;
        if rows < MANY || padding * PADDED > rows {
            return Self { count: rows.div_ceil(rows_max(isa.lanes())), of: rows, unit: 1 };
        }
        Self { count: of.div_ceil(vectors(isa.lanes())), of, unit: isa.lanes() }
    }

    /// There are so many rows that products go by panels.
    pub(super) fn many(self) -> bool {
        self.unit > 1
    }

    /// Rows of the largest.
    pub(super) fn largest(self) -> usize {
        self.of.div_ceil(self.count) * self.unit
    }

    pub(super) fn rows(self, tile: usize) -> Range<usize> {
        self.of * tile / self.count * self.unit..self.of * (tile + 1) / self.count * self.unit
    }

    /// One of so many groups of tiles, as even as can be.
    pub(super) fn group(self, index: usize, groups: usize) -> Range<usize> {
        self.count * index / groups..self.count * (index + 1) / groups
    }
}

impl Layout {
    pub(super) fn padded(&self) -> usize {
        self.segments.ranges().map(|k| k.len().next_multiple_of(STEP)).sum()
    }

    /// See [`Inputs::parts`].
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        let segments = self.segments.tree().zip(self.segments.ranges());
        let chunks = segments.flat_map(|(step, k)| {
            (0..k.len().div_ceil(CHUNK).max(1)).map(move |chunk| {
                let start = k.start + chunk * CHUNK;
                let end = (start + CHUNK).min(k.end);
                Part { k: start..end, at: 0, step, first: start == k.start, last: end == k.end }
            })
        });
        let mut at = 0;
        chunks.map(move |part| {
            let start = at;
            at += part.k.len().next_multiple_of(STEP);
            Part { at: start, ..part }
        })
    }
}

struct LayOut<'a> {
    /// Rows of a tile.
    x: &'a [f32],
    layout: Layout,
    to: &'a mut [f32],
}

impl Kernel for LayOut<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "the signature of a kernel")]
    unsafe fn run<S: Simd>(self) {
        let width = self.layout.segments.len();
        let (rows, step) = (self.x.len() / width, 2 * S::LANES);
        let mut to = self.to;
        for k in self.layout.segments.ranges() {
            let (segment, rest) = to.split_at_mut(k.len().next_multiple_of(STEP) * rows);
            for (index, to) in segment.chunks_exact_mut(step * rows).enumerate() {
                let start = (index * step).min(k.len());
                let k = k.start + start..k.start + (start + step).min(k.len());
                for row in 0..rows {
                    let mut values = [0.0; STEP];
                    values[..k.len()].copy_from_slice(&self.x[row * width..][k.clone()]);
                    let (first, second) = to.split_at_mut(S::LANES * rows);
                    let first = &mut first[row * S::LANES..][..S::LANES];
                    let second = &mut second[row * S::LANES..][..S::LANES];
                    if self.layout.interleaved {
                        take_apart(&values[..step], first, second);
                    } else {
                        first.copy_from_slice(&values[..S::LANES]);
                        second.copy_from_slice(&values[S::LANES..step]);
                    }
                }
            }
            to = rest;
        }
    }
}

/// Values at even and at odd places.
#[inline(always)]
fn take_apart(values: &[f32], even: &mut [f32], odd: &mut [f32]) {
    for ((pair, even), odd) in values.as_chunks::<2>().0.iter().zip(even).zip(odd) {
        [*even, *odd] = *pair;
    }
}
