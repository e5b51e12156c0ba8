//! What one step computes: rows of new tokens, draws from their logits, and who hears of finished layers.

use std::fmt::Debug;
use std::ops::Range;

use kv::BlockId;
use types::{SampledToken, SamplingParams, TokenId, TokenScore, TokenSet};

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
    pub probe: Probe<'a>,
}

/// What a row reports of its new tokens beside draws.
#[derive(Clone, Debug, Default)]
pub enum Probe<'a> {
    #[default]
    None,
    /// How likely the model finds what follows: `next[i]` after new token `skip + i`, with the `top` most probable.
    Scores { skip: usize, next: &'a [TokenId], top: u32 },
    /// The sum of the last hidden states, after the last norm, of the last `count` new tokens, added one after the other to `before`
    /// (empty = zeros).
    Hidden { count: usize, before: &'a [f64] },
}

/// The answer to a [`Probe`].
#[derive(Clone, Debug, PartialEq)]
pub enum Probed {
    None,
    /// One per token of `next`.
    Scores(Vec<TokenScore>),
    /// One number per hidden dimension.
    Hidden(Vec<f64>),
}

/// One draw. `prompt` and `output` are the sequence so far, for penalties, lengths and the draw's place in the random sequence.
#[derive(Clone, Debug)]
pub struct SampleRequest<'a> {
    pub params: &'a SamplingParams,
    pub choice: u32,
    pub prompt: &'a [TokenId],
    pub output: &'a [TokenId],
    pub constraint: Option<&'a dyn Constraint>,
}

/// Says what may follow in a sequence that is held to a grammar. Asked on compute threads, right before the draw.
pub trait Constraint: Sync + Debug {
    /// Of the model's own ends it says nothing: they are drawn where the set has an end. Nothing at all: no token is drawn.
    fn next(&self, output: &[TokenId]) -> TokenSet;
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
    /// A row is empty where a request leaves no token to be drawn.
    pub rows: Vec<Vec<SampledToken>>,
    /// One per row of the batch.
    pub probed: Vec<Probed>,
    /// Wall time of the step in microseconds, sampling included.
    pub micros: u64,
}
