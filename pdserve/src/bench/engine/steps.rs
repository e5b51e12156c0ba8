//! Runs the same step again and again on an engine whose KV memory is filled.

use std::time::{Duration, Instant};

use anyhow::ensure;
use engine::{Batch, BatchRow, Engine, NoObserver, Probe, SampleRequest};
use half::bf16;
use kv::{BlockId, KvDtype, KvSpan};
use types::{SamplingParams, TokenId};

use super::cost::Work;

/// A case is repeated for at least this long per round, so that one late wake-up does not make the figure.
const AT_LEAST: Duration = Duration::from_millis(300);
/// Ids below this are often special tokens.
const FIRST_ID: u32 = 100;

/// An engine with KV in every block.
pub(crate) struct Steps {
    engine: Engine,
    block_size: u32,
    vocab: u32,
    sampling: SamplingParams,
}

impl Steps {
    /// Pages that were never written would all be the same page of zeros, and in cache.
    pub(super) fn new(engine: Engine, block_size: u32) -> anyhow::Result<Self> {
        fill(&engine)?;
        let vocab = engine.identity().vocab_size;
        let sampling = SamplingParams { ignore_eos: true, max_tokens: u32::MAX, ..SamplingParams::default() };
        Ok(Self { engine, block_size, vocab, sampling })
    }

    /// Seconds of one step: the mean over as many as fill the time, after one that is not counted.
    pub(crate) fn seconds_per_step(&mut self, work: Work) -> anyhow::Result<f64> {
        let blocks_per_row = (work.before + work.new).div_ceil(self.block_size);
        let first = FIRST_ID.min(self.vocab / 2);
        let prompt: Vec<TokenId> = (0..work.before + work.new).map(|at| first + at % (self.vocab - first)).collect();
        let blocks: Vec<Vec<BlockId>> = (0..work.rows)
            .map(|row| (row * blocks_per_row..(row + 1) * blocks_per_row).map(BlockId).collect())
            .collect();
        let row = |blocks| BatchRow {
            tokens: &prompt[work.before as usize..],
            start: work.before,
            blocks,
            samples: vec![SampleRequest {
                params: &self.sampling,
                choice: 0,
                prompt: &prompt,
                output: &[],
                constraint: None,
            }],
            probe: Probe::None,
        };
        let batch = Batch { rows: blocks.iter().map(|blocks| row(blocks)).collect() };
        self.engine.step(&batch, &NoObserver)?;
        let (start, mut count) = (Instant::now(), 0);
        while count == 0 || start.elapsed() < AT_LEAST {
            let output = self.engine.step(&batch, &NoObserver)?;
            ensure!(output.rows.len() == work.rows as usize, "{} of {} rows came back", output.rows.len(), work.rows);
            count += 1;
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(count))
    }
}

/// Writes ordinary numbers into every block of every layer.
fn fill(engine: &Engine) -> anyhow::Result<()> {
    let store = engine.kv_store();
    let layout = store.layout();
    let span = |layer| KvSpan { layer, heads: 0..layout.kv_heads, tokens: 0..layout.block_size };
    let head_dim = layout.head_dim as usize;
    let heads = span(0).payload_bytes(&layout) / layout.dtype.head_bytes(head_dim);
    let values = (0..heads * head_dim).map(|index| ((index % 251) as f32 - 125.0) / 125.0);
    let bytes: Vec<u8> = match layout.dtype {
        KvDtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        KvDtype::Bf16 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
        KvDtype::Int8 => {
            let head = |head| (0..head_dim).map(move |index| ((head * head_dim + index) % 251) as u8);
            (0..heads).flat_map(|index| head(index).chain((1.0f32 / 127.0).to_le_bytes())).collect()
        }
    };
    for layer in 0..layout.layers {
        for block in (0..layout.blocks).map(BlockId) {
            store.write(&span(layer), &[block], &bytes)?;
        }
    }
    Ok(())
}
