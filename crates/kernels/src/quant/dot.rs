//! Integer vectors of the machine: sixteen columns at once, whatever the width of its registers; and its tiles, if it has any.

#![expect(unsafe_code, reason = "intrinsics and raw loads; contracts stand at each function")]

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
#[cfg(target_arch = "x86_64")]
mod vnni;

use portable::Portable;

use super::LANES;
use crate::Isa;
use crate::tiles::{Emulated, NoTiles, TileUnit, Tiles};

/// Multiplications in one [`Dot::dot`].
pub(crate) const PRODUCTS: usize = 4 * LANES;

/// Arithmetic on sixteen columns. All levels give the same bits.
///
/// # Safety
/// Every function needs a CPU with the level's instructions; loads and stores touch exactly the bytes they name, at any alignment.
pub(crate) trait Dot: Copy {
    /// Four values of each column: `[column][4]`, unsigned.
    type Bytes: Copy;
    /// A 32-bit sum per column.
    type Ints: Copy;
    /// Sums of products with half bytes over a quarter of a group.
    type HalfSums: Copy;
    /// Steps of sixteen columns, for sums of half bytes.
    type Factors: Copy;
    /// An `f32` per column.
    type Floats: Copy;

    /// Most rows worked on together.
    const TILE_ROWS: usize;
    /// Sums that registers hold beside what is multiplied, enough of them that none waits for itself.
    const CHAINS: usize;
    /// From so many rows on bytes are made of half bytes once for all of them, where every tile of rows would do it again.
    const APART: usize;

    /// 64 bytes as they are.
    unsafe fn bytes(from: *const u8) -> Self::Bytes;
    /// The lower and the upper halves of 64 bytes.
    unsafe fn nibbles(from: *const u8) -> [Self::Bytes; 2];
    /// The steps of sixteen columns, -15 to 15, for [`Dot::multiples`].
    type Steps: Copy;
    unsafe fn steps(from: *const i8) -> Self::Steps;
    /// `(half - HALF_OFFSET) * step + OFFSET`
    unsafe fn multiples(halves: Self::Bytes, steps: Self::Steps) -> Self::Bytes;
    unsafe fn store_bytes(to: *mut u8, v: Self::Bytes);
    /// Sixteen values, each with `plus` added.
    unsafe fn ints_plus(from: *const i32, plus: i32) -> Self::Ints;
    /// A sum that begins with `correction`, which makes up for the offset of all its weights: `-OFFSET * sum of x`.
    unsafe fn start(correction: i32) -> Self::Ints;
    /// `sum[column] += w[column][0..4] . x[0..4]`
    unsafe fn dot(sum: Self::Ints, w: Self::Bytes, x: *const i8) -> Self::Ints;
    /// As [`Dot::start`] for [`Dot::dot_halves`], with HALF_OFFSET.
    unsafe fn half_start(correction: i32) -> Self::HalfSums;
    /// As [`Dot::dot`] with half bytes, for at most 32 inputs in all.
    unsafe fn dot_halves(sum: Self::HalfSums, w: Self::Bytes, x: *const i8) -> Self::HalfSums;
    /// Sixteen steps.
    unsafe fn factors(from: *const i8) -> Self::Factors;
    /// `whole + sum * factor`, exact below 2^24, as sums of a group are.
    unsafe fn add_multiple(whole: Self::Floats, sum: Self::HalfSums, factors: Self::Factors) -> Self::Floats;
    unsafe fn zero() -> Self::Floats;
    /// Sixteen `f32` values.
    unsafe fn floats(from: *const f32) -> Self::Floats;
    /// Sixteen bf16 values.
    unsafe fn scales(from: *const u8) -> Self::Floats;
    /// Exact below 2^24, as sums of a group are.
    unsafe fn converted(ints: Self::Ints) -> Self::Floats;
    /// `sum + (whole * w) * x`, each operation rounded on its own.
    unsafe fn add_scaled(sum: Self::Floats, whole: Self::Floats, w: Self::Floats, x: f32) -> Self::Floats;
    unsafe fn store(to: *mut f32, v: Self::Floats);
    /// Asks for the line of memory at `at`, which need not exist.
    unsafe fn prefetch(at: *const u8);
    /// The same for a line that is going to be written.
    unsafe fn prefetch_write(at: *const u8);
}

/// Arithmetic with its arguments, written over any level.
pub(crate) trait DotKernel {
    type Output;

    /// Mark it `#[inline(always)]`, as everything it calls.
    ///
    /// # Safety
    /// The CPU has the instructions of `D` and the tiles `T`, and the arguments keep the bounds that the kernel's fields promise.
    unsafe fn run<D: Dot, T: Tiles>(self) -> Self::Output;
}

/// Runs `kernel` compiled for the best integer instructions of `isa`.
pub(crate) fn run<K: DotKernel>(isa: Isa, kernel: K) -> K::Output {
    // SAFETY (all arms): `isa` vouches for the instructions; `DotKernel` values are built by safe functions of this crate that have
    // checked every bound the kernel relies on.
    match isa.tiles() {
        #[cfg(target_arch = "x86_64")]
        TileUnit::Amx => unsafe { vnni::run::<K, crate::tiles::amx::Amx>(kernel) },
        #[cfg(target_arch = "x86_64")]
        TileUnit::None if isa.has_vnni() => unsafe { vnni::run::<K, NoTiles>(kernel) },
        #[cfg(target_arch = "x86_64")]
        TileUnit::None if isa.has_avx2() => unsafe { avx2::run(kernel) },
        TileUnit::None => unsafe { kernel.run::<Portable, NoTiles>() },
        TileUnit::Emulated => unsafe { kernel.run::<Portable, Emulated>() },
    }
}
