//! Tile registers in plain Rust, operation by operation as the manual writes them.

#![expect(unsafe_code, reason = "raw loads and stores; contracts stand at `Tiles`")]

use super::{ROW_BYTES, SIDE, Shapes, Tiles};

const TILES: usize = 8;

/// Eight tiles of 16 rows of 64 bytes, of which a shape says what is used; the rest is 0.
pub(crate) struct Emulated {
    shapes: Shapes,
    tiles: [[[u8; ROW_BYTES]; SIDE]; TILES],
}

impl Emulated {
    /// Rows, and bytes of a row.
    fn shape(&self, tile: usize) -> (usize, usize) {
        (usize::from(self.shapes.rows[tile]), usize::from(self.shapes.row_bytes[tile]))
    }
}

// SAFETY (all functions): see `Tiles`; the shape bounds what is read and written.
impl Tiles for Emulated {
    unsafe fn configure(depth: usize) -> Option<Self> {
        Some(Self { shapes: Shapes::new(depth), tiles: [[[0; ROW_BYTES]; SIDE]; TILES] })
    }

    unsafe fn zero<const TILE: usize>(&mut self) {
        self.tiles[TILE] = [[0; ROW_BYTES]; SIDE];
    }

    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
        let (rows, bytes) = self.shape(TILE);
        self.tiles[TILE] = [[0; ROW_BYTES]; SIDE];
        for (row, to) in self.tiles[TILE].iter_mut().enumerate().take(rows) {
            // SAFETY: the caller grants the tile's rows.
            unsafe { std::ptr::copy_nonoverlapping(from.add(row * stride), to.as_mut_ptr(), bytes) };
        }
    }

    unsafe fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        let ((rows, row_bytes), (a_rows, a_bytes), (b_rows, b_bytes)) = (self.shape(C), self.shape(A), self.shape(B));
        // Otherwise the instruction is undefined.
        assert!(rows == a_rows && row_bytes == b_bytes && a_bytes == 4 * b_rows, "tiles {C}, {A} and {B} do not fit");
        for m in 0..rows {
            for k in 0..b_rows {
                for n in 0..row_bytes / 4 {
                    let product = |i: usize| {
                        i32::from(self.tiles[A][m][4 * k + i] as i8) * i32::from(self.tiles[B][k][4 * n + i])
                    };
                    let sum: i32 = (0..4).map(product).sum();
                    let to = &mut self.tiles[C][m][4 * n..][..4];
                    let old = i32::from_le_bytes([to[0], to[1], to[2], to[3]]);
                    to.copy_from_slice(&old.wrapping_add(sum).to_le_bytes());
                }
            }
        }
    }

    unsafe fn store<const TILE: usize>(&self, to: *mut i32) {
        let (rows, bytes) = self.shape(TILE);
        for (row, from) in self.tiles[TILE].iter().enumerate().take(rows) {
            // SAFETY: the caller grants the tile's rows.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.cast::<u8>().add(row * ROW_BYTES), bytes) };
        }
    }
}
