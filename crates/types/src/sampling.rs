//! What to generate and how to sample it, after validation.

use std::ops::Range;
use std::sync::Arc;

use crate::TokenId;

/// How the next token is drawn from the logits, and how urgently. Every value is already within its bounds.
///
/// A temperature of 0 is greedy. The random numbers are counter-based, keyed by (`seed`, choice, output position), so a resumed
/// attempt draws what the lost one would have drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    pub temperature: f32,
    pub top_p: f32,
    /// 0 = off.
    pub top_k: u32,
    pub min_p: f32,
    pub seed: u64,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub repetition_penalty: f32,
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Only these may be drawn; empty = all.
    pub allowed_token_ids: Vec<TokenId>,
    /// Sequences of tokens, none empty, that the output must not contain.
    pub bad_words: Vec<Vec<TokenId>>,
    pub stop_token_ids: Vec<TokenId>,
    pub ignore_eos: bool,
    /// EOS and stop tokens are masked before this many output tokens.
    pub min_tokens: u32,
    pub max_tokens: u32,
    /// Report the sampled token's logprob and this many alternatives.
    pub logprobs: Option<u32>,
    /// The whole output, from position 0 on, must belong to this language.
    pub grammar: Option<Grammar>,
    /// Report how likely the model finds each token of the prompt, with this many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// Search for the most probable outputs instead of drawing one per choice; the choices are then the best found, best first.
    pub beam: Option<BeamParams>,
    /// Place in a worker's queue: lower goes first, equal ones in order of arrival.
    pub priority: i32,
}

/// A language that output is held to. The texts are the client's, checked and bounded where they came in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// A JSON value that this JSON schema accepts.
    JsonSchema(Arc<str>),
    /// A text that this regular expression matches as a whole.
    Regex(Arc<str>),
    /// One of these texts.
    Choice(Arc<[Arc<str>]>),
    /// A context-free grammar in the Lark notation, with `start` as its first rule.
    Lark(Arc<str>),
}

impl Default for SamplingParams {
    /// Greedy, 16 tokens.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            allowed_token_ids: Vec::new(),
            bad_words: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            min_tokens: 0,
            max_tokens: 16,
            logprobs: None,
            grammar: None,
            prompt_logprobs: None,
            beam: None,
            priority: 0,
        }
    }
}

/// One attempt's work: continue `prompt + output` for each choice in `choices`.
///
/// `output` is what the client already has (empty on a first attempt); it counts as output for penalties, `min_tokens` and
/// `max_tokens`. A resumed attempt has exactly one choice, since choices differ once they have output.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateSpec {
    pub prompt: Arc<[TokenId]>,
    pub output: Vec<TokenId>,
    pub choices: Range<u32>,
    pub sampling: SamplingParams,
    /// Hashed tenant salt of the prefix cache; empty = shared.
    pub cache_salt: Vec<u8>,
}

impl GenerateSpec {
    /// Number of tokens whose KV must exist before the next token can be sampled.
    pub fn context_len(&self) -> usize {
        self.prompt.len() + self.output.len()
    }
}

/// A token as the sampler reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    pub choice: u32,
    pub id: TokenId,
    /// Index among the choice's output tokens.
    pub position: u32,
    /// Natural log of the model's probability, before temperature and penalties.
    pub logprob: f32,
    /// Most probable alternatives, best first; empty unless asked for.
    pub top: Vec<(TokenId, f32)>,
    /// Set on a choice's last token.
    pub finish: Option<FinishReason>,
}

/// Beam search: how many continuations are followed, and when it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BeamParams {
    /// At least 1.
    pub width: u32,
    /// A sequence's score is its summed logprob divided by its length to this power.
    pub length_penalty: f32,
    pub early_stopping: EarlyStopping,
}

/// When a beam search that has as many finished sequences as its width ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EarlyStopping {
    /// When the best unfinished one, as long as it is now, is no better than the worst finished one.
    No,
    /// At once.
    Yes,
    /// When no unfinished one can become better, however long it gets.
    Never,
}

/// Which of the model's last hidden states make a text's vector.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pooling {
    /// That of the last token.
    Last,
    /// The mean over all tokens.
    Mean,
}

/// How likely the model finds a given token, such as one of the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural log of its probability.
    pub logprob: f32,
    /// 1 = the most probable of the vocabulary.
    pub rank: u32,
    /// Most probable alternatives, best first; empty unless asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a choice ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FinishReason {
    /// EOS, a stop token, or (decided by the scheduler) a stop string.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
}
