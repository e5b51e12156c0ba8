//! The product itself: rows of bytes times packed panels, sums in registers.

#![expect(unsafe_code, reason = "vector loads and disjoint writes from several threads")]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::dot::{self, Dot, DotKernel};
use super::{Bits, LANES, QuantizedMatrix, QuantizedRows, UNIT};
use crate::matmul::WAITING;
use crate::pool::SharedMut;
use crate::{Isa, Pool};

/// Most rows and panels worked on together: their sums fill half of the registers.
const ROWS: usize = 8;
const PANELS: usize = 2;

/// Floats from one waiting sum of segments to the next.
const PLACE: usize = ROWS * PANELS * LANES;

/// How far ahead of the weights in use memory is asked for.
const AHEAD_BYTES: usize = 2048;

/// `out = x * w^T (+ bias)`: `out` is `[rows of x][w.rows]`, `bias` `[w.rows]`. Panics if the shapes do not agree.
pub fn quantized_matmul(
    isa: Isa,
    pool: &Pool,
    x: &QuantizedRows,
    w: &QuantizedMatrix,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    assert_eq!(x.values.len(), x.rows * w.groups().padded_row(), "rows of other groups");
    assert_eq!(x.scales.len(), x.rows * w.groups().len(), "rows of other groups");
    assert_eq!(out.len(), x.rows * w.rows(), "output of another product");
    assert!(bias.is_none_or(|bias| bias.len() == w.rows()), "bias of another product");
    let panels = w.panels();
    // Few tasks, so that each reads one long run of memory.
    let share = panels.div_ceil(pool.threads()).next_multiple_of(PANELS);
    let out = SharedMut::new(out);
    pool.run(panels.div_ceil(share), |task| {
        let panels = task * share..((task + 1) * share).min(panels);
        dot::run(isa, Panels { x, w, bias, panels, out: &out });
    });
}

/// All rows times some panels; one thread's task.
struct Panels<'a> {
    x: &'a QuantizedRows,
    w: &'a QuantizedMatrix,
    bias: Option<&'a [f32]>,
    panels: Range<usize>,
    /// `[row][w.rows]`; this task writes the columns of its panels and nothing else.
    out: &'a SharedMut<'a, f32>,
}

impl DotKernel for Panels<'_> {
    #[inline(always)]
    unsafe fn run<D: Dot>(self) {
        // SAFETY: `quantized_matmul` has checked the shapes.
        unsafe {
            match self.w.groups().bits() {
                Bits::Eight => self.all::<D, EightBits>(),
                Bits::Four => self.all::<D, FourBits>(),
            }
        }
    }
}

/// How a unit of sixteen columns is stored.
trait Unit {
    const BYTES: usize;

    /// The two halves of a unit.
    ///
    /// # Safety
    /// `BYTES` bytes are readable; the CPU has `D`.
    unsafe fn load<D: Dot>(from: *const u8) -> [D::Bytes; 2];
}

struct EightBits;

impl Unit for EightBits {
    const BYTES: usize = UNIT * LANES;

    #[inline(always)]
    unsafe fn load<D: Dot>(from: *const u8) -> [D::Bytes; 2] {
        // SAFETY: passed on.
        unsafe { [D::bytes(from), D::bytes(from.add(Self::BYTES / 2))] }
    }
}

struct FourBits;

impl Unit for FourBits {
    const BYTES: usize = UNIT * LANES / 2;

    #[inline(always)]
    unsafe fn load<D: Dot>(from: *const u8) -> [D::Bytes; 2] {
        // SAFETY: passed on.
        unsafe { D::nibbles(from) }
    }
}

/// `[waiting sum][row][panel][column]`
type Sums = MaybeUninit<[f32; WAITING * PLACE]>;

impl Panels<'_> {
    /// # Safety
    /// As [`DotKernel::run`]; the weights are stored as `U`.
    #[inline(always)]
    unsafe fn all<D: Dot, U: Unit>(&self) {
        let mut sums = Sums::uninit();
        let sums = sums.as_mut_ptr().cast::<f32>();
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            let count = (self.panels.end - panel).min(PANELS);
            let mut row = 0;
            while row < self.x.rows {
                // SAFETY: each arm takes at most the rows and panels that are left.
                row += unsafe {
                    match (self.x.rows - row, count) {
                        (8.., 2) => self.tile::<D, U, 8, 2>(row, panel, sums),
                        (4.., 2) => self.tile::<D, U, 4, 2>(row, panel, sums),
                        (2.., 2) => self.tile::<D, U, 2, 2>(row, panel, sums),
                        (_, 2) => self.tile::<D, U, 1, 2>(row, panel, sums),
                        (4.., _) => self.tile::<D, U, 4, 1>(row, panel, sums),
                        _ => self.tile::<D, U, 1, 1>(row, panel, sums),
                    }
                };
            }
            panel += count;
        }
    }

    /// `M` rows times `P` panels: segments are summed and joined as they come; returns `M`.
    ///
    /// # Safety
    /// Rows `row..row + M` and panels `panel..panel + P` exist; `sums` has room for WAITING parts. The CPU has `D`.
    #[inline(always)]
    unsafe fn tile<D: Dot, U: Unit, const M: usize, const P: usize>(
        &self,
        row: usize,
        panel: usize,
        sums: *mut f32,
    ) -> usize {
        for step in self.w.groups().segments().tree() {
            // SAFETY: the tree never has more than WAITING parts; those that are joined are written and differ.
            unsafe {
                self.segment::<D, U, M, P>(row, panel, step.segment, sums.add(step.place * PLACE));
                for place in (step.place - step.joins..step.place).rev() {
                    for i in 0..M * P * LANES {
                        *sums.add(place * PLACE + i) += *sums.add((place + 1) * PLACE + i);
                    }
                }
            }
        }
        for m in 0..M {
            for p in 0..P {
                // SAFETY: the first part now holds the sums; panel `panel + p` exists.
                unsafe { self.finish(row + m, panel + p, sums.add((m * P + p) * LANES)) };
            }
        }
        M
    }

    /// `to[m][p][column]` = the sum of a segment's scaled groups, one after the other.
    ///
    /// # Safety
    /// As [`Panels::tile`]; `to` has room for `M * P` vectors.
    #[inline(always)]
    unsafe fn segment<D: Dot, U: Unit, const M: usize, const P: usize>(
        &self,
        row: usize,
        panel: usize,
        segment: usize,
        to: *mut f32,
    ) {
        let groups = self.w.groups();
        let (padded, count) = (groups.padded_row(), groups.len());
        let x: [*const i8; M] = std::array::from_fn(|m| self.x.values[(row + m) * padded..].as_ptr());
        let w: [*const u8; P] = std::array::from_fn(|p| self.w.panel(panel + p).as_ptr());
        // SAFETY: groups lie within the padded rows, of `x` and of the panels; scales and starts exist for every group.
        unsafe {
            let mut sums = [[D::zero(); P]; M];
            for group in groups.of_segment(segment) {
                let k = groups.padded(group);
                let mut ints = [[D::ints(0); P]; M];
                for (m, ints) in ints.iter_mut().enumerate() {
                    *ints = [D::ints(*self.x.starts.as_ptr().add((row + m) * count + group)); P];
                }
                for unit in k.start / UNIT..k.end / UNIT {
                    dot_unit::<D, U, M, P>(&mut ints, &x, &w, unit);
                }
                for p in 0..P {
                    let w = D::scales(self.w.scales(panel + p).as_ptr().add(group * 2 * LANES));
                    for (m, (sums, ints)) in sums.iter_mut().zip(&ints).enumerate() {
                        let x = *self.x.scales.as_ptr().add((row + m) * count + group);
                        sums[p] = D::add_scaled(sums[p], ints[p], w, x);
                    }
                }
            }
            for (i, sum) in sums.as_flattened().iter().enumerate() {
                D::store(to.add(i * LANES), *sum);
            }
        }
    }

    /// Writes sixteen outputs, or those that exist.
    ///
    /// # Safety
    /// `sum` holds sixteen floats; the panel and the row exist.
    #[inline(always)]
    unsafe fn finish(&self, row: usize, panel: usize, sum: *const f32) {
        let columns = panel * LANES..((panel + 1) * LANES).min(self.w.rows());
        // SAFETY: the output row has `w.rows` columns, of which this task owns those of its panels.
        let (sum, out) = unsafe {
            let sum = std::slice::from_raw_parts(sum, columns.len());
            (sum, self.out.slice(row * self.w.rows() + columns.start, columns.len()))
        };
        match self.bias {
            None => out.copy_from_slice(sum),
            Some(bias) => {
                let bias = &bias[columns];
                out.iter_mut().zip(sum).zip(bias).for_each(|((out, sum), bias)| *out = sum + bias);
            }
        }
    }
}

/// Eight values along `k`.
///
/// # Safety
/// Unit `unit` of every row and panel exists; the CPU has `D`.
#[inline(always)]
unsafe fn dot_unit<D: Dot, U: Unit, const M: usize, const P: usize>(
    ints: &mut [[D::Ints; P]; M],
    x: &[*const i8; M],
    w: &[*const u8; P],
    unit: usize,
) {
    // SAFETY: passed on.
    unsafe {
        let mut weights = [U::load::<D>(w[0].add(unit * U::BYTES)); P];
        for (weights, w) in weights.iter_mut().zip(w) {
            let at = w.wrapping_add(unit * U::BYTES);
            D::prefetch(at.wrapping_add(AHEAD_BYTES));
            *weights = U::load::<D>(at);
        }
        for half in 0..2 {
            for (ints, x) in ints.iter_mut().zip(x) {
                let x = x.add(unit * UNIT + half * UNIT / 2);
                for (sum, weights) in ints.iter_mut().zip(&weights) {
                    *sum = D::dot(*sum, weights[half], x);
                }
            }
        }
    }
}
