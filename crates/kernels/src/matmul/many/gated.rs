//! Two products of many rows whose outputs go, gated, straight into the place where the next product reads them.
//!
//! Sums lie as that product wants its inputs, `[column][row]`: nothing is turned, and what would be written and read again twice, 10 MB
//! in a layer of 512 rows and 4,864 columns, never leaves the second-level cache.

#![expect(unsafe_code, reason = "sums as slices; contracts stand at each function")]

use super::super::Columns;
use super::super::load::Load;
use super::{Scratch, Turned};
use crate::pointwise::SiluMul;
use crate::simd::{Kernel, Simd};

/// The same rows and columns of two products; a task.
pub(in super::super) struct Gated<'a> {
    pub(in super::super) gate: Columns<'a>,
    pub(in super::super) up: Columns<'a>,
    pub(in super::super) to: &'a Turned<'a>,
}

impl Gated<'_> {
    /// # Safety
    /// As [`Columns::many`], for both; nobody else writes these rows and columns.
    #[inline(always)]
    pub(in super::super) unsafe fn run<S: Simd, E: Load>(&self, scratch: &mut Scratch) {
        let Scratch { sums, others, panels } = scratch;
        let Self { gate, up, to } = self;
        // SAFETY: passed on; sums of a tile lie in one run, `[column][row]`.
        unsafe {
            let (gates, ups) = (gate.sums::<S, E>(panels, sums), up.sums::<S, E>(panels, others));
            for tile in gate.down.clone() {
                let (rows, at) = (gate.tiles.rows(tile), gate.place(tile));
                let slice =
                    |sums: *mut f32| std::slice::from_raw_parts_mut(sums.add(at), gate.columns.len() * rows.len());
                let (gates, ups) = (slice(gates), slice(ups));
                gate.add_bias(gates, rows.len());
                up.add_bias(ups, rows.len());
                SiluMul { gate: gates, up: ups }.run::<S>();
                to.put::<S>(&rows, &gate.columns, gates.as_ptr());
            }
        }
    }
}

impl Columns<'_> {
    /// To sums of `rows` rows, `[column][row]`.
    #[inline(always)]
    fn add_bias(&self, sums: &mut [f32], rows: usize) {
        if let Some(bias) = self.bias {
            for (sums, bias) in sums.chunks_exact_mut(rows).zip(&bias[self.columns.clone()]) {
                sums.iter_mut().for_each(|sum| *sum += bias);
            }
        }
    }
}
