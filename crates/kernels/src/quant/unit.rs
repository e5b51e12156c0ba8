//! How sixteen columns of packed weights are read: eight values along `k` at a time.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use std::mem::MaybeUninit;

use super::dot::Dot;
use super::product::{DEPTH, PANELS};
use super::{LANES, UNIT};

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
    /// Units of a whole group.
    const GROUP: usize;

    /// The two halves of a unit.
    ///
    /// # Safety
    /// `BYTES` bytes are readable; the CPU has `D`.
    unsafe fn load<D: Dot>(from: *const u8) -> [D::Bytes; 2];
}

pub(super) struct EightBits;

impl Unit for EightBits {
    const BYTES: usize = UNIT * LANES;
    const GROUP: usize = 128 / UNIT;

    #[inline(always)]
    unsafe fn load<D: Dot>(from: *const u8) -> [D::Bytes; 2] {
        // SAFETY: passed on.
        unsafe { [D::bytes(from), D::bytes(from.add(Self::BYTES / 2))] }
    }
}

pub(super) struct FourBits;

impl Unit for FourBits {
    const BYTES: usize = UNIT * LANES / 2;
    const GROUP: usize = 32 / UNIT;

    #[inline(always)]
    unsafe fn load<D: Dot>(from: *const u8) -> [D::Bytes; 2] {
        // SAFETY: passed on.
        unsafe { D::nibbles(from) }
    }
}

/// Four bits in a byte each.
pub(super) struct Widened;

impl Unit for Widened {
    const BYTES: usize = EightBits::BYTES;
    const GROUP: usize = FourBits::GROUP;

    #[inline(always)]
    unsafe fn load<D: Dot>(from: *const u8) -> [D::Bytes; 2] {
        // SAFETY: passed on.
        unsafe { EightBits::load::<D>(from) }
    }
}

/// Half bytes taken apart: `[panel]` as [`Widened`] are stored.
#[repr(align(64))]
pub(super) struct Unpacked(MaybeUninit<[u8; PANELS * DEPTH * LANES]>);

impl Unpacked {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self(MaybeUninit::uninit())
    }
}

/// Takes `units` of each panel apart; returns where they are.
///
/// # Safety
/// The units exist, DEPTH values at most; the CPU has `D`.
#[inline(always)]
pub(super) unsafe fn unpack<D: Dot, U: Unit, const P: usize>(
    w: &[*const u8; P],
    units: usize,
    to: &mut Unpacked,
) -> [*const u8; P] {
    let start = to.0.as_mut_ptr().cast::<u8>();
    let to: [*mut u8; P] = std::array::from_fn(|p| start.wrapping_add(p * DEPTH * LANES));
    for (w, to) in w.iter().zip(to) {
        for unit in 0..units {
            let from = w.wrapping_add(unit * U::BYTES);
            // SAFETY: each panel has room of its own for DEPTH values.
            unsafe {
                let [low, high] = U::load::<D>(from);
                D::store_bytes(to.add(unit * Widened::BYTES), low);
                D::store_bytes(to.add(unit * Widened::BYTES + Widened::BYTES / 2), high);
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
    ints: &mut [[D::Ints; P]; M],
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
            for (ints, x) in ints.iter_mut().zip(x) {
                let x = x.add(unit * UNIT + half * UNIT / 2);
                for (sum, weights) in ints.iter_mut().zip(&weights) {
                    *sum = D::dot(*sum, weights[half], x);
                }
            }
        }
    }
}
