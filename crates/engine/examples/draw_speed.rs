//! What drawing one token costs: `cargo run --release -p engine --example draw_speed`.

use std::hint::black_box;
use std::time::Instant;

use engine::{SampleRequest, Sampler};
use kernels::Isa;
use types::SamplingParams;

const VOCABULARY: usize = 151_936;
const ROUNDS: usize = 41;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sampler = Sampler::new(Isa::from_env()?, Vec::new(), 4096);
    let (logits, output): (Vec<f32>, Vec<u32>) = (logits(), (0..256).map(|token| token * 7).collect());
    for (name, params) in cases() {
        let request = SampleRequest { params: &params, choice: 0, prompt: &output, output: &output, constraint: None };
        let mut micros = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            black_box(sampler.sample(&logits, &request)?);
            micros.push(start.elapsed().as_micros());
        }
        micros.sort_unstable();
        println!("{name}: {} µs", micros[ROUNDS / 2]);
    }
    Ok(())
}

/// As models have them: normal (as far as sums of four are), with a few that stand out.
fn logits() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut logit = |id| (0..4).map(|_| uniform()).sum::<f32>() * 5.2 + if id % 9973 == 5 { 12.0 } else { 0.0 };
    (0..VOCABULARY).map(&mut logit).collect()
}

fn cases() -> [(&'static str, SamplingParams); 7] {
    let greedy = SamplingParams::default();
    let hot = SamplingParams { temperature: 1.0, seed: 1, ..greedy.clone() };
    let nucleus = SamplingParams { top_p: 0.9, ..hot.clone() };
    [
        ("greedy", greedy.clone()),
        ("greedy with 5 logprobs", SamplingParams { logprobs: Some(5), ..greedy }),
        ("temperature", hot),
        ("top-p 0.9", nucleus.clone()),
        ("top-p 0.9 of flat logits", SamplingParams { temperature: 50.0, ..nucleus.clone() }),
        ("top-k 20, top-p 0.9", SamplingParams { top_k: 20, ..nucleus.clone() }),
        ("the same with a repetition penalty", SamplingParams { top_k: 20, repetition_penalty: 1.05, ..nucleus }),
    ]
}
