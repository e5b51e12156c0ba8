//! `silu(x * gate^T) * (x * up^T)`, made as the input of the product that follows.
//!
//! A task computes a group of that input for some rows: outputs of both products stay in the second-level cache until they are rounded
//! to bytes.

use std::cell::RefCell;
use std::ops::Range;

use super::dot;
use super::product::{Outputs, Panels, ROWS, TASKS};
use super::rows::Filling;
use super::{GROUP, Groups, LANES, QuantizedMatrix, QuantizedRows};
use crate::Pool;
use crate::matmul::Projection;
use crate::pointwise::SiluMul;
use crate::pool::SharedMut;
use crate::simd::{Isa, Kernel, Simd};

/// Rows from which on this was measured to be faster.
const LEAST: usize = 96;

/// Fills `to`, as [`QuantizedRows::fill`] does, with `silu(x * gate^T) * (x * up^T)`, biases added to both products: the bits of
/// [`super::quantized_matmul`] and [`crate::silu_mul`]. False, and nothing is done, for few rows, where there would be few tasks for so
/// many threads, and if groups and panels do not end together. Panics if the shapes do not agree.
pub fn quantized_gated_matmul(
    isa: Isa,
    pool: &Pool,
    x: &QuantizedRows,
    projections: [Projection<'_, &QuantizedMatrix>; 2],
    groups: &Groups,
    to: &mut QuantizedRows,
) -> bool {
    let (count, blocks) = (groups.len(), x.rows.div_ceil(ROWS));
    let is_whole = (0..count).all(|group| groups.plain(group).start.is_multiple_of(LANES));
    if x.rows < LEAST || count * blocks < TASKS * pool.threads() || !is_whole {
        return false;
    }
    for Projection { weights: w, bias } in projections {
        x.check(w, bias);
        assert!(w.rows() == groups.row(), "{} outputs for {} inputs", w.rows(), groups.row());
    }
    let to = &to.filling(groups, x.rows);
    pool.run(count * blocks, |task| {
        let (row, group) = (task % blocks * ROWS, task / blocks);
        let task = Task { x, rows: row..(row + ROWS).min(x.rows), group, columns: groups.plain(group), to };
        SCRATCH.with_borrow_mut(|scratch| task.run(isa, projections, scratch));
    });
    true
}

thread_local! {
    /// Outputs of both products.
    static SCRATCH: RefCell<[Vec<f32>; 2]> = RefCell::default();
}

/// A group of some rows.
struct Task<'a> {
    x: &'a QuantizedRows,
    rows: Range<usize>,
    group: usize,
    /// The group's place in a row.
    columns: Range<usize>,
    to: &'a Filling<'a>,
}

impl Task<'_> {
    fn run(self, isa: Isa, projections: [Projection<'_, &QuantizedMatrix>; 2], scratch: &mut [Vec<f32>; 2]) {
        let width = self.columns.len();
        for (Projection { weights: w, bias }, out) in projections.into_iter().zip(&mut *scratch) {
            out.resize(ROWS * GROUP, 0.0);
            let out = &SharedMut::new(out);
            let first = (self.rows.start, self.columns.start);
            let panels = self.columns.start / LANES..self.columns.end.div_ceil(LANES);
            let out = Outputs { to: out, first, width };
            dot::run(isa, Panels { x: self.x, w, bias, rows: self.rows.clone(), panels, out });
        }
        let [gate, up] = scratch;
        let count = self.rows.len() * width;
        isa.run(Activate { task: self, gate: &mut gate[..count], up: &up[..count] });
    }
}

/// What a task does with its outputs, `[row][column]`.
struct Activate<'a> {
    task: Task<'a>,
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for Activate<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "the signature of a kernel")]
    unsafe fn run<S: Simd>(self) {
        let Self { task, gate, up } = self;
        // SAFETY: each group of each row belongs to one task; the CPU has `S`.
        unsafe {
            SiluMul { gate, up }.run::<S>();
            for (row, x) in task.rows.zip(gate.chunks_exact(task.columns.len())) {
                task.to.put::<S>(row, task.group, x);
            }
        }
    }
}
