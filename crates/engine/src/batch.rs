//! What one step computes: rows of new tokens, draws from their logits, and who hears of finished layers.

use std::ops::Range;

use kv::BlockId;
use types::{SampledToken, SamplingParams, TokenId};

/// The rows of one step.
#[derive(Clone, Debug, Default)]
pub struct Batch<'a> {
    pub rows: Vec<BatchRow<'a>>,
}

/// Computes `tokens`, whose first stands at position `start`. The KV of `0..start` is already in `blocks`; that of the new
/// tokens is written there. `blocks[i]` holds the positions from `i * block_size` on.
#[derive(Clone, Debug)]
pub struct BatchRow<'a> {
    pub tokens: &'a [TokenId],
    pub start: u32,
    pub blocks: &'a [BlockId],
    /// Draws from the last new token's logits; empty for a chunk that does not end its prompt.
    pub samples: Vec<SampleRequest<'a>>,
}

/// One draw. `prompt` and `output` are the sequence so far, for penalties, lengths and the draw's place in the random sequence.
#[derive(Clone, Debug)]
pub struct SampleRequest<'a> {
    pub params: &'a SamplingParams,
    pub choice: u32,
    pub prompt: &'a [TokenId],
    pub output: &'a [TokenId],
}

/// Hears when KV is ready to be shipped.
pub trait StepObserver: Sync {
    /// The KV of this layer and these heads has been written for every row of the batch. Called from rank threads while the step
    /// goes on; must not block.
    fn layer_done(&self, layer: u32, heads: Range<u32>);
}

/// For steps whose KV nobody waits for.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl StepObserver for NoObserver {
    fn layer_done(&self, _layer: u32, _heads: Range<u32>) {}
}

/// What a step yields.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutput {
    /// Per row of the batch, one token per [`SampleRequest`], in order. `finish` is set where the token ends its choice.
    pub rows: Vec<Vec<SampledToken>>,
    /// Wall time of the step in microseconds, sampling included.
    pub micros: u64,
}
