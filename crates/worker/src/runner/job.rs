//! What a runner is asked to do and what it answers.

use std::ops::Range;
use std::sync::Arc;

use kv::{BlockRef, BlockTable};
use proto::control::{FailCode, PrefillStats};
use text::Matcher;
use types::{GenerateSpec, Pooling, RequestKey, SampledToken, TokenScore};

/// One attempt's work.
pub struct Job {
    pub key: RequestKey,
    pub spec: GenerateSpec,
    pub goal: Goal,
    /// At the start of the text that the spec's grammar describes; there if and only if there is a grammar.
    pub matcher: Option<Matcher>,
}

/// How far a job goes, and from where.
pub enum Goal {
    /// Compute the context and draw one token per choice; `watcher` hears of the KV on the way.
    FirstTokens { watcher: Arc<dyn KvWatcher> },
    /// Compute the context and make a vector of it.
    Embed { pooling: Pooling },
    /// Compute the context here and draw until every choice is finished.
    Complete,
    /// Go on from KV computed elsewhere: `table` holds that of the whole context, `first` what was drawn from it.
    Continue { table: BlockTable, first: Vec<SampledToken> },
}

/// Hears where a job's KV lies and when it is written. Calls come from compute threads and must not block.
pub trait KvWatcher: Send + Sync {
    /// The context's blocks are set aside; the KV of the first `computed` tokens is already in them. A failure ends the job.
    fn admitted(&self, blocks: &[BlockRef], computed: u32) -> Result<(), Failure>;
    /// KV of these tokens (positions in the context) is written for this layer and these heads.
    fn layer_done(&self, layer: u32, heads: Range<u32>, tokens: Range<u32>);
    /// The step that ends the context is over: all of its KV is written, and the first tokens are drawn.
    fn computed(&self);
}

/// Something that happened to a job.
#[derive(Debug, PartialEq)]
pub struct Event {
    pub key: RequestKey,
    pub what: Happening,
}

/// After `Finished` or `Failed` nothing follows, and the runner holds nothing for the job any more.
#[derive(Debug, PartialEq)]
pub enum Happening {
    /// Tokens of one step, at most one per choice. `prompt` comes once, with the first tokens of a context computed here.
    Sampled {
        tokens: Vec<SampledToken>,
        prompt: Option<PromptStats>,
    },
    /// How likely the model finds the prompt's tokens from position `first` on. All come before the first token that is sampled.
    Scored {
        first: u32,
        scores: Vec<TokenScore>,
    },
    /// The context's vector, not brought to any length.
    Embedded {
        values: Vec<f32>,
        prompt: Option<PromptStats>,
    },
    Finished,
    Failed(Failure),
}

/// What computing a context took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptStats {
    pub context_tokens: u32,
    /// Found in the prefix cache.
    pub cached_tokens: u32,
    pub queue_us: u64,
    /// Time of the steps that took part in it.
    pub compute_us: u64,
}

impl From<PromptStats> for PrefillStats {
    fn from(stats: PromptStats) -> Self {
        PrefillStats {
            prompt_tokens: stats.context_tokens,
            cached_tokens: stats.cached_tokens,
            queue_us: stats.queue_us,
            compute_us: stats.compute_us,
        }
    }
}

/// Why an attempt ended early, as the scheduler is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: FailCode,
    pub message: String,
}

impl Failure {
    pub fn new(code: FailCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
