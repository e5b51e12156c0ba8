//! A product that tiles must get right before they are used.

#![expect(unsafe_code, reason = "tiles; contracts stand at each function")]

use half::bf16;

use super::block::{AREA, Ahead, Block, DEPTH, SUMS, shapes};
use crate::simd::Portable;
use crate::tiles::{Emulated, ROW_BYTES, SIDE, Tiles};

/// Whole steps, and values that are left: several of the former, and an odd number.
const STEPS: usize = 3;
const REST: usize = 19;

/// Rows of either side.
const ROWS: usize = 2 * SIDE;

/// How far sums may lie apart, as a part of what their products' absolute values add up to: some roundings in another order, as an
/// f32 has 24 bits; one product lost or wrong makes a thousand times as much.
const TOLERANCE: f32 = 1.0 / (1 << 18) as f32;

/// Sums are those of the emulation but for roundings; and have the same bits for any number of rows and in every tile.
pub(crate) fn sums_are_right<T: Tiles>() -> bool {
    (1..=3).all(|seed| {
        let trial = Trial::new(seed);
        let (Some(found), Some(expected)) = (trial.all::<T>(), trial.all::<Emulated>()) else { return false };
        let near = |index: usize| {
            let most = trial.absolute(index / ROWS, index % ROWS) * TOLERANCE;
            (found[index] - expected[index]).abs() <= most
        };
        (0..ROWS * ROWS).all(near) && trial.bits_do_not_depend_on_shape::<T>(&found)
    })
}

struct Trial {
    /// `[row][k]`
    w: Vec<bf16>,
    x: Vec<bf16>,
}

/// Length of a row.
const K: usize = STEPS * DEPTH + REST;

impl Trial {
    /// Values of several sizes and both signs, in an order that `seed` names.
    fn new(seed: u64) -> Self {
        let mut state = seed;
        let mut next = || {
            // The generator of Knuth's MMIX; its upper bits are the good ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (sign, exponent, mantissa) = (state >> 63, 120 + (state >> 60) % 8, state >> 40 & 0x7F);
            bf16::from_bits((sign << 15 | exponent << 7 | mantissa) as u16)
        };
        let mut side = || (0..ROWS * K).map(|_| next()).collect();
        Self { w: side(), x: side() }
    }

    /// What the products of an output's values add up to without their signs.
    fn absolute(&self, w: usize, x: usize) -> f32 {
        let (w, x) = (&self.w[w * K..][..K], &self.x[x * K..][..K]);
        w.iter().zip(x).map(|(w, x)| (w.to_f32() * x.to_f32()).abs()).sum()
    }

    /// `[row of weights][row of inputs]`, as large products are worked on. `None` if there are no tiles.
    fn all<T: Tiles>(&self) -> Option<Vec<f32>> {
        let mut out = vec![f32::NAN; ROWS * ROWS];
        self.run::<T, 2, 2>((SIDE, SIDE), (0, 0), |w, x, sum| out[w * ROWS + x] = sum).then_some(out)
    }

    fn bits_do_not_depend_on_shape<T: Tiles>(&self, all: &[f32]) -> bool {
        let mut same = true;
        let mut check = |w: usize, x: usize, sum: f32| same &= sum.to_bits() == all[w * ROWS + x].to_bits();
        for first in [0, 5, 16] {
            for columns in [1, 2, 7, SIDE] {
                self.run::<T, 1, 1>((SIDE, columns), (first, 16 - first), &mut check);
                self.run::<T, 2, 1>((3, columns), (first, first), &mut check);
                self.run::<T, 1, 2>((1, columns), (first, 0), &mut check);
                self.run::<T, 2, 2>((8, columns), (first, 0), &mut check);
            }
        }
        same
    }

    /// Tells `out` the sums of `W` tiles of `rows` of weights and `X` tiles of `columns` of inputs, from `first` on; false if there are
    /// no tiles.
    fn run<T: Tiles, const W: usize, const X: usize>(
        &self,
        (rows, columns): (usize, usize),
        first: (usize, usize),
        mut out: impl FnMut(usize, usize, f32),
    ) -> bool {
        let rests: [_; W] = std::array::from_fn(|tile| self.rest(first.0 + tile * rows, rows));
        let x: [_; X] = std::array::from_fn(|tile| self.pairs(first.1 + tile * columns, columns));
        let mut sums = [f32::NAN; SUMS * AREA];
        let block = Block::<W, X> {
            w: std::array::from_fn(|tile| self.w[(first.0 + tile * rows) * K..][..rows * K].as_ptr().cast()),
            w_stride: K * size_of::<bf16>(),
            steps: STEPS,
            rest: Some(rests.each_ref().map(|rest| rest.as_ptr().cast())),
            x: x.each_ref().map(|x| x.as_ptr().cast()),
            columns,
            ahead: [Ahead::NOTHING; W],
        };
        // SAFETY: tiles exist only where they may be used; rows, rests and pairs are as long as the steps.
        unsafe {
            let Some(mut tiles) = T::configure(&shapes(rows, columns)) else { return false };
            block.sums::<Portable, T>(&mut tiles, sums.as_mut_ptr());
        }
        for tile in 0..W * X {
            for place in 0..rows * columns {
                let (row, column) = (place / columns, place % columns);
                let (w, x) = (first.0 + tile / X * rows + row, first.1 + tile % X * columns + column);
                out(w, x, sums[tile * AREA + row * SIDE + column]);
            }
        }
        true
    }

    /// What whole steps leave of some rows of weights.
    fn rest(&self, first: usize, rows: usize) -> Vec<[bf16; ROW_BYTES / 2]> {
        let mut rests = vec![[bf16::ZERO; ROW_BYTES / 2]; rows];
        for (row, rest) in (first..).zip(&mut rests) {
            rest[..REST].copy_from_slice(&self.w[row * K + STEPS * DEPTH..][..REST]);
        }
        rests
    }

    /// `[pair of padded k][column][2]`
    fn pairs(&self, first: usize, columns: usize) -> Vec<bf16> {
        let mut pairs = vec![bf16::ZERO; (STEPS + 1) * DEPTH * columns];
        for column in 0..columns {
            for (k, value) in self.x[(first + column) * K..][..K].iter().enumerate() {
                pairs[(k / 2 * columns + column) * 2 + k % 2] = *value;
            }
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiles::Shapes;

    /// The emulation but for the sums of some tiles, which are a little larger.
    struct Wrong<const KIND: usize> {
        tiles: Emulated,
        narrow: bool,
    }

    const EVERYWHERE: usize = 0;
    const IN_THE_LAST_TILE: usize = 1;
    const IF_NARROW: usize = 2;

    // SAFETY (all functions): passed on.
    impl<const KIND: usize> Tiles for Wrong<KIND> {
        unsafe fn configure(shapes: &Shapes) -> Option<Self> {
            let narrow = shapes.of(0).1 < ROW_BYTES;
            unsafe { Some(Self { tiles: Emulated::configure(shapes)?, narrow }) }
        }
        unsafe fn zero<const TILE: usize>(&mut self) {
            unsafe { self.tiles.zero::<TILE>() }
        }
        unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
            unsafe { self.tiles.load::<TILE>(from, stride) }
        }
        unsafe fn dot_bytes<const C: usize, const A: usize, const B: usize>(&mut self) {
            unsafe { self.tiles.dot_bytes::<C, A, B>() }
        }
        unsafe fn dot_bf16<const C: usize, const A: usize, const B: usize>(&mut self) {
            unsafe { self.tiles.dot_bf16::<C, A, B>() }
        }
        unsafe fn store<const TILE: usize>(&self, to: *mut u8) {
            unsafe { self.tiles.store::<TILE>(to) };
            let to = to.cast::<f32>();
            let sum = unsafe { *to };
            let wrong = match KIND {
                EVERYWHERE => sum * 1.01,
                IN_THE_LAST_TILE if TILE == 3 => f32::from_bits(sum.to_bits() ^ 1),
                IF_NARROW if self.narrow => f32::from_bits(sum.to_bits() ^ 1),
                _ => sum,
            };
            unsafe { *to = wrong };
        }
    }

    #[test]
    fn right_sums_pass_and_wrong_ones_do_not() {
        assert!(sums_are_right::<Emulated>());
        assert!(!sums_are_right::<Wrong<EVERYWHERE>>(), "one sum of each tile is 1 % too large");
        assert!(!sums_are_right::<Wrong<IN_THE_LAST_TILE>>(), "one tile differs by a bit");
        assert!(!sums_are_right::<Wrong<IF_NARROW>>(), "few rows give other bits than many");
        assert!(!sums_are_right::<crate::tiles::NoTiles>());
    }

    /// The emulation gives sums written out in f64.
    #[test]
    fn the_emulation_multiplies() {
        let trial = Trial::new(9);
        for (index, found) in trial.all::<Emulated>().unwrap().into_iter().enumerate() {
            let (w, x) = (&trial.w[index / ROWS * K..][..K], &trial.x[index % ROWS * K..][..K]);
            let exact: f64 = w.iter().zip(x).map(|(w, x)| w.to_f64() * x.to_f64()).sum();
            let most = f64::from(trial.absolute(index / ROWS, index % ROWS) * TOLERANCE);
            assert!((f64::from(found) - exact).abs() <= most, "sum {index} is {found}, not {exact}");
        }
    }
}
