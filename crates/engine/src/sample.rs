//! From logits to a token.
//!
//! Pure: the same logits and request yield the same token, on any instance. Order: allowed tokens, bad words and minimum length,
//! logit bias, penalties, temperature, min-p, top-k, top-p, draw. Log-probabilities are those of the untouched logits.

mod adjust;
mod draw;
mod random;

use kernels::{Isa, argmax, log_sum_exp};
use types::{FinishReason, SampledToken, TokenId};

use crate::SampleRequest;

/// Below this, a temperature is greedy: dividing by it would overflow.
const TEMPERATURE_MIN: f32 = 1e-5;

/// Draws tokens and decides when a choice ends.
pub(crate) struct Sampler {
    isa: Isa,
    eos_token_ids: Vec<TokenId>,
    max_model_len: usize,
}

impl Sampler {
    pub(crate) fn new(isa: Isa, eos_token_ids: Vec<TokenId>, max_model_len: u32) -> Self {
        Self { isa, eos_token_ids, max_model_len: max_model_len as usize }
    }

    pub(crate) fn eos_token_ids(&self) -> &[TokenId] {
        &self.eos_token_ids
    }

    /// `None` if the logits are not numbers.
    pub(crate) fn sample(&self, logits: &[f32], request: &SampleRequest<'_>) -> Option<SampledToken> {
        let params = request.params;
        let normaliser = log_sum_exp(self.isa, logits);
        if !normaliser.is_finite() {
            return None;
        }
        let ends = self.ends(request);
        let adjusted = adjust::adjust(logits, request, &ends);
        let scores = adjusted.as_deref().unwrap_or(logits);
        let best = argmax(self.isa, scores)?;
        let id = if params.temperature < TEMPERATURE_MIN {
            best
        } else {
            let position = request.output.len() as u32;
            draw::draw(scores, scores[best], params, random::uniform(params.seed, request.choice, position))
        };
        let top = draw::largest(logits, params.logprobs.unwrap_or(0) as usize);
        Some(SampledToken {
            choice: request.choice,
            id: id as TokenId,
            position: request.output.len() as u32,
            logprob: logits[id] - normaliser,
            top: top.into_iter().map(|id| (id as TokenId, logits[id] - normaliser)).collect(),
            finish: self.finish(id as TokenId, request, &ends),
        })
    }

    /// Tokens that end this request.
    fn ends(&self, request: &SampleRequest<'_>) -> Vec<TokenId> {
        let eos: &[TokenId] = if request.params.ignore_eos { &[] } else { &self.eos_token_ids };
        eos.iter().chain(&request.params.stop_token_ids).copied().collect()
    }

    fn finish(&self, id: TokenId, request: &SampleRequest<'_>, ends: &[TokenId]) -> Option<FinishReason> {
        let output = request.output.len() + 1;
        if ends.contains(&id) {
            return Some(FinishReason::Stop);
        }
        let full = request.prompt.len() + output >= self.max_model_len;
        (full || output >= request.params.max_tokens as usize).then_some(FinishReason::Length)
    }
}

#[cfg(test)]
mod tests;
