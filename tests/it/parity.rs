use std::path::{Path, PathBuf};

use decode_worker::DecodePlanner;
use engine::{Engine, EngineConfig};
use kv::{BlockPool, KvDtype};
use tests::workers::Pair;
use transfer::TransportKind;
use types::{
    BeamParams, EarlyStopping, GenerateSpec, Pooling, Role, SampledToken, SamplingParams, TokenId, TokenScore,
};
use worker::{Config, fake};

/// How an instance differs from its peer.
#[derive(Clone, Copy, Debug)]
struct Shape {
    block_size: u32,
    tensor_parallel_size: usize,
    max_num_batched_tokens: u32,
    kv_dtype: Option<KvDtype>,
}

const SHAPE: Shape = Shape { block_size: 16, tensor_parallel_size: 1, max_num_batched_tokens: 256, kv_dtype: None };

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
        pack_cache: None,
        kv_dtype: shape.kv_dtype,
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
    let decode =
        decode_worker::start(config(Role::Decode, "decode-0", model, decode, transport), DecodePlanner::default())
            .await
            .unwrap();
    Pair::connect(prefill, decode).await
}

/// One process, one request at a time.
struct Oracle {
    engine: Engine,
    pool: BlockPool,
}

impl Oracle {
    fn load(model: &str, kv_dtype: Option<KvDtype>) -> Self {
        let engine = Engine::load(&engine_config(model, Shape { kv_dtype, ..SHAPE }), &mut |_| {}).unwrap();
        let limits = engine.limits();
        Self { pool: BlockPool::new(limits.blocks_total, limits.block_size), engine }
    }

    fn generate(&mut self, spec: &GenerateSpec) -> Vec<SampledToken> {
        engine::generate(&mut self.engine, &self.pool, spec, 256).unwrap().concat()
    }

    /// Of the prompt's tokens, as far as they were asked for.
    fn scores(&mut self, spec: &GenerateSpec) -> Vec<TokenScore> {
        let Some(top) = spec.sampling.prompt_logprobs else { return Vec::new() };
        engine::prompt_scores(&mut self.engine, &self.pool, &spec.prompt, top, 256).unwrap()
    }
}

impl Oracle {
    /// What a plain beam search finds, one forward pass of the whole text per candidate list.
    fn beams(&mut self, spec: &GenerateSpec, beam: BeamParams) -> Vec<Vec<TokenId>> {
        let eos = self.engine.eos_token_ids().to_vec();
        let sampling = SamplingParams { max_tokens: 1, logprobs: Some(2 * beam.width), ..SamplingParams::default() };
        fake::beams(spec, beam, &eos, |output| {
            let prompt = [&spec.prompt[..], output].concat().into();
            let spec = GenerateSpec { prompt, choices: 0..1, sampling: sampling.clone(), ..spec.clone() };
            self.generate(&spec).swap_remove(0).top
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beams_are_those_of_a_plain_search_in_one_process() {
    let chunks = Shape { max_num_batched_tokens: 16, block_size: 8, ..SHAPE };
    for (model, prefill, decode) in [("llama", SHAPE, chunks), ("qwen2", chunks, SHAPE)] {
        let mut oracle = Oracle::load(model, None);
        let mut pair = pair(model, prefill, decode, TransportKind::Inproc).await;
        let mut expected = Vec::new();
        let mut requests = Vec::new();
        for (start, width, n, length_penalty, early_stopping) in [
            (1, 2, 2, 1.0, EarlyStopping::No),
            (2, 4, 2, 0.6, EarlyStopping::Yes),
            (3, 5, 1, 1.5, EarlyStopping::Never),
        ] {
            let beam = BeamParams { width, length_penalty, early_stopping };
            let sampling = SamplingParams { max_tokens: 12, beam: Some(beam), ..SamplingParams::default() };
            let prompt = (0..20 + 9 * start).map(|i| 3 + (start * 31 + i * 7) % 120).collect();
            let spec = GenerateSpec { prompt, output: Vec::new(), choices: 0..n, sampling, cache_salt: Vec::new() };
            expected.push(oracle.beams(&spec, beam));
            requests.push((start.to_string(), spec, None));
        }
        let texts = |tokens: &[SampledToken]| -> Vec<Vec<TokenId>> {
            let choices = tokens.chunk_by(|one, other| one.choice == other.choice);
            choices.map(|tokens| tokens.iter().map(|token| token.id).collect()).collect()
        };
        for ((name, spec, _), expected) in requests.iter().zip(&expected) {
            let found = pair.aggregated(&format!("local {name}"), spec).await;
            assert_eq!(&texts(&found.tokens), expected, "{model}: aggregated {name}");
        }
        let outcomes = pair.run_all(requests.clone()).await;
        for ((name, ..), expected) in requests.iter().zip(&expected) {
            assert_eq!(outcomes[name].failed, [], "{model}: {name}");
            assert_eq!(&texts(&outcomes[name].tokens), expected, "{model}: {name}");
        }
        pair.settled().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_are_those_of_one_process() {
    let chunks = Shape { max_num_batched_tokens: 16, block_size: 8, ..SHAPE };
    let mut oracle = Oracle::load("qwen3", None);
    let mut pair = pair("qwen3", chunks, SHAPE, TransportKind::Inproc).await;
    // The second round finds the prompts in both caches.
    for round in 0..2 {
        for (i, spec) in specs().iter().enumerate() {
            for pooling in [Pooling::Last, Pooling::Mean] {
                let expected = engine::embed(&mut oracle.engine, &oracle.pool, &spec.prompt, pooling, 256).unwrap();
                let spec = GenerateSpec { choices: 0..1, ..spec.clone() };
                for found in pair.embed(&format!("{round} {i} {pooling:?}"), &spec, pooling).await {
                    assert_eq!(found, expected, "round {round}, prompt {i}, {pooling:?}");
                }
            }
        }
    }
    pair.settled().await;
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
        prompt_logprobs: Some(2),
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
    let mut oracle = Oracle::load(model, decode.kv_dtype);
    let mut pair = pair(model, prefill, decode, transport).await;
    let specs = specs();
    for (i, spec) in specs.iter().enumerate() {
        let outcome = pair.run(&format!("alone {i}"), spec).await;
        assert_eq!(outcome.failed, [], "{model} {prefill:?} {decode:?} {transport}: request {i}");
        assert_eq!(outcome.tokens, oracle.generate(spec), "{model} {prefill:?} {decode:?} {transport}: request {i}");
        assert_eq!(outcome.scores, oracle.scores(spec), "{model} {prefill:?} {decode:?} {transport}: prompt {i}");
    }
    // All at once, with the prefixes of the first round in both caches.
    let request = |(i, spec): (usize, &GenerateSpec)| (i.to_string(), spec.clone(), None);
    let outcomes = pair.run_all(specs.iter().enumerate().map(request).collect()).await;
    for (i, spec) in specs.iter().enumerate() {
        let found = &outcomes[&i.to_string()];
        assert_eq!(found.tokens, oracle.generate(spec), "{model} {prefill:?} {decode:?} {transport}: together, {i}");
        assert_eq!(
            found.scores,
            oracle.scores(spec),
            "{model} {prefill:?} {decode:?} {transport}: together, prompt {i}"
        );
    }
    for (i, spec) in specs.iter().enumerate() {
        let outcome = pair.aggregated(&format!("local {i}"), spec).await;
        assert_eq!(outcome.tokens, oracle.generate(spec), "{model} {decode:?}: aggregated {i}");
        assert_eq!(outcome.scores, oracle.scores(spec), "{model} {decode:?}: aggregated prompt {i}");
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

/// With a scale for each head of each token, whatever blocks and ranks they lie in.
#[tokio::test(flavor = "multi_thread")]
async fn int8_keys_and_values_give_the_text_of_one_process() {
    let int8 = Shape { kv_dtype: Some(KvDtype::Int8), ..SHAPE };
    check("qwen3", Shape { block_size: 8, ..int8 }, int8, TransportKind::Shm).await;
    check("llama", int8, Shape { tensor_parallel_size: 2, ..int8 }, TransportKind::Tcp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_gives_the_text_of_one_process() {
    for model in ["llama-f16", "llama-tied", "llama3-rope", "mistral", "qwen2", "qwen3"] {
        check(model, SHAPE, Shape { block_size: 32, ..SHAPE }, TransportKind::Inproc).await;
    }
}

/// F3 and F4: an attempt that goes on from any token, as the scheduler orders it after a death, gives the rest bit for bit: with
/// temperature and seed, all penalties, two choices, logprobs.
#[tokio::test(flavor = "multi_thread")]
async fn f3_f4_a_resume_at_every_token_gives_the_rest() {
    let mut oracle = Oracle::load("llama", None);
    let mut pair = pair("llama", SHAPE, SHAPE, TransportKind::Tcp).await;
    let sampling = SamplingParams {
        temperature: 1.0,
        seed: 11,
        presence_penalty: 0.4,
        frequency_penalty: 0.3,
        repetition_penalty: 1.3,
        max_tokens: 32,
        ignore_eos: true,
        logprobs: Some(2),
        ..SamplingParams::default()
    };
    let prompt: Vec<_> = (0..37).map(|i| 3 + i * 7 % 120).collect();
    let output = Vec::new();
    let spec = GenerateSpec { prompt: prompt.into(), output, choices: 0..2, sampling, cache_salt: Vec::new() };
    let whole = oracle.generate(&spec);
    let of = |choice: u32| whole.iter().filter(move |token| token.choice == choice).cloned().collect::<Vec<_>>();
    let mut requests = Vec::new();
    for (choice, k) in (0..2).flat_map(|choice| (1..32).map(move |k| (choice, k))) {
        let output = of(choice)[..k].iter().map(|token| token.id).collect();
        let rest = GenerateSpec { output, choices: choice..choice + 1, ..spec.clone() };
        requests.push((format!("{choice} {k}"), rest, None));
    }
    let outcomes = pair.run_all(requests).await;
    for (choice, k) in (0..2).flat_map(|choice| (1..32).map(move |k| (choice, k))) {
        let outcome = &outcomes[&format!("{choice} {k}")];
        assert_eq!((&outcome.failed[..], &outcome.tokens[..]), (&[][..], &of(choice)[k..]), "choice {choice} from {k}");
    }
    pair.settled().await;
}
