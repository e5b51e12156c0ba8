//! Products of bytes by tile registers. Sums are exact integers, so tiles give the bits that vectors give.

#![expect(unsafe_code, reason = "tiles; contracts stand at each function")]

use crate::tiles::{Emulated, ROW_BYTES, SIDE, Shapes, Tiles};

/// Values of a row of inputs in a tile: half a group.
pub(crate) const DEPTH: usize = ROW_BYTES;

/// What the tiles are used for.
pub(crate) const SUMS: [usize; 4] = [0, 1, 2, 3];
pub(crate) const INPUTS: usize = 4;
pub(crate) const WEIGHTS: [usize; 2] = [5, 6];

/// Sums and rows of inputs are SIDE rows; the values of an input meet a fourth as many rows of weights, which is how packed weights
/// lie in memory anyway.
pub(crate) fn shapes() -> Shapes {
    let (sums, inputs, weights) = ((SIDE, ROW_BYTES), (SIDE, DEPTH), (DEPTH / 4, ROW_BYTES));
    Shapes::new([sums, sums, sums, sums, inputs, weights, weights, (0, 0)])
}

/// Sixteen rows of inputs, `stride` bytes apart, times `DEPTH * steps` values of two panels of weights:
/// `to[panel][row][column]`.
///
/// # Safety
/// `tiles` are configured by [`shapes`]; inputs and weights have so many values, and `to` room for two tiles.
#[inline(always)]
pub(crate) unsafe fn product<T: Tiles>(
    tiles: &mut T,
    steps: usize,
    x: *const i8,
    stride: usize,
    w: [*const u8; 2],
    to: *mut i32,
) {
    const LEFT: usize = SUMS[0];
    const RIGHT: usize = SUMS[1];
    const W_LEFT: usize = WEIGHTS[0];
    const W_RIGHT: usize = WEIGHTS[1];
    // SAFETY: each step reads `DEPTH` values of each row and column; tile numbers are those of `shapes`.
    unsafe {
        tiles.zero::<LEFT>();
        tiles.zero::<RIGHT>();
        for step in 0..steps {
            tiles.load::<INPUTS>(x.add(step * DEPTH).cast(), stride);
            tiles.load::<W_LEFT>(w[0].add(step * DEPTH * SIDE), ROW_BYTES);
            tiles.dot_bytes::<LEFT, INPUTS, W_LEFT>();
            tiles.load::<W_RIGHT>(w[1].add(step * DEPTH * SIDE), ROW_BYTES);
            tiles.dot_bytes::<RIGHT, INPUTS, W_RIGHT>();
        }
        tiles.store::<LEFT>(to.cast());
        tiles.store::<RIGHT>(to.add(SIDE * SIDE).cast());
    }
}

/// Products of some random bytes by these tiles equal those of the emulation.
#[cfg(target_arch = "x86_64")]
pub(crate) fn sums_are_right<T: Tiles>() -> bool {
    (1..=4).all(|seed| {
        let sample = Sample::new(seed, seed as usize);
        sample.run::<T>() == sample.run::<Emulated>()
    })
}

/// A product whose sums are known.
struct Sample {
    steps: usize,
    /// `[row][k]`
    x: Vec<i8>,
    /// `[panel][k / 4][column][4]`
    w: [Vec<u8>; 2],
}

impl Sample {
    /// Bytes of every value, in an order that `seed` names.
    fn new(seed: u64, steps: usize) -> Self {
        let mut state = seed;
        let mut bytes = |count: usize| -> Vec<u8> {
            let next = || {
                // The generator of Knuth's MMIX; its upper bits are the good ones.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            std::iter::repeat_with(next).take(count).collect()
        };
        let count = DEPTH * steps * SIDE;
        let x = bytes(count).into_iter().map(|byte| byte as i8).collect();
        Self { steps, x, w: [bytes(count), bytes(count)] }
    }

    /// `[panel][row][column]` by these tiles.
    fn run<T: Tiles>(&self) -> Option<Vec<i32>> {
        let (stride, mut out) = (DEPTH * self.steps, vec![i32::MIN; 2 * SIDE * SIDE]);
        let w = [self.w[0].as_ptr(), self.w[1].as_ptr()];
        // SAFETY: tiles exist only where they may be used; the sample has these rows and columns, `out` two tiles.
        unsafe {
            let mut tiles = T::configure(&shapes())?;
            product(&mut tiles, self.steps, self.x.as_ptr(), stride, w, out.as_mut_ptr());
        }
        Some(out)
    }

    /// `[panel][row][column]`, written out.
    #[cfg(test)]
    fn plain(&self) -> Vec<i32> {
        let k = DEPTH * self.steps;
        let value = |panel: usize, row: usize, column: usize| {
            let w = |at: usize| i32::from(self.w[panel][(at / 4 * SIDE + column) * 4 + at % 4]);
            (0..k).map(|at| i32::from(self.x[row * k + at]) * w(at)).sum()
        };
        (0..2 * SIDE * SIDE).map(|i| value(i / SIDE / SIDE, i / SIDE % SIDE, i % SIDE)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The emulation gives the sums written out.
    #[test]
    fn the_emulation_multiplies() {
        for steps in 1..=4 {
            let sample = Sample::new(steps as u64, steps);
            assert_eq!(sample.run::<Emulated>(), Some(sample.plain()), "{steps} steps");
        }
    }

    /// So do the instructions, where there are any.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_instructions_multiply() {
        use crate::tiles::amx::{self, Amx, Support};
        match amx::support() {
            Support::Works => {}
            Support::Wrong => panic!("tile instructions give other sums than their emulation"),
            none => return eprintln!("NOT RUN: tile instructions of this machine are {none}"),
        }
        for steps in 1..=4 {
            let sample = Sample::new(steps as u64, steps);
            assert_eq!(sample.run::<Amx>(), Some(sample.plain()), "{steps} steps");
        }
    }
}
