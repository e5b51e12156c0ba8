//! Numbers for the tests of this room.

use crate::{Isa, Pool};

/// `count` values in -1..1, the same for the same seed.
pub(crate) fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Fails with the first element whose error is above `tolerance`.
pub(crate) fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance, "{what}: element {i} is {found}, expected {expected}");
    }
}

/// The bits, so that equality means equality.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Runs `f` on every level with 1 and 3 threads: the result must be `expected`, and the same bits for both.
pub(crate) fn check_levels(what: &str, expected: &[f32], tolerance: f32, f: impl Fn(Isa, &Pool) -> Vec<f32>) {
    let [one, three] = [1, 3].map(|threads| Pool::new("test", threads).unwrap());
    for isa in Isa::available() {
        let alone = f(isa, &one);
        close(&format!("{what} on {isa}"), &alone, expected, tolerance);
        assert_eq!(bits(&f(isa, &three)), bits(&alone), "{what} on {isa}: threads");
    }
}
