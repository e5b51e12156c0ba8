//! What a warm decode step allocates: its answer and nothing else, so nothing per layer, per block of context or per vocabulary entry.
//!
//! A binary of its own, because every thread's allocations are counted.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::Path;

use engine::{Batch, BatchRow, Engine, EngineConfig, NoObserver, Probe, Quantization, SampleRequest};
use kernels::CountingAllocator;
use kv::BlockId;
use types::{SamplingParams, TokenId};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Per step: the draws, their results, the rows' lists, the probes' list.
const PER_STEP: u64 = 4;
/// Per row: its list of tokens.
const PER_ROW: u64 = 1;

const ROWS: usize = 3;
const CONTEXT: u32 = 40;
const BLOCKS_EACH: u32 = 4;

fn config(quantization: Option<Quantization>) -> EngineConfig {
    EngineConfig {
        model_dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama"),
        tensor_parallel_size: 1,
        threads: 2,
        block_size: 16,
        quantization,
        pack_cache: None,
        kv_dtype: None,
        kv_bytes: Some(8 << 20),
        max_model_len: Some(256),
        max_num_seqs: 8,
        max_num_batched_tokens: 256,
    }
}

/// Allocations of one decode step of some rows, after others like it.
fn decode(engine: &mut Engine, params: &SamplingParams) -> u64 {
    let prompt: Vec<TokenId> = (0..CONTEXT).map(|token| 3 + token % 20).collect();
    let blocks: Vec<Vec<BlockId>> =
        (0..ROWS as u32).map(|row| (row * BLOCKS_EACH..(row + 1) * BLOCKS_EACH).map(BlockId).collect()).collect();
    let batch = |start: u32, tokens: std::ops::Range<usize>| Batch {
        rows: blocks
            .iter()
            .map(|blocks| BatchRow {
                tokens: &prompt[tokens.clone()],
                start,
                blocks,
                samples: vec![SampleRequest { params, choice: 0, prompt: &prompt, output: &[], constraint: None }],
                probe: Probe::None,
            })
            .collect(),
    };
    engine.step(&batch(0, 0..prompt.len()), &NoObserver).unwrap();
    let steps: Vec<_> = (0..4).map(|step| batch(CONTEXT + step, 0..1)).collect();
    let mut count = 0;
    for step in &steps {
        let before = CountingAllocator::count();
        let output = engine.step(step, &NoObserver).unwrap();
        count = CountingAllocator::count() - before;
        assert_eq!(output.rows.len(), ROWS);
    }
    count
}

#[test]
fn a_warm_decode_step_allocates_its_answer_and_nothing_else() {
    let greedy = SamplingParams::default();
    let nucleus = SamplingParams { temperature: 0.8, top_p: 0.9, top_k: 20, min_p: 0.01, ..greedy.clone() };
    for quantization in [None, Some(Quantization::Int8)] {
        let mut engine = Engine::load(&config(quantization), &mut |_| ()).unwrap();
        for params in [&greedy, &nucleus] {
            let count = decode(&mut engine, params);
            let most = PER_STEP + ROWS as u64 * PER_ROW;
            assert!(count <= most, "{count} allocations, at most {most}: {quantization:?} {params:?}");
        }
    }
}
