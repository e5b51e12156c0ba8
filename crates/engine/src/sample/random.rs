//! Random numbers that depend on what they are for, not on what was drawn before.

/// Uniform in `0..1` for one token of one choice, from 53 random bits.
pub(super) fn uniform(seed: u64, choice: u32, position: u32) -> f64 {
    let [a, b, _, _] = philox([seed as u32, (seed >> 32) as u32], [position, choice, 0, 0]);
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

/// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
fn philox(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for _ in 0..10 {
        let low = u64::from(counter[0]) * 0xD251_1F53;
        let high = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with the generator (Random123, `kat_vectors`).
    #[test]
    fn philox_gives_the_published_answers() {
        let zeros = philox([0; 2], [0; 4]);
        assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox([u32::MAX; 2], [u32::MAX; 4]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn every_part_of_the_key_matters_and_the_mean_is_half() {
        let base = uniform(7, 0, 0);
        assert!(
            [uniform(8, 0, 0), uniform(7, 1, 0), uniform(7, 0, 1), uniform(7 | 1 << 40, 0, 0)]
                .iter()
                .all(|u| *u != base)
        );
        let mean = (0..4000).map(|position| uniform(1, 2, position)).sum::<f64>() / 4000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
