//! Against Hugging Face transformers: every case of `tests/golden`, tokens and log-probabilities.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};

use engine::{Engine, EngineConfig, generate, prompt_scores};
use kv::{BlockPool, KvDtype};
use serde::Deserialize;
use types::{GenerateSpec, SamplingParams, TokenId};

#[derive(Deserialize)]
struct Golden {
    weights: String,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    prompt: Vec<TokenId>,
    prompt_logprobs: Vec<f32>,
    tokens: Vec<TokenId>,
    logprobs: Vec<f32>,
    top_ids: Vec<Vec<TokenId>>,
    top_logprobs: Vec<Vec<f32>>,
}

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut cases: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.join("golden.json").exists());
    cases.sort();
    cases
}

fn load(case: &Path, kv_dtype: Option<KvDtype>) -> (Engine, BlockPool) {
    let config = EngineConfig {
        model_dir: case.to_owned(),
        tensor_parallel_size: 1,
        threads: 2,
        block_size: 16,
        quantization: None,
        pack_cache: None,
        kv_dtype,
        kv_bytes: Some(8 << 20),
        max_model_len: Some(256),
        max_num_seqs: 4,
        max_num_batched_tokens: 256,
    };
    let engine = Engine::load(&config, &mut |_| ()).unwrap();
    let limits = engine.limits();
    (engine, BlockPool::new(limits.blocks_total, limits.block_size))
}

/// With KV in f32, our arithmetic is that of the goldens whatever the weights are stored in. With the KV dtype that the engine chooses,
/// rounded keys and values may turn a close call, so tokens are given and only their log-probabilities compared; so in int8.
#[test]
fn every_case_agrees_with_transformers() {
    let cases = cases();
    assert!(cases.len() >= 9, "only {} golden cases found", cases.len());
    for case in cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let golden: Golden = serde_json::from_slice(&std::fs::read(case.join("golden.json")).unwrap()).unwrap();
        assert!(!golden.prompts.is_empty(), "{name} has no prompts");
        let (mut exact, exact_pool) = load(&case, Some(KvDtype::F32));
        let (mut chosen, chosen_pool) = load(&case, None);
        let (mut small, small_pool) = load(&case, Some(KvDtype::Int8));
        let chosen_dtype = if golden.weights == "bfloat16" { "bf16" } else { "f32" };
        assert_eq!(chosen.identity().kv_dtype, chosen_dtype, "{name}");
        for prompt in &golden.prompts {
            let at = format!("{name}, prompt of {}", prompt.prompt.len());
            check_greedy(&at, &mut exact, &exact_pool, prompt, 1e-4);
            check_given(&at, &mut chosen, &chosen_pool, prompt, if chosen_dtype == "f32" { 1e-4 } else { 2e-2 });
            check_given(&at, &mut small, &small_pool, prompt, 3e-1);
        }
    }
}

fn check_greedy(at: &str, engine: &mut Engine, pool: &BlockPool, golden: &Prompt, tolerance: f32) {
    let sampling = SamplingParams {
        max_tokens: golden.tokens.len() as u32,
        ignore_eos: true,
        logprobs: Some(5),
        ..SamplingParams::default()
    };
    let spec = GenerateSpec {
        prompt: golden.prompt.clone().into(),
        output: Vec::new(),
        choices: 0..1,
        sampling,
        cache_salt: Vec::new(),
    };
    let found = generate(engine, pool, &spec, 20).unwrap().remove(0);
    let ids: Vec<TokenId> = found.iter().map(|token| token.id).collect();
    assert_eq!(ids, golden.tokens, "{at}");
    for (i, token) in found.iter().enumerate() {
        close(&format!("{at}, token {i}"), token.logprob, golden.logprobs[i], tolerance);
        for (id, logprob) in golden.top_ids[i].iter().zip(&golden.top_logprobs[i]) {
            // Close ranks may swap; a token of theirs that is not among ours is as good as our fifth.
            let ours = token.top.iter().find(|(ours, _)| ours == id).or(token.top.last());
            close(&format!("{at}, token {i}, alternative {id}"), ours.unwrap().1, *logprob, tolerance);
        }
    }
}

/// Prompt and answer as one text that is given, in steps of a few tokens.
fn check_given(at: &str, engine: &mut Engine, pool: &BlockPool, golden: &Prompt, tolerance: f32) {
    let tokens = [&golden.prompt[..], &golden.tokens].concat();
    let expected = [&golden.prompt_logprobs[..], &golden.logprobs].concat();
    let found = prompt_scores(engine, pool, &tokens, 0, 7).unwrap();
    assert_eq!(found.len(), expected.len(), "{at}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        close(&format!("{at}, token {} of all", i + 1), found.logprob, expected, tolerance);
    }
}

fn close(what: &str, found: f32, expected: f32, tolerance: f32) {
    assert!((found - expected).abs() <= tolerance, "{what}: logprob {found}, expected {expected}");
}
