//! Tile registers (AMX): products of whole matrices of bytes, sixteen rows by sixteen columns at once.
//!
//! Sums are exact integers, so tiles give the bits that vectors give. Only the five operations of [`Tiles`] differ between the
//! machine's instructions ([`amx`]) and a plain emulation of them; everything built on them is tested with the emulation on any
//! machine. The instructions themselves are compared with the emulation before they are first used.
//!
//! Names and shapes follow the Intel 64 manual: a tile is at most 16 rows of 64 bytes; a multiplicand B holds four neighbouring `k`
//! of a column side by side, which is how packed weights lie in memory anyway.

#![expect(unsafe_code, reason = "raw loads and stores; contracts stand at each function")]

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod emulated;

pub(crate) use emulated::Emulated;

/// Rows of a tile, and columns of a tile of sums.
pub(crate) const SIDE: usize = 16;

/// Bytes of a row of a tile, at most.
pub(crate) const DEPTH_MAX: usize = 64;

/// Bytes from one row to the next of a tile of sums, and of one of weights.
pub(crate) const ROW_BYTES: usize = 64;

/// What the tiles are used for.
pub(crate) const SUMS: [usize; 4] = [0, 1, 2, 3];
pub(crate) const INPUTS: usize = 4;
pub(crate) const WEIGHTS: [usize; 2] = [5, 6];

/// The tile registers of this thread, until dropped.
///
/// # Safety
/// Every function needs a CPU and a process that may use tiles, and tile numbers as configured. A load or store touches as many rows
/// and bytes as the tile has.
pub(crate) trait Tiles: Sized {
    /// Sets the tiles up for inputs of `depth` bytes a row: a multiple of 4, at most [`DEPTH_MAX`]. `None` if there are none.
    unsafe fn configure(depth: usize) -> Option<Self>;
    unsafe fn zero<const TILE: usize>(&mut self);
    /// Rows are `stride` bytes apart.
    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize);
    /// `C[row][column] += A[row][..] . B[..][column]`: signed bytes of `A` times unsigned bytes of `B`.
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self);
    /// Rows are [`ROW_BYTES`] apart.
    unsafe fn store<const TILE: usize>(&self, to: *mut i32);
}

/// The tiles of a level without any.
pub(crate) enum NoTiles {}

// SAFETY (all functions): there is no value to call them with.
impl Tiles for NoTiles {
    unsafe fn configure(_: usize) -> Option<Self> {
        None
    }
    unsafe fn zero<const TILE: usize>(&mut self) {
        match *self {}
    }
    unsafe fn load<const TILE: usize>(&mut self, _: *const u8, _: usize) {
        match *self {}
    }
    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        match *self {}
    }
    unsafe fn store<const TILE: usize>(&self, _: *mut i32) {
        match *self {}
    }
}

/// Shapes of all tiles, in the form that `ldtilecfg` reads (palette 1).
#[repr(C, align(64))]
pub(crate) struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Sums and rows of inputs are SIDE rows; `depth` bytes of an input meet `depth / 4` rows of weights.
    pub(crate) fn new(depth: usize) -> Self {
        assert!(depth.is_multiple_of(4) && (4..=DEPTH_MAX).contains(&depth), "tiles of {depth} bytes a row");
        let mut shapes = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut shape = |tile: usize, rows: usize, bytes: usize| {
            shapes.rows[tile] = rows as u8;
            shapes.row_bytes[tile] = bytes as u16;
        };
        SUMS.into_iter().for_each(|tile| shape(tile, SIDE, ROW_BYTES));
        shape(INPUTS, SIDE, depth);
        WEIGHTS.into_iter().for_each(|tile| shape(tile, depth / 4, ROW_BYTES));
        shapes
    }
}

/// Sixteen rows of inputs, `stride` bytes apart, times `depth * steps` values of two panels of weights:
/// `to[panel][row][column]`.
///
/// # Safety
/// `tiles` are configured for `depth`; inputs and weights have so many values, and `to` room for two tiles.
#[inline(always)]
pub(crate) unsafe fn product<T: Tiles>(
    tiles: &mut T,
    (depth, steps): (usize, usize),
    x: *const i8,
    stride: usize,
    w: [*const u8; 2],
    to: *mut i32,
) {
    const LEFT: usize = SUMS[0];
    const RIGHT: usize = SUMS[1];
    const W_LEFT: usize = WEIGHTS[0];
    const W_RIGHT: usize = WEIGHTS[1];
    // SAFETY: each step reads `depth` values of each row and column; tile numbers are those of `Shapes`.
    unsafe {
        tiles.zero::<LEFT>();
        tiles.zero::<RIGHT>();
        for step in 0..steps {
            tiles.load::<INPUTS>(x.add(step * depth).cast(), stride);
            tiles.load::<W_LEFT>(w[0].add(step * depth * SIDE), ROW_BYTES);
            tiles.dot::<LEFT, INPUTS, W_LEFT>();
            tiles.load::<W_RIGHT>(w[1].add(step * depth * SIDE), ROW_BYTES);
            tiles.dot::<RIGHT, INPUTS, W_RIGHT>();
        }
        tiles.store::<LEFT>(to);
        tiles.store::<RIGHT>(to.add(SIDE * SIDE));
    }
}

/// A product whose sums are known.
pub(crate) struct Sample {
    depth: usize,
    steps: usize,
    /// `[row][k]`
    x: Vec<i8>,
    /// `[panel][k / 4][column][4]`
    w: [Vec<u8>; 2],
}

impl Sample {
    /// Bytes of every value, in an order that `seed` names.
    pub(crate) fn new(seed: u64, depth: usize, steps: usize) -> Self {
        let mut state = seed;
        let mut bytes = |count: usize| -> Vec<u8> {
            let next = || {
                // The generator of Knuth's MMIX; its upper bits are the good ones.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            std::iter::repeat_with(next).take(count).collect()
        };
        let count = depth * steps * SIDE;
        let x = bytes(count).into_iter().map(|byte| byte as i8).collect();
        Self { depth, steps, x, w: [bytes(count), bytes(count)] }
    }

    /// `[panel][row][column]` by these tiles.
    pub(crate) fn run<T: Tiles>(&self) -> Option<Vec<i32>> {
        let (stride, mut out) = (self.depth * self.steps, vec![i32::MIN; 2 * SIDE * SIDE]);
        let w = [self.w[0].as_ptr(), self.w[1].as_ptr()];
        // SAFETY: tiles exist only where they may be used; the sample has these rows and columns, `out` two tiles.
        unsafe {
            let mut tiles = T::configure(self.depth)?;
            product(&mut tiles, (self.depth, self.steps), self.x.as_ptr(), stride, w, out.as_mut_ptr());
        }
        Some(out)
    }

    /// `[panel][row][column]`, written out.
    #[cfg(test)]
    fn plain(&self) -> Vec<i32> {
        let k = self.depth * self.steps;
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

    /// The emulation gives the sums written out, for every depth.
    #[test]
    fn the_emulation_multiplies() {
        for depth in (4..=DEPTH_MAX).step_by(4) {
            let sample = Sample::new(depth as u64, depth, 3);
            assert_eq!(sample.run::<Emulated>(), Some(sample.plain()), "{depth} bytes a row");
        }
    }

    /// So do the instructions, where there are any.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_instructions_multiply() {
        use amx::{Amx, Support};
        match amx::support() {
            Support::Works => {}
            Support::Wrong => panic!("tile instructions give other sums than their emulation"),
            none => return eprintln!("NOT RUN: tile instructions of this machine are {none}"),
        }
        for depth in (4..=DEPTH_MAX).step_by(4) {
            let sample = Sample::new(depth as u64, depth, 3);
            assert_eq!(sample.run::<Amx>(), Some(sample.plain()), "{depth} bytes a row");
        }
    }

    #[test]
    fn shapes_are_as_the_manual_has_them() {
        let shapes = Shapes::new(64);
        // SAFETY: `Shapes` is 64 plain bytes without padding.
        let bytes: [u8; 64] = unsafe { std::mem::transmute(shapes) };
        assert_eq!((bytes[0], bytes[1]), (1, 0), "palette, first row");
        assert_eq!(bytes[16..30], [64, 0].repeat(7), "bytes a row");
        assert_eq!(bytes[48..55], [16; 7], "rows");
        assert!(bytes[2..16].iter().chain(&bytes[30..48]).chain(&bytes[55..]).all(|byte| *byte == 0), "the rest");
    }
}
