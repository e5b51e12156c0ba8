//! What packing does to the numbers that tokens are drawn from.

use engine::{EngineConfig, Quantization, prompt_scores};

use crate::support::{config, load, wide_llama};
use types::TokenId;

/// Log-probabilities of a random text under a random model with the widths of a real one. Their error is given relative to how far
/// they spread, since it is this that turns one choice into another.
#[test]
fn packed_weights_change_log_probabilities_little() {
    let dir = tempfile::tempdir().unwrap();
    let vocabulary = wide_llama(dir.path());
    let text: Vec<TokenId> = (0..200u32).map(|i| i * i * 7919 % vocabulary).collect();
    let scores = |quantization| {
        let (mut engine, pool) = load(&EngineConfig { quantization, ..config(dir.path()) }).unwrap();
        let scores = prompt_scores(&mut engine, &pool, &text, 0, 64).unwrap();
        scores.into_iter().map(|score| f64::from(score.logprob)).collect::<Vec<_>>()
    };
    let stored = scores(None);
    let mean = stored.iter().sum::<f64>() / stored.len() as f64;
    let spread = root_mean_square(stored.iter().map(|stored| stored - mean));
    for (quantization, most) in [(Quantization::Int8, 0.04), (Quantization::Int4, 0.3)] {
        let packed = scores(Some(quantization));
        let error = root_mean_square(packed.iter().zip(&stored).map(|(packed, stored)| packed - stored)) / spread;
        println!("{quantization}: log-probabilities are off by {:.2} % of their spread of {spread:.2}", 100.0 * error);
        assert!(error > 0.0 && error < most, "{quantization}: {error}");
    }
}

fn root_mean_square(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    (values.map(|value| value * value).sum::<f64>() / count).sqrt()
}
