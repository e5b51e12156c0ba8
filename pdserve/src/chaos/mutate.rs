//! Seeded changes of request bodies: what comes of them is anything from the same request to no JSON at all.

use rand::Rng;

/// `bytes` with one to three parts cut, doubled or flipped.
pub fn mutate(random: &mut impl Rng, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..bytes.len().max(1));
        let end = (at + random.random_range(1..40)).min(bytes.len());
        match random.random_range(0..4) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at.min(end)..end)),
            2 => bytes.extend_from_within(at.min(end)..end),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (at % 8)),
        }
    }
    bytes
}
