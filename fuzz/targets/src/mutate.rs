//! Seeded mutations: what a fuzzer does first, without a fuzzer.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Bytes and words at which parsers turn.
const INTERESTING: &[&[u8]] = &[
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\"",
    b"\\",
    b"\\u",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"9223372036854775808",
    b"null",
    b"true",
    b"{%",
    b"%}",
    b"{{",
    b"}}",
    b"\xf0\x9f\x98\x80",
    b"\xed\xa0\x80",
];

/// Makes inputs of inputs; equal seeds make equal ones.
#[derive(Debug)]
pub struct Mutator(SmallRng);

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    /// `input`, changed in one to four places; `other` lends parts. Most places are near the beginning, where heads and lengths are.
    pub fn mutate(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..self.0.random_range(1..=4) {
            let reach = if self.0.random_bool(0.5) { bytes.len().min(256) } else { bytes.len() };
            let at = self.0.random_range(0..=reach);
            let end = (at + self.0.random_range(1..=16)).min(bytes.len());
            match self.0.random_range(0..7) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.0.random_range(0..8),
                1 if at < bytes.len() => bytes[at] = self.0.random(),
                2 => drop(bytes.drain(at..end)),
                3 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
                4 => bytes.truncate(at),
                5 => {
                    let from = self.0.random_range(0..=other.len());
                    let part = other[from..(from + self.0.random_range(1..=64)).min(other.len())].to_vec();
                    drop(bytes.splice(at..end, part));
                }
                _ => {
                    let word = INTERESTING[self.0.random_range(0..INTERESTING.len())];
                    drop(bytes.splice(at..end, word.iter().copied()));
                }
            }
        }
        bytes
    }
}
