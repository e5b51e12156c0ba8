//! Rounding of sixteen columns of weights, one in each lane.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use half::bf16;

use super::{Bits, GROUP, LANES, QUARTERS, UNIT};
use crate::simd::{MAX_LANES, Simd};

/// A value of each column.
pub(super) type Values = [f32; LANES];

/// The weights of a group of sixteen columns, those of one `k` side by side.
pub(super) struct Columns {
    /// Followed by zeros up to a whole unit.
    values: [Values; GROUP],
    units: usize,
}

impl Columns {
    pub(super) fn new() -> Self {
        Self { values: [[0.0; LANES]; GROUP], units: 0 }
    }

    /// Takes `len` values of each of sixteen rows, which start `stride` apart.
    ///
    /// # Safety
    /// `rows` has `15 * stride + len` readable floats; `len` is at most [`GROUP`]; the CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn take<S: Simd>(&mut self, rows: *const f32, stride: usize, len: usize) {
        self.units = len.div_ceil(UNIT);
        for first in (0..LANES).step_by(S::LANES) {
            for k in (0..len).step_by(S::LANES) {
                // SAFETY: the caller grants the rows; `GROUP` is whole vectors, so `k` and those after it have a place.
                unsafe {
                    let mut square = [S::splat(0.0); MAX_LANES];
                    for (row, v) in square.iter_mut().enumerate().take(S::LANES) {
                        *v = S::load_upto(rows.add((first + row) * stride + k), len - k);
                    }
                    S::transpose(&mut square);
                    for (values, v) in self.values[k..k + S::LANES].iter_mut().zip(square) {
                        S::store(values.as_mut_ptr().add(first), v);
                    }
                }
            }
        }
    }

    /// The group, a unit at a time.
    pub(super) fn units(&self) -> &[[Values; UNIT]] {
        &self.values.as_chunks().0[..self.units]
    }

    /// The scales and steps that each column gets.
    ///
    /// # Safety
    /// The CPU has `S`.
    #[inline(always)]
    pub(super) unsafe fn grids<S: Simd>(&self, bits: Bits) -> Grids {
        // SAFETY: passed on.
        unsafe {
            match bits {
                Bits::Eight => self.grids8(),
                Bits::Four => self.grids4::<S>(),
            }
        }
    }

    /// The largest weight becomes 127.
    #[inline(always)]
    fn grids8(&self) -> Grids {
        let scales = scales(&largest(self.units()), 127.0);
        Grids { scales, steps: [[0; LANES]; QUARTERS], quarters: [widened(&scales); QUARTERS] }
    }

    /// The largest weight becomes 7.5 of the largest steps.
    ///
    /// # Safety
    /// The CPU has `S`.
    #[inline(always)]
    unsafe fn grids4<S: Simd>(&self) -> Grids {
        let scales = scales(&largest(self.units()), 7.5 * STEP_MAX);
        let mut grids = Grids { scales, steps: [[0; LANES]; QUARTERS], quarters: [[0.0; LANES]; QUARTERS] };
        let quarters = self.units().chunks(GROUP / QUARTERS / UNIT);
        for (units, (steps, quarter)) in quarters.zip(grids.steps.iter_mut().zip(&mut grids.quarters)) {
            // SAFETY: passed on.
            (*steps, *quarter) = unsafe { quarter_grid::<S>(units, &widened(&scales)) };
        }
        grids
    }
}

/// What the numbers that are stored for a group of sixteen columns mean.
pub(super) struct Grids {
    pub(super) scales: [bf16; LANES],
    /// Of 4 bits.
    pub(super) steps: [[i8; LANES]; QUARTERS],
    /// What 1 means.
    pub(super) quarters: [Values; QUARTERS],
}

/// The largest step: times a half byte of -8 to 7, it is a signed byte.
const STEP_MAX: f32 = 15.0;

/// Of some steps that map the largest weight of a quarter near the end of the range, the one with the least squared error, and what 1
/// means with it.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
unsafe fn quarter_grid<S: Simd>(units: &[[Values; UNIT]], scales: &Values) -> ([i8; LANES], Values) {
    /// What the largest weight (by magnitude) becomes: -8 uses the whole range; a smaller number clips less, a larger one is finer.
    const ENDS: [f32; 7] = [-8.0, -7.5, -7.0, -8.5, -9.0, -9.75, 7.0];
    let largest = largest(units);
    let (mut least, mut best) = ([f32::INFINITY; LANES], [1.0; LANES]);
    for end in ENDS {
        let (mut steps, mut grid) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            let step = (largest[lane].abs() / scales[lane] / end.abs()).round_ties_even().clamp(1.0, STEP_MAX);
            steps[lane] = if (largest[lane] > 0.0) == (end > 0.0) { step } else { -step };
            grid[lane] = scales[lane] * steps[lane];
        }
        // SAFETY: passed on.
        let errors = unsafe { squared_errors::<S>(units, &grid) };
        for lane in 0..LANES {
            let better = errors[lane] < least[lane];
            least[lane] = if better { errors[lane] } else { least[lane] };
            best[lane] = if better { steps[lane] } else { best[lane] };
        }
    }
    let mut grid = [0.0; LANES];
    grid.iter_mut().zip(scales).zip(best).for_each(|((grid, scale), step)| *grid = scale * step);
    (best.map(|step| step as i8), grid)
}

/// What rounding to four bits changes in each column. Value `k` of every unit has a sum of its own; then those are added in order.
///
/// Multiplies by a reciprocal, which is faster than to divide. It rounds another way only in the middle between two integers, where
/// both are equally wrong. (Weights of 24 bits may also be so near to it that they differ, by as little.)
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
unsafe fn squared_errors<S: Simd>(units: &[[Values; UNIT]], scales: &Values) -> Values {
    let mut errors = [0.0; LANES];
    for first in (0..LANES).step_by(S::LANES) {
        // SAFETY: `first` and the lanes after it are columns.
        unsafe {
            let rounding = Rounding::<S>::new(Bits::Four, scales.as_ptr().add(first));
            let factor = S::div(S::splat(1.0), rounding.divisor);
            let mut sums = [S::splat(0.0); UNIT];
            for unit in units {
                for (sum, values) in sums.iter_mut().zip(unit) {
                    let value = S::load(values.as_ptr().add(first));
                    let lost = S::sub(value, S::mul(rounding.code(S::mul(value, factor)), rounding.scale));
                    *sum = S::add(*sum, S::mul(lost, lost));
                }
            }
            let mut all = sums[0];
            for sum in &sums[1..] {
                all = S::add(all, *sum);
            }
            S::store(errors.as_mut_ptr().add(first), all);
        }
    }
    errors
}

/// The integers that stand for a unit of weights, as floats: `[k][column]`. Adds to `sums`, column by column, the squares of what
/// rounding changed, and those of the weights.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
pub(super) unsafe fn codes<S: Simd>(
    bits: Bits,
    unit: &[Values; UNIT],
    scales: &Values,
    [lost, all]: &mut [Values; 2],
) -> [Values; UNIT] {
    let mut codes = [[0.0; LANES]; UNIT];
    for first in (0..LANES).step_by(S::LANES) {
        // SAFETY: `first` and the lanes after it are columns.
        unsafe {
            let rounding = Rounding::<S>::new(bits, scales.as_ptr().add(first));
            let (to_lost, to_all) = (lost.as_mut_ptr().add(first), all.as_mut_ptr().add(first));
            let (mut lost, mut all) = (S::load(to_lost), S::load(to_all));
            for (codes, values) in codes.iter_mut().zip(unit) {
                let value = S::load(values.as_ptr().add(first));
                let code = rounding.code(S::div(value, rounding.divisor));
                let error = S::sub(value, S::mul(code, rounding.scale));
                lost = S::add(lost, S::mul(error, error));
                all = S::add(all, S::mul(value, value));
                S::store(codes.as_mut_ptr().add(first), code);
            }
            S::store(to_lost, lost);
            S::store(to_all, all);
        }
    }
    codes
}

/// The value of each column that is largest by magnitude; what is not a number does not count.
#[inline(always)]
fn largest(units: &[[Values; UNIT]]) -> Values {
    let mut largest = [0.0f32; LANES];
    for values in units.as_flattened() {
        for (largest, value) in largest.iter_mut().zip(values) {
            *largest = if value.abs() > largest.abs() { *value } else { *largest };
        }
    }
    largest
}

/// Scales by which these values become `end` or `-end`.
#[inline(always)]
fn scales(values: &Values, end: f32) -> [bf16; LANES] {
    let mut scales = [bf16::ZERO; LANES];
    for (scale, value) in scales.iter_mut().zip(values) {
        *scale = bf16::from_f32(value.abs() / end);
    }
    scales
}

/// As floats.
#[inline(always)]
fn widened(scales: &[bf16; LANES]) -> Values {
    let mut values = [0.0; LANES];
    for (value, scale) in values.iter_mut().zip(scales) {
        *value = scale.to_f32();
    }
    values
}

/// Rounding of a vector of columns.
struct Rounding<S: Simd> {
    scale: S::V,
    /// `scale`, or infinity where it is 0: nothing is left of weights without a scale.
    divisor: S::V,
    low: S::V,
    high: S::V,
}

impl<S: Simd> Rounding<S> {
    /// # Safety
    /// A vector of scales is readable; the CPU has `S`.
    #[inline(always)]
    unsafe fn new(bits: Bits, scales: *const f32) -> Self {
        let (low, high) = match bits {
            Bits::Eight => (-127.0, 127.0),
            Bits::Four => (-8.0, 7.0),
        };
        let mut divisors = [f32::INFINITY; MAX_LANES];
        // SAFETY: passed on.
        unsafe {
            for (lane, divisor) in divisors.iter_mut().enumerate().take(S::LANES) {
                let scale = *scales.add(lane);
                *divisor = if scale == 0.0 { f32::INFINITY } else { scale };
            }
            Self {
                scale: S::load(scales),
                divisor: S::load(divisors.as_ptr()),
                low: S::splat(low),
                high: S::splat(high),
            }
        }
    }

    /// The integers nearest to `quotients` within the range, ties to even. In this order of operands, what is not a number stays so.
    ///
    /// # Safety
    /// The CPU has `S`.
    #[inline(always)]
    unsafe fn code(&self, quotients: S::V) -> S::V {
        // SAFETY: arithmetic only.
        unsafe { S::min(self.high, S::max(self.low, S::round(quotients))) }
    }
}
