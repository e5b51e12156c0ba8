//! One choice's answer so far: its token ids, the text made of them, and why it ended. It outlives every attempt.
//!
//! Tokens count by their position, so what an attempt repeats is dropped and what it skips is noticed.

use std::sync::Arc;

use text::{Detokenizer, Parted, ReasoningParser, StopMatcher, Tokenizer};
use tokio::time::Instant;
use types::{FinishReason, SampledToken, SamplingParams, TokenId, TokenScore};

use openai::{Finish, PromptScore, PromptToken, TokenChance, TokenLogprob};

/// How tokens become an answer; the same for every choice of a request.
#[derive(Clone)]
pub(crate) struct Style {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) skip_special: bool,
    /// Special tokens that are text all the same: marks of thoughts and calls.
    pub(crate) shown: Arc<[TokenId]>,
    /// Parts thoughts from the rest, where the model may think.
    pub(crate) reasoning: Option<ReasoningParser>,
    pub(crate) stop: Vec<String>,
    pub(crate) include_stop: bool,
    /// The text continues the prompt (completions), so the first word keeps its space.
    pub(crate) after_prompt: bool,
    /// What the client is shown beside text.
    pub(crate) token_ids: bool,
    pub(crate) logprobs: bool,
    /// Logprobs name tokens by their ids.
    pub(crate) tokens_as_ids: bool,
}

impl Style {
    /// Text only, no stop strings.
    pub(crate) fn plain(tokenizer: Tokenizer) -> Self {
        Self {
            tokenizer,
            skip_special: true,
            shown: Arc::default(),
            reasoning: None,
            stop: Vec::new(),
            include_stop: false,
            after_prompt: false,
            token_ids: false,
            logprobs: false,
            tokens_as_ids: false,
        }
    }

    /// A prompt's tokens with their scores, which begin at the second.
    pub(crate) fn prompt(&self, prompt: &[TokenId], scores: &[TokenScore]) -> Vec<PromptToken> {
        let scores = std::iter::once(None).chain(scores.iter().map(Some));
        prompt.iter().zip(scores).map(|(&id, score)| self.prompt_token(id, score)).collect()
    }

    fn prompt_token(&self, id: TokenId, score: Option<&TokenScore>) -> PromptToken {
        let chance = self.chance(id, 0.0);
        let special = self.tokenizer.is_special(id);
        PromptToken {
            id,
            chars: if special { 0 } else { String::from_utf8_lossy(&chance.bytes).chars().count() },
            token: chance.token,
            score: score.map(|score| PromptScore {
                logprob: score.logprob,
                rank: score.rank,
                top: score.top.iter().map(|&(id, logprob)| (id, self.chance(id, logprob))).collect(),
            }),
        }
    }

    fn chance(&self, id: TokenId, logprob: f32) -> TokenChance {
        let token = match self.tokens_as_ids {
            true => format!("token_id:{id}"),
            false => self.tokenizer.token_text(id),
        };
        TokenChance { token, logprob, bytes: self.tokenizer.token_bytes(id) }
    }
}

pub(crate) struct Answer {
    /// Which sequence of the attempt's spec.
    pub(crate) choice: u32,
    /// Which choice of the client's answer.
    index: u32,
    tokens: Vec<TokenId>,
    finish: Option<Finish>,
    /// The worker said that this choice is over; it holds nothing for it any more.
    ended_by_worker: bool,
    /// When the last token came.
    pub(crate) last_at: Option<Instant>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    reasoning: Option<ReasoningParser>,
    style: Style,
}

/// What a choice got since the last piece.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) index: u32,
    /// What the model thought; it comes before all text.
    pub(crate) reasoning: String,
    pub(crate) text: String,
    /// Number of tokens.
    pub(crate) tokens: u32,
    /// Those of them that are thought.
    pub(crate) reasoning_tokens: u32,
    /// Of all its tokens.
    pub(crate) logprob_sum: f64,
    /// When the client asked for them.
    pub(crate) token_ids: Vec<TokenId>,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) finish: Option<Finish>,
}

/// The worker skipped positions: it continues something else than we have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token at position {found} after {expected}")]
pub(crate) struct Gap {
    pub(crate) expected: u32,
    pub(crate) found: u32,
}

impl Answer {
    pub(crate) fn new(choice: u32, index: u32, style: Style) -> Self {
        let tokenizer = style.tokenizer.clone();
        let detokenizer = match style.after_prompt {
            true => Detokenizer::after_prompt(tokenizer, style.skip_special),
            false => Detokenizer::new(tokenizer, style.skip_special),
        };
        let detokenizer = detokenizer.showing(style.shown.clone());
        let stops = StopMatcher::new(style.stop.clone(), style.include_stop);
        Self {
            choice,
            index,
            tokens: Vec::new(),
            finish: None,
            ended_by_worker: false,
            last_at: None,
            detokenizer,
            stops,
            reasoning: style.reasoning.clone(),
            style,
        }
    }

    /// Token ids that the client has been given (as text, or held back as a possible stop string).
    pub(crate) fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    pub(crate) fn finish(&self) -> Option<&Finish> {
        self.finish.as_ref()
    }

    pub(crate) fn ended_by_worker(&self) -> bool {
        self.ended_by_worker
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Takes the next token. `None`: it was taken before, or came after the end.
    pub(crate) fn take(&mut self, token: &SampledToken, sampling: &SamplingParams) -> Result<Option<Piece>, Gap> {
        let expected = self.tokens.len() as u32;
        // After a stop string the worker goes on until it hears of it.
        if token.position > expected && !self.is_finished() {
            return Err(Gap { expected, found: token.position });
        }
        self.ended_by_worker |= token.finish.is_some();
        if self.is_finished() || token.position < expected {
            return Ok(None);
        }
        self.tokens.push(token.id);
        let thought = self.is_thinking();
        // A worker that never ends is ended here.
        let length = (self.tokens.len() >= sampling.max_tokens as usize).then_some(FinishReason::Length);
        let ended = token.finish.or(length);
        let mut text = String::new();
        if ended != Some(FinishReason::Stop) || self.style.include_stop {
            let decoded = self.detokenizer.push(token.id);
            self.add(&mut text, &decoded);
        }
        if let (Some(reason), None) = (ended, &self.finish) {
            self.end(&mut text, reason, token.id, sampling);
        }
        let Parted { reasoning, content } = self.part(text);
        Ok(Some(Piece {
            index: self.index,
            reasoning,
            text: content,
            tokens: 1,
            reasoning_tokens: u32::from(thought || self.is_thinking()),
            logprob_sum: f64::from(token.logprob),
            token_ids: if self.style.token_ids { vec![token.id] } else { Vec::new() },
            logprobs: if self.style.logprobs { vec![self.logprob(token)] } else { Vec::new() },
            finish: self.finish.clone(),
        }))
    }

    fn is_thinking(&self) -> bool {
        self.reasoning.as_ref().is_some_and(ReasoningParser::is_thinking)
    }

    fn part(&mut self, text: String) -> Parted {
        let Some(parser) = &mut self.reasoning else { return Parted { content: text, ..Parted::default() } };
        let mut parted = parser.push(&text);
        if self.finish.is_some() {
            let Parted { reasoning, content } = parser.finish();
            parted.reasoning.push_str(&reasoning);
            parted.content.push_str(&content);
        }
        parted
    }

    fn add(&mut self, text: &mut String, decoded: &str) {
        let stopped = self.stops.push(decoded);
        text.push_str(&stopped.emit);
        if let Some(hit) = stopped.hit {
            self.finish = Some(Finish::stop_string(hit));
        }
    }

    /// The worker's end: lets go of what was held back, in which a stop string may still be found.
    fn end(&mut self, text: &mut String, reason: FinishReason, last: TokenId, sampling: &SamplingParams) {
        let rest = self.detokenizer.finish();
        self.add(text, &rest);
        if self.finish.is_some() {
            return;
        }
        text.push_str(&self.stops.finish());
        self.finish = Some(match reason {
            FinishReason::Length => Finish::length(),
            FinishReason::Stop if sampling.stop_token_ids.contains(&last) => Finish::stop_token(last),
            FinishReason::Stop => Finish::eos(),
        });
    }

    fn logprob(&self, token: &SampledToken) -> TokenLogprob {
        TokenLogprob {
            sampled: self.style.chance(token.id, token.logprob),
            top: token.top.iter().map(|&(id, logprob)| self.style.chance(id, logprob)).collect(),
        }
    }
}

impl Piece {
    /// Appends a later piece of the same choice.
    pub(crate) fn extend(&mut self, later: Piece) {
        self.reasoning.push_str(&later.reasoning);
        self.text.push_str(&later.text);
        self.tokens += later.tokens;
        self.reasoning_tokens += later.reasoning_tokens;
        self.logprob_sum += later.logprob_sum;
        self.token_ids.extend(later.token_ids);
        self.logprobs.extend(later.logprobs);
        self.finish = later.finish;
    }

    /// Roughly what it holds in memory.
    pub(crate) fn bytes(&self) -> usize {
        let logprobs = self.logprobs.iter().map(|token| 64 * (1 + token.top.len())).sum::<usize>();
        self.reasoning.len() + self.text.len() + 4 * self.token_ids.len() + logprobs
    }
}
