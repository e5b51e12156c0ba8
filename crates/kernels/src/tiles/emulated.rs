//! Tile registers in plain Rust, operation by operation as the manual writes them.

#![expect(unsafe_code, reason = "raw loads and stores; contracts stand at `Tiles`")]

use super::{COUNT, ROW_BYTES, SIDE, Shapes, Tiles};

/// Eight tiles of 16 rows of 64 bytes, of which a shape says what is used; the rest is 0.
pub(crate) struct Emulated {
    shapes: Shapes,
    tiles: [[[u8; ROW_BYTES]; SIDE]; COUNT],
}

/// A tile's values at even places of its rows, and those at odd ones.
type Halves = [[[f32; SIDE]; SIDE]; 2];

impl Emulated {
    /// Panics where the instruction is undefined.
    fn check(&self, c: usize, a: usize, b: usize) {
        let ((rows, row_bytes), (a_rows, a_bytes)) = (self.shapes.of(c), self.shapes.of(a));
        let (b_rows, b_bytes) = self.shapes.of(b);
        assert!(rows == a_rows && row_bytes == b_bytes && a_bytes == 4 * b_rows, "tiles {c}, {a} and {b} do not fit");
        assert!(c != a && a != b && c != b, "tiles {c}, {a} and {b} are not three");
    }

    /// bf16 values as f32, those too small for normal numbers as 0.
    #[inline(always)]
    fn halves(&self, tile: usize) -> Halves {
        let mut halves = [[[0.0; SIDE]; SIDE]; 2];
        for (row, bytes) in self.tiles[tile].iter().enumerate() {
            for (at, pair) in bytes.chunks_exact(4).enumerate() {
                halves[0][row][at] = normal(f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16));
                halves[1][row][at] = normal(f32::from_bits(u32::from(u16::from_le_bytes([pair[2], pair[3]])) << 16));
            }
        }
        halves
    }
}

/// The value, or 0 with its sign if it is too small for a normal number.
#[inline(always)]
fn normal(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(value) } else { value }
}

// SAFETY (all functions): see `Tiles`; the shape bounds what is read and written.
impl Tiles for Emulated {
    unsafe fn configure(shapes: &Shapes) -> Option<Self> {
        Some(Self { shapes: *shapes, tiles: [[[0; ROW_BYTES]; SIDE]; COUNT] })
    }

    unsafe fn zero<const TILE: usize>(&mut self) {
        self.tiles[TILE] = [[0; ROW_BYTES]; SIDE];
    }

    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
        let (rows, bytes) = self.shapes.of(TILE);
        self.tiles[TILE] = [[0; ROW_BYTES]; SIDE];
        for (row, to) in self.tiles[TILE].iter_mut().enumerate().take(rows) {
            // SAFETY: the caller grants the tile's rows.
            unsafe { std::ptr::copy_nonoverlapping(from.add(row * stride), to.as_mut_ptr(), bytes) };
        }
    }

    unsafe fn dot_bytes<const C: usize, const A: usize, const B: usize>(&mut self) {
        self.check(C, A, B);
        let ((rows, row_bytes), (b_rows, _)) = (self.shapes.of(C), self.shapes.of(B));
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

    /// Products at even and at odd places are summed apart, each rounded once with its sum; then the two are added, and then what was
    /// there. What lies outside of the shapes is 0 in `A` or `B`, and is never stored.
    #[inline(always)]
    unsafe fn dot_bf16<const C: usize, const A: usize, const B: usize>(&mut self) {
        self.check(C, A, B);
        let (a, b) = (self.halves(A), self.halves(B));
        for (m, row) in self.tiles[C].iter_mut().enumerate() {
            let mut sums = [[0.0; SIDE]; 2];
            for k in 0..SIDE {
                for (half, sums) in sums.iter_mut().enumerate() {
                    for (sum, b) in sums.iter_mut().zip(&b[half][k]) {
                        *sum = normal(a[half][m][k].mul_add(*b, *sum));
                    }
                }
            }
            for (n, to) in row.chunks_exact_mut(4).enumerate() {
                let old = normal(f32::from_le_bytes([to[0], to[1], to[2], to[3]]));
                let sum = normal(old + normal(sums[0][n] + sums[1][n]));
                to.copy_from_slice(&sum.to_le_bytes());
            }
        }
    }

    unsafe fn store<const TILE: usize>(&self, to: *mut u8) {
        let (rows, bytes) = self.shapes.of(TILE);
        for (row, from) in self.tiles[TILE].iter().enumerate().take(rows) {
            // SAFETY: the caller grants the tile's rows.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.add(row * ROW_BYTES), bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// One sum of eight pairs, of which only some are not 0: the order and the roundings that the manual writes.
    #[test]
    fn pairs_are_summed_as_the_manual_has_it() {
        let sum = |start: f32, a: &[f32], b: &[f32]| {
            let stored = |values: &[f32]| {
                let mut bytes: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
                bytes.resize(32, 0);
                bytes
            };
            let (a, b, mut out) = (stored(a), stored(b), [0; ROW_BYTES]);
            // SAFETY: one row of 32 bytes, eight of one pair, and one sum.
            unsafe {
                let mut tiles = Emulated::configure(&Shapes::new([
                    (1, 4),
                    (1, 32),
                    (8, 4),
                    (0, 0),
                    (0, 0),
                    (0, 0),
                    (0, 0),
                    (0, 0),
                ]))
                .unwrap();
                tiles.load::<0>(start.to_le_bytes().as_ptr(), 4);
                tiles.load::<1>(a.as_ptr(), 32);
                tiles.load::<2>(b.as_ptr(), 4);
                tiles.dot_bf16::<0, 1, 2>();
                tiles.store::<0>(out.as_mut_ptr());
            }
            f32::from_le_bytes([out[0], out[1], out[2], out[3]])
        };
        assert_eq!(sum(0.5, &[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]), 70.5);
        let (large, ulp) = ((1u32 << 24) as f32, 1.0);
        assert_eq!(
            sum(0.0, &[large, ulp, ulp, 0.0], &[1.0; 4]),
            large,
            "even places: 1 is lost; with the odd ones: too"
        );
        assert_eq!(sum(0.0, &[large, ulp, 0.0, ulp], &[1.0; 4]), large + 2.0, "odd places are summed apart");
        assert_eq!(sum(-large, &[large, ulp], &[1.0; 2]), 0.0, "what was there comes last");
        let tiny = f32::MIN_POSITIVE;
        assert_eq!(sum(0.0, &[tiny / 2.0], &[2.0]), 0.0, "inputs below normal numbers are 0");
        assert_eq!(sum(0.0, &[tiny], &[0.5]), 0.0, "so are sums");
        assert_eq!(sum(0.0, &[tiny], &[1.0]), tiny);
        assert!(sum(0.0, &[f32::INFINITY, 1.0], &[0.0, 1.0]).is_nan());
    }
}
