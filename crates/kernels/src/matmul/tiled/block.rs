//! The innermost loop: rows of weights times rows of inputs, both bf16, with the sums in tiles.
//!
//! Weights are the multiplicand A as they lie in the model file, so nothing is packed; inputs are B, pair by pair. The sums of a tile
//! are therefore `[row of weights][row of inputs]`.

#![expect(unsafe_code, reason = "tiles; contracts stand at each function")]

use crate::simd::Simd;
use crate::tiles::{ROW_BYTES, SIDE, Shapes, Tiles};

/// Values of a row that a tile holds.
pub(super) const DEPTH: usize = ROW_BYTES / 2;

/// Tiles of sums that are worked on at a time, at most: two of weights times two of inputs.
pub(super) const SUMS: usize = 4;

/// Floats of a tile of sums.
pub(super) const AREA: usize = SIDE * SIDE;

/// The tiles: sums `[weights][inputs]`, then the two of weights, then the two of inputs.
const W: [usize; 2] = [4, 5];
const X: [usize; 2] = [6, 7];

/// Tiles of `rows` of weights and `columns` rows of inputs.
pub(super) fn shapes(rows: usize, columns: usize) -> Shapes {
    let (sums, w, x) = ((rows, 4 * columns), (rows, ROW_BYTES), (SIDE, 4 * columns));
    Shapes::new([sums, sums, sums, sums, w, w, x, x])
}

/// `W` tiles of weights times `X` tiles of inputs along a segment of `k`.
pub(super) struct Block<const W: usize, const X: usize> {
    /// The first row of each tile, others `w_stride` bytes apart.
    pub(super) w: [*const u8; W],
    pub(super) w_stride: usize,
    /// Whole steps of [`DEPTH`] values.
    pub(super) steps: usize,
    /// What is left after them, filled up with 0 to one step, rows ROW_BYTES apart.
    pub(super) rest: Option<[*const u8; W]>,
    /// `[pair of k][column]` of each tile, padded with 0 to whole steps.
    pub(super) x: [*const u8; X],
    pub(super) columns: usize,
    pub(super) ahead: [Ahead; W],
}

/// Rows whose memory is asked for, a line per step.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) from: *const u8,
    pub(super) stride: usize,
    pub(super) rows: usize,
}

impl Ahead {
    pub(super) const NOTHING: Self = Self { from: std::ptr::null(), stride: 0, rows: 0 };
}

impl<const WS: usize, const XS: usize> Block<WS, XS> {
    /// `to[weights][inputs][row of weights][row of inputs]`, tiles of [`AREA`] floats, of which only what the shapes speak of is written.
    ///
    /// # Safety
    /// The tiles are configured with [`shapes`] of these columns; weights and inputs exist; `to` has room for `WS * XS` tiles.
    #[inline(always)]
    pub(super) unsafe fn sums<S: Simd, T: Tiles>(&self, tiles: &mut T, to: *mut f32) {
        // SAFETY: each step reads ROW_BYTES of each row of weights and a tile of inputs.
        unsafe {
            tiles.zero::<0>();
            tiles.zero::<1>();
            tiles.zero::<2>();
            tiles.zero::<3>();
            for step in 0..self.steps {
                for ahead in &self.ahead {
                    for row in 0..ahead.rows {
                        S::prefetch(ahead.from.wrapping_add(row * ahead.stride + step * ROW_BYTES));
                    }
                }
                self.step(tiles, self.w.map(|w| w.add(step * ROW_BYTES)), self.w_stride, step);
            }
            if let Some(rest) = self.rest {
                self.step(tiles, rest, ROW_BYTES, self.steps);
            }
            tiles.store::<0>(to.cast());
            if XS == 2 {
                tiles.store::<1>(to.add(AREA).cast());
            }
            if WS == 2 {
                tiles.store::<2>(to.add(XS * AREA).cast());
            }
            if WS == 2 && XS == 2 {
                tiles.store::<3>(to.add(3 * AREA).cast());
            }
        }
    }

    /// # Safety
    /// As [`Block::sums`]; the weights of this step are at `w`.
    #[inline(always)]
    unsafe fn step<T: Tiles>(&self, tiles: &mut T, w: [*const u8; WS], w_stride: usize, step: usize) {
        const W0: usize = W[0];
        const W1: usize = W[1];
        const X0: usize = X[0];
        const X1: usize = X[1];
        let stride = 4 * self.columns;
        // SAFETY: passed on.
        unsafe {
            let x = self.x.map(|x| x.add(step * SIDE * stride));
            tiles.load::<W0>(w[0], w_stride);
            tiles.load::<X0>(x[0], stride);
            tiles.dot_bf16::<0, W0, X0>();
            if XS == 2 {
                tiles.load::<X1>(x[XS - 1], stride);
                tiles.dot_bf16::<1, W0, X1>();
            }
            if WS == 2 {
                tiles.load::<W1>(w[WS - 1], w_stride);
                tiles.dot_bf16::<2, W1, X0>();
            }
            if WS == 2 && XS == 2 {
                tiles.dot_bf16::<3, W1, X1>();
            }
        }
    }
}
