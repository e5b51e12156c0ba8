//! Two products of many rows whose outputs go, gated, straight into the place where the next product reads them.
//!
//! A tile of sums is `[row of weights][row of inputs]`, and so are the next product's inputs, two rows of weights a pair: nothing is
//! turned, and neither product is written and read again.

#![expect(unsafe_code, reason = "tiles, and disjoint writes from several threads")]

use std::ops::Range;

use super::super::{Projection, Segments, WeightView};
use super::block::{AREA, SUMS, shapes};
use super::inputs::Pairs;
use super::{Finish, Room, Rows, TiledInputs, Weights, share, tile_rows};
use crate::Pool;
use crate::pointwise::SiluMul;
use crate::simd::{Isa, Kernel, Simd};
use crate::tiles::{self, SIDE, TileKernel, Tiles};

/// Fills `to` with `silu(x * gate^T) * (x * up^T)`, biases added to both products. False, and nothing is done, for few rows, whose pace
/// memory sets, and where the two matrices or the segments do not go together. [`super::super::gated_matmul`] has checked the shapes.
pub(in super::super) fn gated(
    isa: Isa,
    pool: &Pool,
    x: &TiledInputs,
    projections: [Projection<'_, WeightView<'_>>; 2],
    segments: &Segments,
    to: &mut TiledInputs,
) -> bool {
    let [gate, up] = projections.map(|projection| projection.weights);
    if x.rows() <= SIDE || gate.stride != up.stride || !Pairs::are_whole(segments) {
        return false;
    }
    let (share, to) = (share(gate.rows, pool.threads()), to.pairs(segments, x.rows()));
    pool.run(gate.rows.div_ceil(share), |task| {
        let columns = task * share..((task + 1) * share).min(gate.rows);
        tiles::run(isa, Task { x, projections, columns, to: &to });
    });
    true
}

/// All rows of `x` times the same columns of both products; one thread's task.
struct Task<'a> {
    x: &'a TiledInputs,
    projections: [Projection<'a, WeightView<'a>>; 2],
    columns: Range<usize>,
    to: &'a Pairs<'a>,
}

impl TileKernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd, T: Tiles>(self) {
        let (room, [gate, up]) = (&mut Room::new(), &self.projections);
        let rows = |start| [gate, up].map(|projection| Rows::of(&projection.weights, start));
        // SAFETY: tiles exist where `T` does; `gated_matmul` has checked the shapes.
        unsafe {
            let shapes = shapes(tile_rows(&gate.weights), self.x.columns());
            let mut tiles = T::configure(&shapes).expect("a level with tiles");
            for group in self.x.groups() {
                for start in self.columns.clone().step_by(SIDE) {
                    let next = start + SIDE;
                    let next = (next < self.columns.end).then(|| rows(next));
                    let weights = Weights { x: self.x, rows: rows(start), next };
                    let columns = start..(start + SIDE).min(self.columns.end);
                    let gates = Gates { task: &self, places: self.to.places(&columns), columns };
                    weights.times::<S, T, _>(&group, &gates, &mut tiles, room);
                }
            }
        }
    }
}

/// Some columns of a task, at most a tile of them.
struct Gates<'a> {
    task: &'a Task<'a>,
    columns: Range<usize>,
    /// Of each two columns in `task.to`.
    places: [usize; SIDE / 2],
}

impl Finish<2> for Gates<'_> {
    #[inline(always)]
    unsafe fn finish<S: Simd, const X: usize>(&self, x: usize, sums: &mut [f32; SUMS * AREA]) {
        let Task { projections, to, .. } = self.task;
        let skipped = self.columns.start - Rows::of(&projections[0].weights, self.columns.start).top;
        let (gates, rest) = sums.split_at_mut(X * AREA);
        let ups = &mut rest[..X * AREA];
        for tile in 0..X {
            let (gates, ups) = (&mut gates[tile * AREA..][..AREA], &mut ups[tile * AREA..][..AREA]);
            add_bias(&mut gates[skipped * SIDE..], projections[0].bias, &self.columns);
            add_bias(&mut ups[skipped * SIDE..], projections[1].bias, &self.columns);
            // SAFETY: passed on.
            unsafe { SiluMul { gate: &mut *gates, up: ups }.run::<S>() };
            let (values, _) = gates[skipped * SIDE..].as_chunks::<SIDE>();
            for (place, pair) in self.places.into_iter().zip(values[..self.columns.len()].chunks(2)) {
                // SAFETY: the rows and columns are this task's, which begins at whole tiles. What would come after the last column is 0.
                unsafe { to.put(x + tile, place, &pair[0], pair.get(1).unwrap_or(&[0.0; SIDE])) };
            }
        }
    }
}

/// To sums of some columns, `[column][row]`.
#[inline(always)]
fn add_bias(sums: &mut [f32], bias: Option<&[f32]>, columns: &Range<usize>) {
    if let Some(bias) = bias {
        for (sums, bias) in sums.chunks_exact_mut(SIDE).zip(&bias[columns.clone()]) {
            sums.iter_mut().for_each(|sum| *sum += bias);
        }
    }
}
