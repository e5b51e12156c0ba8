//! Equal bits whatever the chunking, block size, threads, ranks and neighbours are. Log-probabilities are compared by their bits, so
//! that a difference anywhere in the arithmetic shows.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::support::{biased_llama, config, golden, load};
use engine::{
    Batch, BatchRow, Engine, EngineConfig, NoObserver, Probe, Quantization, SampleRequest, StepObserver, embed,
    generate, prompt_scores,
};
use kv::{BlockId, BlockPool, KvDtype, KvSpan};
use safetensors::tensor::Dtype;
use types::{GenerateSpec, Pooling, SampledToken, SamplingParams, TokenId};

/// Every family, and in `dir` models with biases that eight ranks can share.
fn models(dir: &Path) -> Vec<PathBuf> {
    let mut models: Vec<PathBuf> = Vec::new();
    for dtype in [Dtype::F32, Dtype::BF16] {
        models.push(dir.join(format!("{dtype:?}")));
        std::fs::create_dir(&models[models.len() - 1]).unwrap();
        biased_llama(&models[models.len() - 1], dtype);
    }
    models.extend(["llama-tied", "llama-f16", "mistral", "qwen2", "qwen3"].map(golden));
    models
}

fn prompt(len: usize) -> Vec<TokenId> {
    (0..len as u32).map(|i| (i * i + 7 * i + 3) % 90).collect()
}

fn spec(len: usize, choices: u32, temperature: f32) -> GenerateSpec {
    let sampling = SamplingParams {
        temperature,
        seed: 11,
        max_tokens: 20,
        ignore_eos: true,
        logprobs: Some(2),
        repetition_penalty: 1.1,
        ..SamplingParams::default()
    };
    GenerateSpec {
        prompt: prompt(len).into(),
        output: Vec::new(),
        choices: 0..choices,
        sampling,
        cache_salt: Vec::new(),
    }
}

type Bits = Vec<(TokenId, u32, Vec<(TokenId, u32)>)>;

fn bits(tokens: &[SampledToken]) -> Bits {
    let bits = |token: &SampledToken| {
        let top = token.top.iter().map(|(id, logprob)| (*id, logprob.to_bits())).collect();
        (token.id, token.logprob.to_bits(), top)
    };
    tokens.iter().map(bits).collect()
}

/// What the oracle says, for one greedy choice and for three seeded ones.
fn texts(config: &EngineConfig, chunk: usize) -> Vec<Bits> {
    let (mut engine, pool) = load(config).unwrap();
    let mut texts = Vec::new();
    for (len, choices, temperature) in [(1, 1, 0.0), (37, 1, 0.0), (45, 3, 0.9)] {
        let found = generate(&mut engine, &pool, &spec(len, choices, temperature), chunk).unwrap();
        assert_eq!(found.len(), choices as usize);
        assert!(found.iter().all(|choice| choice.len() == 20));
        texts.extend(found.iter().map(|choice| bits(choice)));
    }
    assert_eq!(pool.stats().free, pool.stats().total, "the oracle gives its blocks back");
    texts
}

#[test]
fn texts_do_not_depend_on_how_they_are_computed() {
    let dir = tempfile::tempdir().unwrap();
    for model in models(dir.path()) {
        let base = config(&model);
        let expected = texts(&base, 1000);
        let check = |what: &str, config: EngineConfig, chunk| {
            assert_eq!(texts(&config, chunk), expected, "{}: {what}", model.display());
        };
        check("chunk 1", base.clone(), 1);
        check("chunk 5", base.clone(), 5);
        check("blocks of 8", EngineConfig { block_size: 8, ..base.clone() }, 16);
        check("blocks of 32", EngineConfig { block_size: 32, ..base.clone() }, 7);
        check("one thread", EngineConfig { threads: 1, ..base.clone() }, 1000);
        check("three threads", EngineConfig { threads: 3, ..base.clone() }, 20);
        check("two ranks", EngineConfig { tensor_parallel_size: 2, ..base.clone() }, 6);
        let int8 = EngineConfig { kv_dtype: Some(KvDtype::Int8), ..base.clone() };
        let expected = texts(&int8, 1000);
        let small = EngineConfig { block_size: 8, threads: 3, tensor_parallel_size: 2, ..int8 };
        assert_eq!(texts(&small, 7), expected, "{}: int8", model.display());
        if model.starts_with(dir.path()) {
            check("four ranks", EngineConfig { tensor_parallel_size: 4, ..base.clone() }, 1000);
            check("eight ranks", EngineConfig { tensor_parallel_size: 8, ..base.clone() }, 9);
        }
    }
}

#[test]
fn packed_weights_keep_every_promise() {
    let dir = tempfile::tempdir().unwrap();
    biased_llama(dir.path(), Dtype::F32);
    for quantization in [Quantization::Int8, Quantization::Int4] {
        for model in [dir.path().to_owned(), golden("qwen3")] {
            let base = EngineConfig { quantization: Some(quantization), ..config(&model) };
            let expected = texts(&base, 1000);
            let check = |what: &str, config: EngineConfig, chunk| {
                assert_eq!(texts(&config, chunk), expected, "{quantization} {}: {what}", model.display());
            };
            check("chunk 1", base.clone(), 1);
            check("three threads, chunk 20", EngineConfig { threads: 3, ..base.clone() }, 20);
            check("two ranks", EngineConfig { tensor_parallel_size: 2, ..base.clone() }, 6);
            if model == dir.path() {
                check("eight ranks", EngineConfig { tensor_parallel_size: 8, ..base.clone() }, 9);
            }
        }
    }
}

/// What packing is called shows where instances compare models, and what it costs where memory is told.
#[test]
fn packing_shows_in_identity_and_memory() {
    let dir = golden("llama");
    let (plain, _) = load(&config(&dir)).unwrap();
    for quantization in [Quantization::Int8, Quantization::Int4] {
        let (packed, _) = load(&EngineConfig { quantization: Some(quantization), ..config(&dir) }).unwrap();
        let mismatches = plain.identity().mismatches(packed.identity());
        assert_eq!(mismatches.len(), 1, "{mismatches:?}");
        let named = mismatches[0].to_string();
        assert!(named.contains("dtype") && named.contains(quantization.as_str()), "{named}");
        let memory = packed.memory();
        let report = memory.packed.unwrap();
        assert!(report.bytes > 0 && report.error > 0.0 && report.error < 0.12, "{report:?}");
        assert!(memory.to_string().contains(&format!("packed as {quantization}")), "{memory}");
    }
    assert_eq!(plain.memory().packed, None);
}

/// Packed weights in a file give the same bits; a damaged or foreign file is replaced.
#[test]
fn packed_weights_are_kept_in_a_file() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    biased_llama(dir.path(), Dtype::F32);
    let plain = EngineConfig { quantization: Some(Quantization::Int8), tensor_parallel_size: 2, ..config(dir.path()) };
    let expected = texts(&plain, 1000);
    let cached = EngineConfig { pack_cache: Some(cache.path().to_owned()), ..plain.clone() };
    let files = || {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(cache.path()).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    };
    assert_eq!(texts(&cached, 1000), expected, "written");
    assert_eq!(files().len(), 2, "{:?}", files());
    let sound: Vec<Vec<u8>> = files().iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert_eq!(texts(&cached, 1000), expected, "read");
    let modified = |file: &PathBuf| std::fs::metadata(file).unwrap().modified().unwrap();
    let before: Vec<_> = files().iter().map(modified).collect();
    assert_eq!(texts(&cached, 1000), expected, "read again");
    assert_eq!(files().iter().map(modified).collect::<Vec<_>>(), before, "a sound file is left alone");
    for damage in
        [&|bytes: &mut Vec<u8>| bytes[5000] ^= 1, &|bytes: &mut Vec<u8>| bytes.truncate(700), &|bytes: &mut Vec<u8>| {
            bytes[20] ^= 1
        }] as [&dyn Fn(&mut Vec<u8>); 3]
    {
        let mut bytes = sound[0].clone();
        damage(&mut bytes);
        std::fs::write(&files()[0], bytes).unwrap();
        assert_eq!(texts(&cached, 1000), expected, "damaged");
        let found: Vec<Vec<u8>> = files().iter().map(|file| std::fs::read(file).unwrap()).collect();
        assert!(found == sound, "a damaged file is replaced");
    }
    texts(&EngineConfig { quantization: Some(Quantization::Int4), ..cached }, 1000);
    assert_eq!(files().len(), 4, "another packing has files of its own");
}

/// F22: a cache on a disk without room, or that may not be written to, stops nothing.
#[test]
fn f22_packed_weights_that_cannot_be_kept_are_done_without() {
    let dir = tempfile::tempdir().unwrap();
    biased_llama(dir.path(), Dtype::F32);
    let plain = EngineConfig { quantization: Some(Quantization::Int8), ..config(dir.path()) };
    // Nobody, not even root, makes a directory below a file.
    let nowhere = dir.path().join("config.json").join("packs");
    let cached = EngineConfig { pack_cache: Some(nowhere.clone()), ..plain.clone() };
    assert_eq!(texts(&cached, 1000), texts(&plain, 1000));
    let (engine, _) = load(&cached).unwrap();
    let error = engine.pack_cache_error().unwrap();
    assert!(error.starts_with(nowhere.to_str().unwrap()), "{error}");
    assert_eq!(load(&plain).unwrap().0.pack_cache_error(), None);
}

#[test]
fn choices_differ_and_a_resumed_choice_goes_on_as_it_would_have() {
    let (mut engine, pool) = load(&config(&golden("llama"))).unwrap();
    let whole = generate(&mut engine, &pool, &spec(20, 3, 1.0), 64).unwrap();
    assert_ne!(bits(&whole[0]), bits(&whole[1]));
    for (choice, tokens) in (0..).zip(&whole) {
        let emitted = tokens[..8].iter().map(|token| token.id).collect();
        let resumed = GenerateSpec { output: emitted, choices: choice..choice + 1, ..spec(20, 3, 1.0) };
        let rest = generate(&mut engine, &pool, &resumed, 64).unwrap().remove(0);
        assert_eq!(bits(&rest), bits(&tokens[8..]));
        assert_eq!(rest[0].position, 8);
    }
}

/// A prompt of its own with its own blocks.
struct Sequence {
    tokens: Vec<TokenId>,
    blocks: Vec<BlockId>,
}

impl Sequence {
    fn new(index: u32) -> Self {
        let skip = 3 * index as usize;
        let tokens = prompt(skip + 10 + 11 * index as usize).split_off(skip);
        let blocks = (10 * index..).take(tokens.len().div_ceil(16)).map(BlockId).collect();
        Self { tokens, blocks }
    }

    /// The first half or the second.
    fn row<'a>(&'a self, second: bool, params: &'a SamplingParams) -> BatchRow<'a> {
        let middle = self.tokens.len() / 2;
        let (tokens, start) =
            if second { (&self.tokens[middle..], middle as u32) } else { (&self.tokens[..middle], 0) };
        let samples = vec![SampleRequest { params, choice: 0, prompt: &self.tokens, output: &[], constraint: None }];
        BatchRow { tokens, start, blocks: &self.blocks, samples, probe: Probe::None }
    }
}

fn step(engine: &mut Engine, rows: Vec<BatchRow<'_>>) -> Vec<Bits> {
    let output = engine.step(&Batch { rows }, &NoObserver).unwrap();
    output.rows.iter().map(|row| bits(row)).collect()
}

#[test]
fn a_row_does_not_know_its_neighbours() {
    let params = SamplingParams { logprobs: Some(3), ..SamplingParams::default() };
    for model in ["llama-tied", "mistral", "qwen3"] {
        let (mut engine, _) = load(&config(&golden(model))).unwrap();
        let sequences: Vec<Sequence> = (0..7).map(Sequence::new).collect();
        let mut alone = Vec::new();
        for sequence in &sequences {
            step(&mut engine, vec![sequence.row(false, &params)]);
            alone.extend(step(&mut engine, vec![sequence.row(true, &params)]));
        }
        let together = |second| sequences.iter().map(|sequence| sequence.row(second, &params)).collect();
        step(&mut engine, together(false));
        assert_eq!(step(&mut engine, together(true)), alone, "{model}");
    }
}

/// The KV that ranks write is that of one rank, read through the store in one canonical form.
#[test]
fn kv_bytes_do_not_depend_on_ranks_or_block_size() {
    let dir = tempfile::tempdir().unwrap();
    biased_llama(dir.path(), Dtype::F32);
    let read = |tensor_parallel_size, block_size| {
        let config = EngineConfig { tensor_parallel_size, block_size, ..config(dir.path()) };
        let (mut engine, _) = load(&config).unwrap();
        let blocks: Vec<BlockId> = (0..9).rev().map(BlockId).collect();
        let row = BatchRow { tokens: &prompt(50), start: 0, blocks: &blocks, samples: Vec::new(), probe: Probe::None };
        let output = engine.step(&Batch { rows: vec![row] }, &NoObserver).unwrap();
        assert_eq!(output.rows, [vec![]]);
        let store = engine.kv_store();
        let span = |layer| KvSpan { layer, heads: 1..7, tokens: 3..50 };
        let payload = |layer| {
            let mut bytes = vec![0; span(layer).payload_bytes(&store.layout())];
            store.read(&span(layer), &blocks, &mut bytes).unwrap();
            bytes
        };
        [payload(0), payload(1)]
    };
    let expected = read(1, 16);
    assert!(expected[1].iter().any(|byte| *byte != 0));
    for (ranks, block_size) in [(2, 16), (4, 8), (8, 32)] {
        assert_eq!(read(ranks, block_size), expected, "{ranks} ranks, blocks of {block_size}");
    }
}

#[test]
fn the_observer_hears_of_every_layer_and_head_when_the_kv_is_there() {
    struct Seen {
        store: std::sync::Arc<dyn kv::KvStore>,
        calls: parking_lot::Mutex<Vec<(u32, Range<u32>)>>,
    }
    impl StepObserver for Seen {
        fn layer_done(&self, layer: u32, heads: Range<u32>) {
            let span = KvSpan { layer, heads: heads.clone(), tokens: 0..20 };
            let mut bytes = vec![0; span.payload_bytes(&self.store.layout())];
            self.store.read(&span, &[BlockId(0), BlockId(1)], &mut bytes).unwrap();
            assert!(bytes.chunks_exact(4).all(|value| value != [0; 4]), "layer {layer}");
            self.calls.lock().push((layer, heads));
        }
    }
    let dir = tempfile::tempdir().unwrap();
    biased_llama(dir.path(), Dtype::F32);
    let (mut engine, _) = load(&EngineConfig { tensor_parallel_size: 4, ..config(dir.path()) }).unwrap();
    let seen = Seen { store: engine.kv_store(), calls: parking_lot::Mutex::default() };
    let row = BatchRow {
        tokens: &prompt(20),
        start: 0,
        blocks: &[BlockId(0), BlockId(1)],
        samples: Vec::new(),
        probe: Probe::None,
    };
    engine.step(&Batch { rows: vec![row] }, &seen).unwrap();
    let mut calls = seen.calls.into_inner();
    calls.sort_by_key(|(layer, heads)| (*layer, heads.start));
    let expected: Vec<_> = (0..2).flat_map(|layer| (0..4).map(move |rank| (layer, 2 * rank..2 * rank + 2))).collect();
    assert_eq!(calls, expected);
}

/// A pool that is too small refuses and keeps nothing.
#[test]
fn the_oracle_gives_back_what_it_took() {
    let (mut engine, _) = load(&config(&golden("llama"))).unwrap();
    let pool = BlockPool::new(3, 16);
    let error = generate(&mut engine, &pool, &spec(40, 2, 0.0), 64).unwrap_err();
    assert!(error.to_string().contains("blocks wanted"), "{error}");
    assert_eq!(pool.stats().free, 3);
}

#[test]
fn a_prompts_scores_do_not_depend_on_chunks_or_ranks() {
    let dir = tempfile::tempdir().unwrap();
    for model in models(dir.path()) {
        let scores = |ranks: usize, chunk: usize| {
            let config = EngineConfig { tensor_parallel_size: ranks, ..config(&model) };
            let (mut engine, pool) = load(&config).unwrap();
            prompt_scores(&mut engine, &pool, &prompt(90), 3, chunk).unwrap()
        };
        let whole = scores(1, 90);
        assert_eq!(whole.len(), 89);
        assert!(whole.iter().all(|score| score.logprob < 0.0 && score.rank >= 1 && score.top.len() == 3));
        assert!(whole.iter().all(|score| (score.rank == 1) == (score.top[0].1 == score.logprob)));
        for (ranks, chunk) in [(1, 1), (1, 7), (2, 90), (2, 16)] {
            assert_eq!(scores(ranks, chunk), whole, "{} ranks, chunks of {chunk}: {}", ranks, model.display());
        }
    }
}

#[test]
fn a_texts_vector_does_not_depend_on_chunks_or_ranks() {
    let dir = tempfile::tempdir().unwrap();
    for model in models(dir.path()) {
        let vector = |ranks: usize, pooling, len, chunk| {
            let config = EngineConfig { tensor_parallel_size: ranks, ..config(&model) };
            let (mut engine, pool) = load(&config).unwrap();
            embed(&mut engine, &pool, &prompt(len), pooling, chunk).unwrap()
        };
        for pooling in [Pooling::Last, Pooling::Mean] {
            let whole = vector(1, pooling, 40, 90);
            assert!(whole.len() > 1 && whole.iter().any(|value| *value != 0.0));
            for (ranks, chunk) in [(1, 1), (1, 7), (2, 16)] {
                assert_eq!(vector(ranks, pooling, 40, chunk), whole, "{pooling:?}, {ranks} ranks, chunks of {chunk}");
            }
        }
        // The mean over a text is the mean of the last states of its beginnings.
        let mean = vector(1, Pooling::Mean, 5, 90);
        let lasts: Vec<_> = (1..=5).map(|len| vector(1, Pooling::Last, len, 90)).collect();
        for (at, mean) in mean.iter().enumerate() {
            let expected = lasts.iter().map(|last| f64::from(last[at])).sum::<f64>() / 5.0;
            assert!((f64::from(*mean) - expected).abs() < 1e-6, "{}", model.display());
        }
    }
}
