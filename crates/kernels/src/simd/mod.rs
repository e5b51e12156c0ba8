//! Vectors of the machine, and the one place where an instruction-set level is chosen.
//!
//! A kernel is written once over [`Simd`] and compiled once per level. [`Isa`] holds a token for its level, and a token can only
//! be had on a CPU that has the instructions, so safe code cannot reach the wrong kernel.

#![expect(unsafe_code, reason = "intrinsics and raw loads; contracts stand at each function")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use portable::Portable;

use std::fmt;

use crate::checksum::{STRIPE, To, eat_stripe};
use crate::tiles::TileUnit;
#[cfg(target_arch = "x86_64")]
use {crate::tiles::amx, avx2::Avx2, avx512::Avx512};

/// Widest vector of any level: buffers padded to this many `f32` can be read in whole vectors.
pub(crate) const MAX_LANES: usize = 16;

/// The instruction-set level that kernels run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Isa {
    vectors: Vectors,
    tiles: TileUnit,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Vectors {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

/// `PDSERVE_ISA` asks for what cannot be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("PDSERVE_ISA is `{found}`, this machine has: {}", .available.join(", "))]
pub struct IsaError {
    pub found: String,
    pub available: Vec<String>,
}

impl Isa {
    /// Plain Rust, on every machine.
    pub const PORTABLE: Isa = Isa { vectors: Vectors::Portable, tiles: TileUnit::None };

    /// Every level that this machine has, slowest first.
    pub fn available() -> Vec<Isa> {
        Self::levels().collect()
    }

    /// Every level that can be named: the emulated one, and those of this machine.
    pub fn all() -> Vec<Isa> {
        Self::names().collect()
    }

    fn names() -> impl Iterator<Item = Isa> {
        std::iter::once_with(Self::emulated).chain(Self::levels())
    }

    /// Looks at a level only when it is asked for: one that is not named is not tried either.
    fn levels() -> impl Iterator<Item = Isa> {
        let plain = Self::vectors().map(|vectors| Isa { vectors, tiles: TileUnit::None });
        plain.chain(std::iter::once_with(Self::amx).flatten())
    }

    fn vectors() -> impl Iterator<Item = Vectors> {
        let levels: &[fn() -> Option<Vectors>] = &[
            || Some(Vectors::Portable),
            #[cfg(target_arch = "x86_64")]
            || Avx2::new().map(Vectors::Avx2),
            #[cfg(target_arch = "x86_64")]
            || Avx512::new().map(Vectors::Avx512),
        ];
        levels.iter().filter_map(|level| level())
    }

    #[cfg(target_arch = "x86_64")]
    fn amx() -> Option<Isa> {
        let vectors = Avx512::new().filter(|_| amx_works()).map(Vectors::Avx512)?;
        Some(Isa { vectors, tiles: TileUnit::Amx })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn amx() -> Option<Isa> {
        None
    }

    /// The arithmetic of AMX on any machine, far slower: the best vectors, and tiles in plain Rust.
    pub fn emulated() -> Isa {
        Isa { vectors: Self::vectors().last().unwrap_or(Vectors::Portable), tiles: TileUnit::Emulated }
    }

    /// The fastest level, or the one that the variable `PDSERVE_ISA` names: `portable`, `avx2`, `avx512`, `amx` or `amx-emulated`.
    pub fn from_env() -> Result<Isa, IsaError> {
        let wanted = std::env::var("PDSERVE_ISA").ok();
        Self::named(wanted.as_deref())
    }

    fn named(wanted: Option<&str>) -> Result<Isa, IsaError> {
        match wanted {
            None | Some("") => Ok(Self::levels().last().unwrap_or(Isa::PORTABLE)),
            Some(name) => Self::names().find(|isa| isa.as_str() == name).ok_or_else(|| IsaError {
                found: name.to_owned(),
                available: Self::names().map(|isa| isa.to_string()).collect(),
            }),
        }
    }

    /// The level, and why it is not a better one, for logs.
    pub fn describe(self) -> String {
        #[cfg(target_arch = "x86_64")]
        if matches!(self.vectors, Vectors::Avx512(_)) && self.tiles == TileUnit::None {
            return format!("{self} (AMX {})", amx::support());
        }
        self.to_string()
    }

    pub fn as_str(self) -> &'static str {
        match (self.tiles, self.vectors) {
            (TileUnit::Emulated, _) => "amx-emulated",
            #[cfg(target_arch = "x86_64")]
            (TileUnit::Amx, _) => "amx",
            (TileUnit::None, Vectors::Portable) => "portable",
            #[cfg(target_arch = "x86_64")]
            (TileUnit::None, Vectors::Avx2(_)) => "avx2",
            #[cfg(target_arch = "x86_64")]
            (TileUnit::None, Vectors::Avx512(_)) => "avx512",
        }
    }

    /// Floats in a vector.
    pub(crate) fn lanes(self) -> usize {
        struct Lanes;
        impl Kernel for Lanes {
            type Output = usize;
            #[inline(always)]
            unsafe fn run<S: Simd>(self) -> usize {
                S::LANES
            }
        }
        self.run(Lanes)
    }

    /// The CPU has AVX2, and this level may use it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx2(self) -> bool {
        matches!(self.vectors, Vectors::Avx2(_) | Vectors::Avx512(_)) && is_x86_feature_detected!("avx2")
    }

    /// The CPU has AVX-512 with integer dot products (VNNI), and this level may use them.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_vnni(self) -> bool {
        matches!(self.vectors, Vectors::Avx512(_)) && is_x86_feature_detected!("avx512vnni")
    }

    /// The tile registers that this level may use.
    pub(crate) fn tiles(self) -> TileUnit {
        self.tiles
    }

    /// Runs `kernel` compiled for this level.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY (all arms): the level's token exists, so the CPU has the instructions; `Kernel` values are built by safe functions of
        // this crate that have checked every bound the kernel relies on.
        match self.vectors {
            Vectors::Portable => unsafe { kernel.run::<portable::Portable>() },
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2(_) => unsafe { avx2::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512(_) => unsafe { avx512::run(kernel) },
        }
    }
}

/// What the level adds to AVX-512: integer dot products, and tiles that work.
#[cfg(target_arch = "x86_64")]
fn amx_works() -> bool {
    is_x86_feature_detected!("avx512vnni") && amx::support() == amx::Support::Works
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A piece of arithmetic with its arguments, written over any level.
pub(crate) trait Kernel {
    type Output;

    /// Mark it `#[inline(always)]`, as everything it calls: only then is it compiled with the level's instructions.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`, and the arguments keep the bounds that the kernel's fields promise.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// A vector of `f32`.
///
/// # Safety
/// Every function needs a CPU with the level's instructions. Loads and stores touch exactly the lanes they name (`LANES`, or
/// `count < LANES` for the `_head` ones, whose other lanes are 0), at any alignment.
pub(crate) trait Simd: Copy {
    type V: Copy;
    const LANES: usize;

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn load_head(from: *const f32, count: usize) -> Self::V;
    unsafe fn load_bf16(from: *const u8) -> Self::V;
    unsafe fn load_bf16_head(from: *const u8, count: usize) -> Self::V;
    unsafe fn load_f16(from: *const u8) -> Self::V;
    unsafe fn load_f16_head(from: *const u8, count: usize) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn store_head(to: *mut f32, v: Self::V, count: usize);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `b` if either is not a number; so `min`.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the level has a fused instruction.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    unsafe fn round(v: Self::V) -> Self::V;
    /// `2^v` for integral `v` in -126..=127.
    unsafe fn exp2_int(v: Self::V) -> Self::V;
    /// Sum of the lanes: lane `i` with `i + LANES/2`, then with `i + LANES/4`, ...
    unsafe fn sum(v: Self::V) -> f32;
    unsafe fn max_lane(v: Self::V) -> f32;

    /// Lane `i` of vector `j` changes places with lane `j` of vector `i`, for the first `LANES` vectors.
    unsafe fn transpose(v: &mut [Self::V; MAX_LANES]);
    /// [`Simd::sum`] of each of the first `LANES` vectors.
    unsafe fn sums(v: &[Self::V; MAX_LANES]) -> Self::V;
    /// The first `count < 2 * LANES` values of two bytes, two in each lane; the others are 0.
    unsafe fn load_pairs_head(from: *const u8, count: usize) -> Self::V;
    /// The lower of the two bf16 values that each lane's bits are.
    unsafe fn low_bf16(pairs: Self::V) -> Self::V;
    /// The upper of the two bf16 values that each lane's bits are.
    unsafe fn high_bf16(pairs: Self::V) -> Self::V;
    /// Asks for the line of memory at `at`, which need not exist, to be brought nearer.
    unsafe fn prefetch(at: *const u8);
    /// Takes `count` stripes at `from` into the lanes of a [`crate::Checksum`], and copies them to where `to` says; if that is far, it
    /// is aligned to a stripe. The secret moves on by 8 bytes with each.
    #[inline(always)]
    unsafe fn eat_stripes(lanes: &mut [u64; 8], secret: *const u8, from: *const u8, to: To, count: usize) {
        for at in 0..count {
            // SAFETY: the caller grants so many stripes, and as much of the secret.
            unsafe {
                let stripe = from.add(at * STRIPE).cast::<[u8; STRIPE]>().read_unaligned();
                let secret = secret.add(8 * at).cast::<[u8; STRIPE]>().read_unaligned();
                if let To::Near(to) | To::Far(to) = to {
                    to.add(at * STRIPE).cast::<[u8; STRIPE]>().write_unaligned(stripe);
                }
                eat_stripe(lanes, &stripe, &secret);
            }
        }
    }

    /// Whatever was copied far can be seen by other threads before what this one does next.
    #[inline(always)]
    unsafe fn settle_far() {}

    /// The first `count` lanes, or all of them.
    #[inline(always)]
    unsafe fn load_upto(from: *const f32, count: usize) -> Self::V {
        // SAFETY: the caller grants `min(count, LANES)` readable floats.
        unsafe { if count >= Self::LANES { Self::load(from) } else { Self::load_head(from, count) } }
    }

    /// The first `count` lanes, or all of them.
    #[inline(always)]
    unsafe fn store_upto(to: *mut f32, v: Self::V, count: usize) {
        // SAFETY: the caller grants `min(count, LANES)` writable floats.
        unsafe { if count >= Self::LANES { Self::store(to, v) } else { Self::store_head(to, v, count) } }
    }

    /// `e^v` to about 2 ulp for `v` up to 88; below -87 it is as good as 0; NaN stays NaN.
    ///
    /// Cody-Waite reduction and the degree-5 polynomial of the Cephes library's `expf`.
    #[inline(always)]
    unsafe fn exp(v: Self::V) -> Self::V {
        // SAFETY: arithmetic only.
        unsafe {
            // In this order of operands, what is not a number stays so.
            let v = Self::min(Self::splat(88.0), Self::max(Self::splat(-87.0), v));
            let n = Self::round(Self::mul(v, Self::splat(std::f32::consts::LOG2_E)));
            let r = Self::mul_add(n, Self::splat(-0.693_359_4), v);
            let r = Self::mul_add(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = Self::mul_add(p, r, Self::splat(c));
            }
            let p = Self::mul_add(Self::mul(p, r), r, Self::add(r, Self::splat(1.0)));
            Self::mul(p, Self::exp2_int(n))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exponentials, sums of multiples, and the largest of sixteen values.
    struct Probe([f32; 16]);

    impl Kernel for Probe {
        type Output = (Vec<f32>, Vec<f32>, f32);
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Self::Output {
            // SAFETY: sixteen floats are at least one vector of every level; vectors and outputs have LANES entries.
            unsafe {
                let vectors: Vec<S::V> =
                    (0..S::LANES).map(|i| S::mul(S::load(self.0.as_ptr()), S::splat(i as f32))).collect();
                let single: Vec<f32> = vectors.iter().map(|v| S::sum(*v)).collect();
                let mut exp = vec![0.0; 16];
                let (mut i, n) = (0, 16);
                while i < n {
                    S::store_upto(exp.as_mut_ptr().add(i), S::exp(S::load_upto(self.0.as_ptr().add(i), n - i)), n - i);
                    i += S::LANES;
                }
                let head = S::load_head(self.0.as_ptr(), 3);
                assert_eq!(
                    S::max_lane(S::sub(head, S::splat(100.0))),
                    self.0[0].max(self.0[1]).max(self.0[2]).max(0.0) - 100.0
                );
                (exp, single, S::max_lane(S::load(self.0.as_ptr())))
            }
        }
    }

    #[test]
    fn every_level_agrees_with_the_standard_library() {
        let values: [f32; 16] = std::array::from_fn(|i| (i as f32 * 37.7) % 23.0 - 15.0);
        for isa in Isa::available() {
            let (exp, sums, max) = isa.run(Probe(values));
            for (value, exp) in values.iter().zip(exp) {
                assert!((exp / value.exp() - 1.0).abs() < 3e-7, "{isa}: exp({value}) = {exp}");
            }
            let lanes = sums.len();
            let plain: f64 = values[..lanes].iter().map(|v| f64::from(*v)).sum();
            assert!((f64::from(sums[1]) - plain).abs() < 1e-4, "{isa}: {} is not {plain}", sums[1]);
            assert_eq!(max, values[..lanes].iter().copied().fold(f32::MIN, f32::max), "{isa}");
        }
    }

    /// Sixteen vectors of counted lanes, transposed.
    struct Transposed;

    impl Kernel for Transposed {
        type Output = Vec<f32>;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Self::Output {
            let counted: Vec<f32> = (0..MAX_LANES * S::LANES).map(|i| i as f32).collect();
            let mut out = vec![0.0; S::LANES * S::LANES];
            // SAFETY: `counted` holds MAX_LANES vectors, `out` LANES of them.
            unsafe {
                let mut v: [S::V; MAX_LANES] = std::array::from_fn(|j| S::load(counted.as_ptr().add(j * S::LANES)));
                S::transpose(&mut v);
                for (j, v) in v.iter().enumerate().take(S::LANES) {
                    S::store(out.as_mut_ptr().add(j * S::LANES), *v);
                }
            }
            out
        }
    }

    #[test]
    fn vectors_are_transposed() {
        for isa in Isa::available() {
            let out = isa.run(Transposed);
            let lanes = out.len().isqrt();
            for (index, value) in out.iter().enumerate() {
                assert_eq!(*value, (index % lanes * lanes + index / lanes) as f32, "{isa}: {index}");
            }
        }
    }

    /// Vectors of counted lanes, summed together and each; then the halves of lanes that hold two bf16 values, whole and as a head.
    struct Folded;

    impl Kernel for Folded {
        type Output = (Vec<f32>, Vec<f32>, [f32; 2], [f32; 2]);
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Self::Output {
            let counted: Vec<f32> = (0..MAX_LANES * S::LANES).map(|i| (i as f32).sqrt()).collect();
            let stored: Vec<u8> = (1..=2 * S::LANES as u16).flat_map(|i| (i << 7).to_le_bytes()).collect();
            let mut sums = vec![0.0; S::LANES];
            // SAFETY: `counted` holds MAX_LANES vectors, `sums` one, `stored` one of pairs.
            unsafe {
                let v: [S::V; MAX_LANES] = std::array::from_fn(|j| S::load(counted.as_ptr().add(j * S::LANES)));
                S::store(sums.as_mut_ptr(), S::sums(&v));
                let each = v.iter().take(S::LANES).map(|v| S::sum(*v)).collect();
                let pairs = S::load(stored.as_ptr().cast());
                let head = S::load_pairs_head(stored.as_ptr(), 3);
                let halves = |pairs| [S::max_lane(S::low_bf16(pairs)), S::max_lane(S::high_bf16(pairs))];
                (sums, each, halves(pairs), halves(head))
            }
        }
    }

    #[test]
    fn sums_are_those_of_each_and_pairs_are_taken_apart() {
        for isa in Isa::available() {
            let (sums, each, whole, head) = isa.run(Folded);
            assert_eq!(sums, each, "{isa}");
            assert!(sums[0] > 0.0 && sums.is_sorted(), "{isa}: {sums:?}");
            let power = |i: u32| f32::from_bits(i << 23);
            assert_eq!(head, [power(3), power(2)], "{isa}");
            assert!(whole[1] == whole[0] * 2.0 && whole[0] > head[0], "{isa}: {whole:?}");
        }
    }

    #[test]
    fn exp_ends_are_tame() {
        struct Ends;
        impl Kernel for Ends {
            type Output = [f32; 4];
            #[inline(always)]
            unsafe fn run<S: Simd>(self) -> [f32; 4] {
                [f32::NEG_INFINITY, 0.0, 1000.0, f32::NAN].map(|v| {
                    let mut lanes = [0.0; MAX_LANES];
                    // SAFETY: a vector has at most MAX_LANES floats.
                    unsafe { S::store(lanes.as_mut_ptr(), S::exp(S::splat(v))) };
                    lanes[0]
                })
            }
        }
        for isa in Isa::available() {
            let [low, one, high, nan] = isa.run(Ends);
            assert!(low < 1e-37 && one == 1.0 && high.is_finite() && nan.is_nan(), "{isa}: {low} {one} {high} {nan}");
        }
    }

    #[test]
    fn a_level_can_be_forced_or_refused() {
        assert_eq!(Isa::named(Some("portable")), Ok(Isa::PORTABLE));
        assert_eq!(Isa::named(None).ok(), Isa::available().last().copied());
        let error = Isa::named(Some("sse9")).unwrap_err().to_string();
        assert!(error.starts_with("PDSERVE_ISA is `sse9`, this machine has: amx-emulated, portable"), "{error}");
        assert_eq!(Isa::named(Some("amx-emulated")).map(|isa| isa.tiles), Ok(TileUnit::Emulated));
    }
}
