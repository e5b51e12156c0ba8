//! Tile registers (AMX): products of whole matrices, sixteen rows by sixteen columns at once.
//!
//! Only the six operations of [`Tiles`] differ between the machine's instructions ([`amx`]) and a plain emulation of them; everything
//! built on them is tested with the emulation on any machine. The instructions are compared with the emulation before they are first
//! used.
//!
//! Names and shapes follow the Intel 64 manual: a tile is at most 16 rows of 64 bytes; a multiplicand B holds the four bytes, or the
//! two bf16 values, of neighbouring `k` of a column side by side.

#![expect(unsafe_code, reason = "raw loads and stores; contracts stand at each function")]

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod emulated;

use std::marker::PhantomData;

pub(crate) use emulated::Emulated;

use crate::Isa;
use crate::simd::{Kernel, Simd};

/// Rows of a tile, and columns of a tile of sums, at most.
pub(crate) const SIDE: usize = 16;

/// Bytes of a row of a tile, at most; and from one row to the next of a tile that is stored.
pub(crate) const ROW_BYTES: usize = 64;

/// Tiles that there are.
const COUNT: usize = 8;

/// The tile registers of this thread, until dropped; only one value at a time.
///
/// # Safety
/// Every function needs a CPU and a process that may use tiles, and tile numbers below [`COUNT`] that the shapes speak of. A load or
/// store touches as many rows and bytes as the tile has.
pub(crate) trait Tiles: Sized {
    /// Sets the tiles up. `None` if there are none.
    unsafe fn configure(shapes: &Shapes) -> Option<Self>;
    unsafe fn zero<const TILE: usize>(&mut self);
    /// Rows are `stride` bytes apart.
    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize);
    /// `C[row][column] += A[row][..] . B[..][column]`: signed bytes of `A` times unsigned bytes of `B`, in whole numbers.
    unsafe fn dot_bytes<const C: usize, const A: usize, const B: usize>(&mut self);
    /// The same for bf16 values, in f32. The bits of an element depend on its row of `A` and its column of `B` only.
    unsafe fn dot_bf16<const C: usize, const A: usize, const B: usize>(&mut self);
    /// Rows are [`ROW_BYTES`] apart.
    unsafe fn store<const TILE: usize>(&self, to: *mut u8);
}

/// The tiles of a level without any.
pub(crate) enum NoTiles {}

// SAFETY (all functions): there is no value to call them with.
impl Tiles for NoTiles {
    unsafe fn configure(_: &Shapes) -> Option<Self> {
        None
    }
    unsafe fn zero<const TILE: usize>(&mut self) {
        match *self {}
    }
    unsafe fn load<const TILE: usize>(&mut self, _: *const u8, _: usize) {
        match *self {}
    }
    unsafe fn dot_bytes<const C: usize, const A: usize, const B: usize>(&mut self) {
        match *self {}
    }
    unsafe fn dot_bf16<const C: usize, const A: usize, const B: usize>(&mut self) {
        match *self {}
    }
    unsafe fn store<const TILE: usize>(&self, _: *mut u8) {
        match *self {}
    }
}

/// Which tiles a level has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TileUnit {
    None,
    /// The machine's, which work.
    #[cfg(target_arch = "x86_64")]
    Amx,
    Emulated,
}

/// A piece of arithmetic with its arguments, written over any level and any tiles.
pub(crate) trait TileKernel {
    type Output;

    /// Mark it `#[inline(always)]`, as everything it calls.
    ///
    /// # Safety
    /// The CPU has the instructions of `S` and the tiles `T`, and the arguments keep the bounds that the kernel's fields promise.
    unsafe fn run<S: Simd, T: Tiles>(self) -> Self::Output;
}

/// Runs `kernel` with the vectors and the tiles of `isa`.
pub(crate) fn run<K: TileKernel>(isa: Isa, kernel: K) -> K::Output {
    match isa.tiles() {
        TileUnit::None => isa.run(With::<K, NoTiles>(kernel, PhantomData)),
        #[cfg(target_arch = "x86_64")]
        TileUnit::Amx => isa.run(With::<K, amx::Amx>(kernel, PhantomData)),
        TileUnit::Emulated => isa.run(With::<K, Emulated>(kernel, PhantomData)),
    }
}

struct With<K, T>(K, PhantomData<T>);

impl<K: TileKernel, T: Tiles> Kernel for With<K, T> {
    type Output = K::Output;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> K::Output {
        // SAFETY: `run` above has chosen tiles that the level has; the rest is passed on.
        unsafe { self.0.run::<S, T>() }
    }
}

/// Shapes of all tiles, in the form that `ldtilecfg` reads (palette 1).
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Rows of each tile and bytes of its rows, both 0 if it is not used. Panics if a tile is larger than there are, or its rows are
    /// not whole sums.
    pub(crate) fn new(tiles: [(usize, usize); COUNT]) -> Self {
        let mut shapes = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (tile, (rows, bytes)) in tiles.into_iter().enumerate() {
            let fits = rows <= SIDE && bytes <= ROW_BYTES && bytes.is_multiple_of(4) && (rows == 0) == (bytes == 0);
            assert!(fits, "tile {tile} of {rows} rows of {bytes} bytes");
            shapes.rows[tile] = rows as u8;
            shapes.row_bytes[tile] = bytes as u16;
        }
        shapes
    }

    /// Rows, and bytes of a row.
    pub(crate) fn of(&self, tile: usize) -> (usize, usize) {
        (usize::from(self.rows[tile]), usize::from(self.row_bytes[tile]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_as_the_manual_has_them() {
        let shapes = Shapes::new([(16, 64), (15, 60), (14, 56), (0, 0), (1, 4), (2, 8), (3, 12), (4, 16)]);
        // SAFETY: `Shapes` is 64 plain bytes without padding.
        let bytes: [u8; 64] = unsafe { std::mem::transmute(shapes) };
        assert_eq!((bytes[0], bytes[1]), (1, 0), "palette, first row");
        assert_eq!(
            bytes[16..32],
            [64, 0, 60, 0, 56, 0, 0, 0, 4, 0, 8, 0, 12, 0, 16, 0],
            "bytes a row, of two bytes each"
        );
        assert_eq!(bytes[48..56], [16, 15, 14, 0, 1, 2, 3, 4], "rows");
        assert!(bytes[2..16].iter().chain(&bytes[32..48]).chain(&bytes[56..]).all(|byte| *byte == 0), "reserved");
    }

    #[test]
    #[should_panic(expected = "tile 2 of 16 rows of 0 bytes")]
    fn what_the_instruction_would_refuse_is_refused() {
        let mut tiles = [(16, 64); COUNT];
        tiles[2] = (16, 0);
        Shapes::new(tiles);
    }
}
