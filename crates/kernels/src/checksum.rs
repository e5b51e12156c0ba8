//! XXH3-64 of bytes that lie in stretches, at the speed of memory, and of a copy while it is made.
//!
//! The same function as the `xxhash-rust` crate's (xxHash specification, XXH3). That one chooses its vectors when it is compiled, and for
//! plain x86-64 it takes longer than copying; this one takes what the machine has. Input beyond [`SHORT`] bytes is eaten in stripes; the
//! last 1 to 64 bytes are held back, because the end of the input is treated differently.

#![expect(unsafe_code, reason = "vector loads and stores within stretches that the caller grants")]

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::simd::{Isa, Kernel, Simd};

pub(crate) const STRIPE: usize = 64;
/// After so many stripes the lanes are scrambled.
const STRIPES: usize = 16;
/// Longest input for which the specification has other formulas.
const SHORT: usize = 240;
/// Offsets into the secret: of the scramble, of the last stripe, of the merge.
const SCRAMBLE_SECRET: usize = 128;
const LAST_SECRET: usize = 121;
const MERGE_SECRET: usize = 11;

/// So far ahead of what is eaten memory is asked for: the processor's own prefetching ends with each page. It makes a copy from memory
/// to memory up to a third faster.
pub(crate) const AHEAD: usize = 2048;
/// From so many stripes on a copy may go past the caches: for fewer, waiting for memory at the end costs more than it saves.
const FAR_STRIPES: usize = 32;

const PRIME32: [u64; 3] = [0x9E37_79B1, 0x85EB_CA77, 0xC2B2_AE3D];
const PRIME64: [u64; 5] =
    [0x9E37_79B1_85EB_CA87, 0xC2B2_AE3D_27D4_EB4F, 0x1656_67B1_9E37_79F9, 0x85EB_CA77_C2B2_AE63, 0x27D4_EB2F_1656_67C5];

/// The default secret of the specification, as little-endian words.
const SECRET: [u64; 24] = [
    0xbe4b_a423_396c_feb8,
    0x1cad_21f7_2c81_017c,
    0xdb97_9083_e96d_d4de,
    0x1f67_b3b7_a4a4_4072,
    0x78e5_c0cc_4ee6_79cb,
    0x2172_ffcc_7dd0_5a82,
    0x8e24_43f7_7446_08b8,
    0x4c26_3a81_e690_35e0,
    0xcb00_c391_bb52_283c,
    0xa32e_531b_8b65_d088,
    0x4ef9_0da2_9748_6471,
    0xd8ac_dea9_46ef_1938,
    0x3f34_9ce3_3f76_faa8,
    0x1d4f_0bc7_c7bb_dcf9,
    0x3159_b4cd_4be0_518a,
    0x6473_78d9_c97e_9fc8,
    0xc3eb_d334_83ac_c5ea,
    0xeb63_13fa_ffa0_81c5,
    0x49da_f0b7_51dd_0d17,
    0x9e68_d429_2655_16d3,
    0xfca1_477d_58be_162b,
    0xce31_d07a_d1b8_f88f,
    0x2804_1695_8f3a_cb45,
    0x7e40_4bbb_cafb_d7af,
];

/// A checksum in the making.
pub struct Checksum {
    isa: Isa,
    seed: u64,
    secret: Secret,
    lanes: [u64; 8],
    /// Stripes since the last scramble.
    stripes: usize,
    bytes: u64,
    /// The input's beginning, in case there will be no more.
    short: [u8; SHORT],
    /// The stripe that was eaten last, then up to 64 bytes that were not.
    tail: [u8; 2 * STRIPE],
    held: usize,
}

/// Where bytes are copied while they are added.
#[derive(Clone, Copy)]
pub(crate) enum To {
    Nowhere,
    /// For who reads them at once: the copy stays in the caches.
    Near(*mut u8),
    /// For who reads them later: past the caches, so that memory need not be read before it is written over.
    Far(*mut u8),
}

impl To {
    /// `offset` bytes further.
    ///
    /// # Safety
    /// There are as many.
    #[inline(always)]
    pub(crate) unsafe fn add(self, offset: usize) -> To {
        // SAFETY: passed on.
        unsafe {
            match self {
                To::Nowhere => To::Nowhere,
                To::Near(to) => To::Near(to.add(offset)),
                To::Far(to) => To::Far(to.add(offset)),
            }
        }
    }

    fn pointer(self) -> Option<*mut u8> {
        match self {
            To::Nowhere => None,
            To::Near(to) | To::Far(to) => Some(to),
        }
    }

    /// Past the caches only where that is possible and worth it: whole lines, and some of them.
    fn for_stripes(self, count: usize) -> To {
        match self {
            To::Far(to) if count < FAR_STRIPES || !to.cast::<Line>().is_aligned() => To::Near(to),
            to => to,
        }
    }
}

/// What the processor moves between caches and memory.
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "only the alignment counts")] [u8; STRIPE]);

/// The secret with the seed worked in.
#[derive(Clone, Copy)]
pub(crate) struct Secret([u8; 192]);

impl Secret {
    fn new(seed: u64) -> Self {
        let mut secret = [0; 192];
        for (at, (to, word)) in secret.chunks_exact_mut(8).zip(SECRET).enumerate() {
            let word = if at % 2 == 0 { word.wrapping_add(seed) } else { word.wrapping_sub(seed) };
            to.copy_from_slice(&word.to_le_bytes());
        }
        Self(secret)
    }
}

impl Checksum {
    /// Of nothing yet.
    pub fn new(isa: Isa, seed: u64) -> Self {
        let lanes = [PRIME32[2], PRIME64[0], PRIME64[1], PRIME64[2], PRIME64[3], PRIME32[1], PRIME64[4], PRIME32[0]];
        let (short, tail) = ([0; SHORT], [0; 2 * STRIPE]);
        Self { isa, seed, secret: Secret::new(seed), lanes, stripes: 0, bytes: 0, short, tail, held: 0 }
    }

    /// Adds the next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        // SAFETY: a slice can be read.
        unsafe { self.add_raw(bytes.as_ptr(), To::Nowhere, bytes.len()) }
    }

    /// Adds the next `len` bytes, which lie at `from`, and copies them to where `to` says.
    ///
    /// # Safety
    /// `len` bytes at `from` can be read and, at `to`, written; the two do not overlap.
    pub(crate) unsafe fn add_raw(&mut self, from: *const u8, to: To, len: usize) {
        let mut rest = Stretch { from, to, len };
        let start = (self.bytes as usize).min(SHORT);
        self.bytes += len as u64;
        // SAFETY: `take` hands out no more than the stretch has; whatever is kept of it fits where it is kept.
        unsafe {
            let short = &mut self.short[start..];
            std::ptr::copy_nonoverlapping(from, short.as_mut_ptr(), len.min(short.len()));
            if self.held > 0 {
                let count = rest.len.min(STRIPE - self.held);
                std::ptr::copy_nonoverlapping(rest.take(count), self.tail.as_mut_ptr().add(STRIPE + self.held), count);
                self.held += count;
            }
            if rest.len == 0 {
                return;
            }
            // More follows what is held: it is not the end.
            if self.held == STRIPE {
                self.eat(self.tail[STRIPE..].as_ptr(), To::Nowhere, 1);
                self.tail.copy_within(STRIPE.., 0);
            }
            let whole = (rest.len - 1) / STRIPE;
            if whole > 0 {
                self.eat(rest.from, rest.to, whole);
                let last = rest.skip(whole * STRIPE).sub(STRIPE);
                std::ptr::copy_nonoverlapping(last, self.tail.as_mut_ptr(), STRIPE);
            }
            self.held = rest.len;
            let count = rest.len;
            std::ptr::copy_nonoverlapping(rest.take(count), self.tail.as_mut_ptr().add(STRIPE), count);
        }
    }

    /// The checksum of all that was added.
    pub fn finish(&self) -> u64 {
        if self.bytes <= SHORT as u64 {
            return xxh3_64_with_seed(&self.short[..self.bytes as usize], self.seed);
        }
        let mut lanes = self.lanes;
        eat_stripe(&mut lanes, &self.tail[self.held..], &self.secret.0[LAST_SECRET..]);
        let start = self.bytes.wrapping_mul(PRIME64[0]);
        let merged = lanes.chunks_exact(2).enumerate().fold(start, |merged, (pair, lanes)| {
            let [a, b] = [0, 1].map(|i| lanes[i] ^ word(&self.secret.0[MERGE_SECRET + 16 * pair + 8 * i..]));
            let product = u128::from(a) * u128::from(b);
            merged.wrapping_add(product as u64 ^ (product >> 64) as u64)
        });
        let mixed = (merged ^ merged >> 37).wrapping_mul(0x1656_6791_9E37_79F9);
        mixed ^ mixed >> 32
    }

    /// # Safety
    /// `count` stripes at `from` can be read and, at `to`, written.
    unsafe fn eat(&mut self, from: *const u8, to: To, count: usize) {
        let to = to.for_stripes(count);
        let eat = Eat { from, to, count, secret: &self.secret, lanes: &mut self.lanes, stripes: &mut self.stripes };
        self.isa.run(eat);
    }
}

/// What is left of an input.
struct Stretch {
    from: *const u8,
    to: To,
    len: usize,
}

impl Stretch {
    /// Copies the next `count` bytes if that is wanted; returns where they lie.
    ///
    /// # Safety
    /// There are as many.
    unsafe fn take(&mut self, count: usize) -> *const u8 {
        let from = self.from;
        // SAFETY: passed on.
        unsafe {
            if let Some(to) = self.to.pointer() {
                std::ptr::copy_nonoverlapping(from, to, count);
            }
            self.skip(count);
        }
        from
    }

    /// Passes over `count` bytes; returns where the rest begins.
    ///
    /// # Safety
    /// There are as many.
    unsafe fn skip(&mut self, count: usize) -> *const u8 {
        // SAFETY: passed on.
        unsafe {
            self.from = self.from.add(count);
            self.to = self.to.add(count);
        }
        self.len -= count;
        self.from
    }
}

/// Some whole stripes.
pub(crate) struct Eat<'a> {
    pub(crate) from: *const u8,
    /// Where they are copied; whole lines if that is far.
    pub(crate) to: To,
    pub(crate) count: usize,
    pub(crate) secret: &'a Secret,
    pub(crate) lanes: &'a mut [u64; 8],
    /// Counted from the last scramble.
    pub(crate) stripes: &'a mut usize,
}

impl Kernel for Eat<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { mut from, mut to, mut count, secret, lanes, stripes } = self;
        while count > 0 {
            let run = count.min(STRIPES - *stripes);
            // SAFETY: `run` stripes are left, and the secret has 8 bytes more for each stripe of a block.
            unsafe {
                S::eat_stripes(lanes, secret.0.as_ptr().add(8 * *stripes), from, to, run);
                from = from.add(run * STRIPE);
                to = to.add(run * STRIPE);
            }
            count -= run;
            *stripes += run;
            if *stripes == STRIPES {
                *stripes = 0;
                scramble(lanes, secret);
            }
        }
        if let To::Far(_) = to {
            // SAFETY: the level is there. Nobody may be told of the copy before it can be seen.
            unsafe { S::settle_far() };
        }
    }
}

#[inline(always)]
fn scramble(lanes: &mut [u64; 8], secret: &Secret) {
    for (at, lane) in lanes.iter_mut().enumerate() {
        let mixed = *lane ^ *lane >> 47 ^ word(&secret.0[SCRAMBLE_SECRET + 8 * at..]);
        *lane = mixed.wrapping_mul(PRIME32[0]);
    }
}

/// One stripe without vectors. `secret` is at least as long as it.
pub(crate) fn eat_stripe(lanes: &mut [u64; 8], stripe: &[u8], secret: &[u8]) {
    for at in 0..8 {
        let value = word(&stripe[8 * at..]);
        let keyed = value ^ word(&secret[8 * at..]);
        lanes[at ^ 1] = lanes[at ^ 1].wrapping_add(value);
        lanes[at] = lanes[at].wrapping_add((keyed & 0xFFFF_FFFF).wrapping_mul(keyed >> 32));
    }
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|at| bytes[at]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(count: usize) -> Vec<u8> {
        (0..count as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
    }

    #[test]
    fn every_length_agrees_with_the_reference() {
        for isa in Isa::available() {
            for len in (0..1300).chain([2047, 2048, 2049, 4096, 100_000]) {
                let input = bytes(len);
                for seed in [0, 77, u64::MAX] {
                    let mut checksum = Checksum::new(isa, seed);
                    checksum.add(&input);
                    assert_eq!(checksum.finish(), xxh3_64_with_seed(&input, seed), "{isa}, {len} bytes");
                }
            }
        }
    }

    proptest! {
        /// Wherever the input is cut, the checksum is the same, and a copy is a copy.
        #[test]
        fn stretches_do_not_matter(cuts in prop::collection::vec(0..700usize, 1..12), long in 0..9000usize, seed: u64, shift in 0..9usize) {
            // One stretch is long enough for a copy past the caches.
            let cuts: Vec<_> = [64 * (long % 2)].into_iter().chain([long]).chain(cuts).collect();
            let input = bytes(cuts.iter().sum::<usize>() + shift).split_off(shift);
            for (isa, near) in Isa::available().into_iter().flat_map(|isa| [(isa, true), (isa, false)]) {
                let (mut checksum, mut copy, mut at) = (Checksum::new(isa, seed), vec![0; input.len() + STRIPE], 0);
                let start = copy.as_ptr().align_offset(STRIPE);
                for cut in &cuts {
                    // SAFETY: the cuts add up to the length of the input; the copy has what it takes to begin with a line.
                    unsafe {
                        let to = copy.as_mut_ptr().add(start + at);
                        let to = if near { To::Near(to) } else { To::Far(to) };
                        checksum.add_raw(input.as_ptr().add(at), to, *cut);
                    }
                    at += cut;
                }
                prop_assert_eq!(checksum.finish(), xxh3_64_with_seed(&input, seed));
                prop_assert_eq!(&copy[start..][..input.len()], &input);
            }
        }
    }
}
