use std::path::{Path, PathBuf};

use engine::{Engine, EngineConfig};
use kv::BlockPool;
use tests::workers::Pair;
use transfer::TransportKind;
use types::{GenerateSpec, Role, SampledToken, SamplingParams};
use worker::{Config, fake};

/// How an instance differs from its peer.
#[derive(Clone, Copy, Debug)]
struct Shape {
    block_size: u32,
    tensor_parallel_size: usize,
    max_num_batched_tokens: u32,
}

const SHAPE: Shape = Shape { block_size: 16, tensor_parallel_size: 1, max_num_batched_tokens: 256 };

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(model)
}

fn engine_config(model: &str, shape: Shape) -> EngineConfig {
    EngineConfig {
        model_dir: golden(model),
        tensor_parallel_size: shape.tensor_parallel_size,
        threads: 1,
        block_size: shape.block_size,
        quantization: None,
        kv_dtype: None,
        kv_bytes: Some(4 << 20),
        max_model_len: None,
        max_num_seqs: 16,
        max_num_batched_tokens: shape.max_num_batched_tokens,
    }
}

fn config(role: Role, instance: &str, model: &str, shape: Shape, transport: TransportKind) -> Config {
    Config { engine: engine_config(model, shape), ..fake::config(role, instance, &[transport]) }
}

async fn pair(model: &str, prefill: Shape, decode: Shape, transport: TransportKind) -> Pair {
    let prefill = prefill_worker::start(config(Role::Prefill, "prefill-0", model, prefill, transport)).await.unwrap();
    let decode = decode_worker::start(config(Role::Decode, "decode-0", model, decode, transport)).await.unwrap();
    Pair::connect(prefill, decode).await
}

/// One process, one request at a time.
struct Oracle {
    engine: Engine,
    pool: BlockPool,
}

impl Oracle {
    fn load(model: &str) -> Self {
        let engine = Engine::load(&engine_config(model, SHAPE), &mut |_| {}).unwrap();
        let limits = engine.limits();
        Self { pool: BlockPool::new(limits.blocks_total, limits.block_size), engine }
    }

    fn generate(&mut self, spec: &GenerateSpec) -> Vec<SampledToken> {
        engine::generate(&mut self.engine, &self.pool, spec, 256).unwrap().concat()
    }
}

/// Requests of every kind: greedy, sampled, several choices, penalties, logprobs, a shared prefix.
fn specs() -> Vec<GenerateSpec> {
    let base = SamplingParams { max_tokens: 24, ignore_eos: true, logprobs: Some(2), ..SamplingParams::default() };
    let sampled = SamplingParams { temperature: 0.8, top_p: 0.95, top_k: 40, seed: 7, ..base.clone() };
    let penalised = SamplingParams { presence_penalty: 0.5, repetition_penalty: 1.2, seed: 8, ..sampled.clone() };
    let spec = |start: u32, len: u32, n: u32, sampling: &SamplingParams| GenerateSpec {
        prompt: (0..len).map(|i| 3 + (start * 31 + i * 7) % 120).collect(),
        output: Vec::new(),
        choices: 0..n,
        sampling: sampling.clone(),
        cache_salt: Vec::new(),
    };
    let limited = SamplingParams {
        allowed_token_ids: (3..90).collect(),
        bad_words: (3..40).map(|token| vec![token, token + 1]).chain([vec![50]]).collect(),
        priority: -1,
        ..sampled.clone()
    };
    let stops = SamplingParams { ignore_eos: false, stop_token_ids: (3..40).collect(), ..sampled.clone() };
    vec![
        spec(0, 1, 1, &base),
        spec(1, 40, 1, &base),
        spec(1, 64, 3, &sampled),
        spec(1, 100, 2, &penalised),
        spec(2, 33, 3, &stops),
        spec(2, 50, 2, &limited),
        spec(3, 120, 1, &SamplingParams { max_tokens: 1, ..base.clone() }),
    ]
}

async fn check(model: &str, prefill: Shape, decode: Shape, transport: TransportKind) {
    let mut oracle = Oracle::load(model);
    let mut pair = pair(model, prefill, decode, transport).await;
    let specs = specs();
    for (i, spec) in specs.iter().enumerate() {
        let outcome = pair.run(&format!("alone {i}"), spec).await;
        assert_eq!(outcome.failed, [], "{model} {prefill:?} {decode:?} {transport}: request {i}");
        assert_eq!(outcome.tokens, oracle.generate(spec), "{model} {prefill:?} {decode:?} {transport}: request {i}");
    }
    // All at once, with the prefixes of the first round in both caches.
    let request = |(i, spec): (usize, &GenerateSpec)| (i.to_string(), spec.clone(), None);
    let outcomes = pair.run_all(specs.iter().enumerate().map(request).collect()).await;
    for (i, spec) in specs.iter().enumerate() {
        let found = &outcomes[&i.to_string()];
        assert_eq!(found.tokens, oracle.generate(spec), "{model} {prefill:?} {decode:?} {transport}: together, {i}");
    }
    for (i, spec) in specs.iter().enumerate() {
        let outcome = pair.aggregated(&format!("local {i}"), spec).await;
        assert_eq!(outcome.tokens, oracle.generate(spec), "{model} {decode:?}: aggregated {i}");
    }
    pair.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transport_gives_the_text_of_one_process() {
    for transport in TransportKind::ALL {
        check("llama", SHAPE, SHAPE, transport).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unequal_instances_give_the_text_of_one_process() {
    let small_blocks = Shape { block_size: 8, ..SHAPE };
    let ranks = Shape { tensor_parallel_size: 2, ..SHAPE };
    let chunks = Shape { max_num_batched_tokens: 16, ..SHAPE };
    check("llama", small_blocks, SHAPE, TransportKind::Inproc).await;
    check("llama", SHAPE, small_blocks, TransportKind::Tcp).await;
    check("llama", ranks, SHAPE, TransportKind::Inproc).await;
    check("llama", SHAPE, ranks, TransportKind::Shm).await;
    check("llama", chunks, chunks, TransportKind::Inproc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_gives_the_text_of_one_process() {
    for model in ["llama-f16", "llama-tied", "llama3-rope", "mistral", "qwen2", "qwen3"] {
        check(model, SHAPE, Shape { block_size: 32, ..SHAPE }, TransportKind::Inproc).await;
    }
}
