use super::*;

/// The three ranges of Llama 3's stretching: short wavelengths stay, long ones are divided, those between are mixed.
#[test]
fn llama3_stretches_long_wavelengths_only() {
    let plain = Rope { theta: 500_000.0, llama3: None };
    let scaling = Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };
    let scaled = Rope { llama3: Some(scaling), ..plain };
    let ratios: Vec<f32> = plain
        .inverse_frequencies(128)
        .iter()
        .zip(scaled.inverse_frequencies(128))
        .map(|(plain, scaled)| plain / scaled)
        .collect();
    assert_eq!((ratios[0], ratios[63]), (1.0, 8.0));
    assert!(ratios.windows(2).all(|pair| pair[0] <= pair[1] + 1e-5), "{ratios:?}");
    assert!(ratios.iter().any(|ratio| *ratio > 1.01 && *ratio < 7.9), "{ratios:?}");
}

#[test]
fn every_parameter_shows_in_the_line_that_instances_compare() {
    let scaling = Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 32.0,
    };
    let rope = Rope { theta: 500_000.0, llama3: Some(scaling) };
    assert_eq!(rope.to_string(), "theta=500000 llama3 factor=8 low=1 high=4 original=32");
}
