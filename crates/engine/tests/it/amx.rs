//! The arithmetic of AMX, emulated: a whole engine on it, and how far it lies from that of vectors.

use std::process::{Command, Output};

use crate::support::{config, golden};
use engine::{Engine, generate};
use kernels::Isa;
use kv::BlockPool;
use types::{GenerateSpec, SamplingParams};

/// The tests of equal bits in a process of their own, whose level is `isa`.
fn same_bits_on(isa: &str) -> Output {
    Command::new(std::env::current_exe().unwrap()).arg("same_bits::").env("PDSERVE_ISA", isa).output().unwrap()
}

#[test]
fn every_promise_of_equal_bits_holds_on_emulated_tiles() {
    let output = same_bits_on("amx-emulated");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("texts_do_not_depend_on_how_they_are_computed ... ok"), "{text}");
    assert!(!same_bits_on("no-such-level").status.success(), "the level is the one asked for");
}

/// Inputs are rounded, so scores differ; but little.
#[test]
fn tiles_have_bits_of_their_own_and_near_scores() {
    let scores = |isa: Isa| {
        let config = config(&golden("qwen2"));
        let mut engine = Engine::load_on(isa, &config, &mut |_| ()).unwrap();
        assert_eq!((engine.limits().instructions, engine.instructions()), (isa.to_string(), isa.describe()));
        let pool = BlockPool::new(engine.limits().blocks_total, config.block_size);
        let sampling =
            SamplingParams { max_tokens: 1, ignore_eos: true, logprobs: Some(20), ..SamplingParams::default() };
        let prompt: Vec<u32> = (0..50).map(|i| (i * i + 7 * i + 3) % 90).collect();
        let spec =
            GenerateSpec { prompt: prompt.into(), output: Vec::new(), choices: 0..1, sampling, cache_salt: Vec::new() };
        let mut top = generate(&mut engine, &pool, &spec, 64).unwrap()[0][0].top.clone();
        top.sort_by_key(|(id, _)| *id);
        top
    };
    let (tiles, vectors) = (scores(Isa::emulated()), scores(Isa::PORTABLE));
    assert_ne!(tiles, vectors);
    for ((id, found), (other, expected)) in tiles.iter().zip(&vectors) {
        assert!(id == other && (found - expected).abs() < 0.05, "token {id}: {found}; token {other}: {expected}");
    }
}
