//! How sixteen columns of packed weights are read: eight values along `k` at a time.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use std::mem::MaybeUninit;

use super::dot::Dot;
use super::product::{DEPTH, PANELS};
use super::{GROUP, LANES, QUARTERS, QuantizedRows, UNIT};

/// Memory that is asked for meanwhile: a line of each panel for every unit.
#[derive(Clone, Copy)]
pub(super) struct Ahead<const P: usize> {
    pub(super) at: [*const u8; P],
    /// Bytes from one unit to the next.
    pub(super) step: usize,
}

impl<const P: usize> Ahead<P> {
    /// # Safety
    /// The CPU has `D`.
    #[inline(always)]
    pub(super) unsafe fn prefetch<D: Dot>(&self, unit: usize) {
        for at in self.at {
            // SAFETY: passed on.
            unsafe { D::prefetch(at.wrapping_add(unit * self.step)) };
        }
    }

    /// What comes after `units`.
    #[inline(always)]
    pub(super) fn after(self, units: usize) -> Self {
        Self { at: self.at.map(|at| at.wrapping_add(units * self.step)), step: self.step }
    }
}

/// How a unit of sixteen columns is stored.
pub(super) trait Unit {
    /// Bytes of a unit of a panel.
    const BYTES: usize;
    /// Units whose products are one sum: a group, or a quarter.
    const PART: usize;

    /// What the sum of a part starts from, to make up for the offset of the weights.
    fn starts(x: &QuantizedRows) -> &[i32];

    /// The two halves of a unit.
    ///
    /// # Safety
    /// `BYTES` bytes are readable; the CPU has `D`.
    unsafe fn load<D: Dot>(from: *const u8) -> [D::Bytes; 2];

    /// Sums of products of sixteen columns over a part.
    type Sums<D: Dot>: Copy;

    /// As [`Dot::start`].
    ///
    /// # Safety
    /// The CPU has `D`.
    unsafe fn start<D: Dot>(correction: i32) -> Self::Sums<D>;

    /// As [`Dot::dot`].
    ///
    /// # Safety
    /// Four inputs are readable; the CPU has `D`.
    unsafe fn dot<D: Dot>(sum: Self::Sums<D>, w: D::Bytes, x: *const i8) -> Self::Sums<D>;

    /// Adds the sums of a part for some rows, whose steps are at `steps`.
    ///
    /// # Safety
    /// The part has steps there; the CPU has `D`.
    unsafe fn add<D: Dot, const M: usize, const P: usize>(
        whole: &mut [[D::Floats; P]; M],
        sums: &[[Self::Sums<D>; P]; M],
        steps: [*const i8; P],
    );
}

pub(super) struct EightBits;

impl Unit for EightBits {
    const BYTES: usize = UNIT * LANES;
    const PART: usize = GROUP / UNIT;

    #[inline(always)]
    fn starts(x: &QuantizedRows) -> &[i32] {
        &x.starts
    }

    #[inline(always)]
    unsafe fn load<D: Dot>(from: *const u8) -> [D::Bytes; 2] {
        // SAFETY: passed on.
        unsafe { [D::bytes(from), D::bytes(from.add(Self::BYTES / 2))] }
    }

    type Sums<D: Dot> = D::Ints;

    #[inline(always)]
    unsafe fn start<D: Dot>(correction: i32) -> D::Ints {
        // SAFETY: passed on.
        unsafe { D::start(correction) }
    }

    #[inline(always)]
    unsafe fn dot<D: Dot>(sum: D::Ints, w: D::Bytes, x: *const i8) -> D::Ints {
        // SAFETY: passed on.
        unsafe { D::dot(sum, w, x) }
    }

    /// There is one part.
    #[inline(always)]
    unsafe fn add<D: Dot, const M: usize, const P: usize>(
        whole: &mut [[D::Floats; P]; M],
        sums: &[[D::Ints; P]; M],
        _: [*const i8; P],
    ) {
        for (whole, sum) in whole.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
            // SAFETY: passed on.
            *whole = unsafe { D::converted(*sum) };
        }
    }
}

pub(super) struct FourBits;

impl Unit for FourBits {
    const BYTES: usize = UNIT * LANES / 2;
    const PART: usize = GROUP / QUARTERS / UNIT;

    #[inline(always)]
    fn starts(x: &QuantizedRows) -> &[i32] {
        &x.quarter_starts
    }

    #[inline(always)]
    unsafe fn load<D: Dot>(from: *const u8) -> [D::Bytes; 2] {
        // SAFETY: passed on.
        unsafe { D::nibbles(from) }
    }

    type Sums<D: Dot> = D::HalfSums;

    #[inline(always)]
    unsafe fn start<D: Dot>(correction: i32) -> D::HalfSums {
        // SAFETY: passed on.
        unsafe { D::half_start(correction) }
    }

    #[inline(always)]
    unsafe fn dot<D: Dot>(sum: D::HalfSums, w: D::Bytes, x: *const i8) -> D::HalfSums {
        // SAFETY: passed on.
        unsafe { D::dot_halves(sum, w, x) }
    }

    #[inline(always)]
    unsafe fn add<D: Dot, const M: usize, const P: usize>(
        whole: &mut [[D::Floats; P]; M],
        sums: &[[D::HalfSums; P]; M],
        steps: [*const i8; P],
    ) {
        for (p, steps) in steps.into_iter().enumerate() {
            // SAFETY: passed on.
            unsafe {
                let factors = D::factors(steps);
                for (whole, sums) in whole.iter_mut().zip(sums) {
                    whole[p] = D::add_multiple(whole[p], sums[p], factors);
                }
            }
        }
    }
}

/// Half bytes made bytes: `[panel]` as [`EightBits`] are stored.
#[repr(align(64))]
pub(super) struct Unpacked(MaybeUninit<[u8; PANELS * DEPTH * LANES]>);

impl Unpacked {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self(MaybeUninit::uninit())
    }
}

/// Makes bytes of `units` of each panel, from a group's first on; returns where they are.
///
/// # Safety
/// The units and their steps exist, DEPTH values at most; the CPU has `D`.
#[inline(always)]
pub(super) unsafe fn unpack<D: Dot, const P: usize>(
    w: &[*const u8; P],
    steps: &[*const i8; P],
    units: usize,
    to: &mut Unpacked,
) -> [*const u8; P] {
    let start = to.0.as_mut_ptr().cast::<u8>();
    let to: [*mut u8; P] = std::array::from_fn(|p| start.wrapping_add(p * DEPTH * LANES));
    for ((w, steps), to) in w.iter().zip(steps).zip(to) {
        for first in (0..units).step_by(FourBits::PART) {
            // SAFETY: each panel has room of its own for DEPTH values.
            unsafe {
                let steps = D::steps(steps.add(first / FourBits::PART * LANES));
                for unit in first..(first + FourBits::PART).min(units) {
                    let [low, high] = FourBits::load::<D>(w.add(unit * FourBits::BYTES));
                    let to = to.add(unit * EightBits::BYTES);
                    D::store_bytes(to, D::multiples(low, steps));
                    D::store_bytes(to.add(EightBits::BYTES / 2), D::multiples(high, steps));
                }
            }
        }
    }
    to.map(<*mut u8>::cast_const)
}

/// Eight values along `k`.
///
/// # Safety
/// Unit `unit` of every row and panel exists; the CPU has `D`.
#[inline(always)]
pub(super) unsafe fn dot_unit<D: Dot, U: Unit, const M: usize, const P: usize>(
    sums: &mut [[U::Sums<D>; P]; M],
    x: &[*const i8; M],
    w: &[*const u8; P],
    unit: usize,
) {
    // SAFETY: passed on.
    unsafe {
        let mut weights = [U::load::<D>(w[0].add(unit * U::BYTES)); P];
        for (weights, w) in weights.iter_mut().zip(w) {
            *weights = U::load::<D>(w.wrapping_add(unit * U::BYTES));
        }
        for half in 0..2 {
            for (sums, x) in sums.iter_mut().zip(x) {
                let x = x.add(unit * UNIT + half * UNIT / 2);
                for (sum, weights) in sums.iter_mut().zip(&weights) {
                    *sum = U::dot::<D>(*sum, weights[half], x);
                }
            }
        }
    }
}
