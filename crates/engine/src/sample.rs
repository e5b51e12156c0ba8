//! From logits to a token.
//!
//! Pure: the same logits and request yield the same token, on any instance. Order: constraint, allowed tokens, bad words and minimum
//! length, logit bias, penalties, temperature, min-p, top-k, top-p, draw. Log-probabilities are those of the untouched logits.

mod adjust;
mod draw;
mod permit;
mod random;

use kernels::{Isa, argmax, log_sum_exp};
use types::{FinishReason, SampledToken, TokenId, TokenScore};

use crate::SampleRequest;

/// Below this, a temperature is greedy: dividing by it would overflow.
const TEMPERATURE_MIN: f32 = 1e-5;

/// End-of-sequence tokens and those that the request stops at.
type Ends<'a> = [&'a [TokenId]; 2];

/// The model computed no numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("logits that are not numbers")]
pub struct NotANumber;

/// Draws tokens and decides when a choice ends.
#[derive(Debug)]
pub struct Sampler {
    isa: Isa,
    eos_token_ids: Vec<TokenId>,
    max_model_len: usize,
}

impl Sampler {
    /// For a model that ends its texts with one of `eos_token_ids`, after `max_model_len` tokens at most.
    pub fn new(isa: Isa, eos_token_ids: Vec<TokenId>, max_model_len: u32) -> Self {
        Self { isa, eos_token_ids, max_model_len: max_model_len as usize }
    }

    pub(crate) fn eos_token_ids(&self) -> &[TokenId] {
        &self.eos_token_ids
    }

    /// The next token, of which `logits` are one row; `None` if the request leaves no token.
    pub fn sample(&self, logits: &[f32], request: &SampleRequest<'_>) -> Result<Option<SampledToken>, NotANumber> {
        let params = request.params;
        let normaliser = log_sum_exp(self.isa, logits);
        if !normaliser.is_finite() {
            return Err(NotANumber);
        }
        let ends = self.ends(request);
        let permitted = permit::permitted(request, &self.eos_token_ids);
        let adjusted = adjust::adjust(logits, request, ends, permitted.as_ref());
        let scores = adjusted.as_deref().unwrap_or(logits);
        if let Some(beam) = params.beam {
            return self.candidates(scores, request, 2 * beam.width as usize).ok_or(NotANumber).map(Some);
        }
        let best = argmax(self.isa, scores).ok_or(NotANumber)?;
        if scores[best] == f32::NEG_INFINITY {
            return Ok(None);
        }
        let id = if params.temperature < TEMPERATURE_MIN {
            best
        } else {
            let position = request.output.len() as u32;
            draw::draw(self.isa, scores, scores[best], params, random::uniform(params.seed, request.choice, position))
        };
        let top = draw::largest(logits, params.logprobs.unwrap_or(0) as usize);
        Ok(Some(SampledToken {
            choice: request.choice,
            id: id as TokenId,
            position: request.output.len() as u32,
            logprob: logits[id] - normaliser,
            top: top.into_iter().map(|id| (id as TokenId, logits[id] - normaliser)).collect(),
            finish: self.finish(id as TokenId, request, ends),
        }))
    }

    /// For a beam search: the most probable tokens of the adjusted logits, all of them as alternatives of the best.
    fn candidates(&self, scores: &[f32], request: &SampleRequest<'_>, count: usize) -> Option<SampledToken> {
        let normaliser = log_sum_exp(self.isa, scores);
        let possible = draw::largest(scores, count).into_iter().filter(|id| scores[*id] > f32::NEG_INFINITY);
        let top: Vec<_> = possible.map(|id| (id as TokenId, scores[id] - normaliser)).collect();
        let &(id, logprob) = top.first()?;
        let position = request.output.len() as u32;
        Some(SampledToken { choice: request.choice, id, position, logprob, top, finish: None })
    }

    /// How likely a given token is, with the `top` most probable. `None` if the logits are not numbers.
    pub(crate) fn score(&self, logits: &[f32], id: TokenId, top: u32) -> Option<TokenScore> {
        let normaliser = log_sum_exp(self.isa, logits);
        let logit = *logits.get(id as usize).filter(|_| normaliser.is_finite())?;
        let better = logits.iter().filter(|other| **other > logit).count();
        let top = draw::largest(logits, top as usize);
        Some(TokenScore {
            logprob: logit - normaliser,
            rank: better as u32 + 1,
            top: top.into_iter().map(|id| (id as TokenId, logits[id] - normaliser)).collect(),
        })
    }

    /// Tokens that end this request. Under a constraint EOS is drawn only where the text ends.
    fn ends<'a>(&'a self, request: &SampleRequest<'a>) -> Ends<'a> {
        let text = request.params.ignore_eos && request.constraint.is_none();
        [if text { &[] } else { &self.eos_token_ids }, &request.params.stop_token_ids]
    }

    fn finish(&self, id: TokenId, request: &SampleRequest<'_>, ends: Ends<'_>) -> Option<FinishReason> {
        let output = request.output.len() + 1;
        if ends.iter().any(|ends| ends.contains(&id)) {
            return Some(FinishReason::Stop);
        }
        let full = request.prompt.len() + output >= self.max_model_len;
        (full || output >= request.params.max_tokens as usize).then_some(FinishReason::Length)
    }
}

#[cfg(test)]
mod tests;
