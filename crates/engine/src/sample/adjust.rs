//! Allowed and forbidden tokens, bias, minimum length and penalties: what is done to logits before a token is drawn.

use std::collections::{HashMap, HashSet};

use types::{TokenId, TokenSet};

use super::Ends;
use super::permit::restricted;
use crate::SampleRequest;

/// The adjusted logits, `None` if the request leaves them as they are. Ids outside the vocabulary are ignored. `permitted` is what a
/// constraint leaves.
///
/// Bad words and minimum length give way where they would leave no token.
pub(super) fn adjust(
    logits: &[f32],
    request: &SampleRequest<'_>,
    ends: Ends<'_>,
    permitted: Option<&TokenSet>,
) -> Option<Vec<f32>> {
    let params = request.params;
    let forbidden = forbidden(request, ends);
    let repeats = params.repetition_penalty != 1.0;
    let counts = params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
    let masks = !params.allowed_token_ids.is_empty() || !forbidden.is_empty() || permitted.is_some();
    if params.logit_bias.is_empty() && !masks && !repeats && !counts {
        return None;
    }
    let mut logits = match permitted {
        // Which has heard of the allowed tokens.
        Some(permitted) => mask(&restricted(logits, permitted), &[], &forbidden),
        None if !masks => logits.to_vec(),
        None => mask(logits, &params.allowed_token_ids, &forbidden),
    };
    let mut change = |id: TokenId, change: &dyn Fn(f32) -> f32| {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = change(*logit);
        }
    };
    for (id, bias) in &params.logit_bias {
        change(*id, &|logit| logit + bias);
    }
    if repeats {
        let seen: HashSet<TokenId> = request.prompt.iter().chain(request.output).copied().collect();
        let penalty = params.repetition_penalty;
        seen.into_iter()
            .for_each(|id| change(id, &|logit| if logit > 0.0 { logit / penalty } else { logit * penalty }));
    }
    if counts {
        let mut times: HashMap<TokenId, u32> = HashMap::new();
        request.output.iter().for_each(|id| *times.entry(*id).or_default() += 1);
        for (id, times) in times {
            let penalty = params.presence_penalty + params.frequency_penalty * times as f32;
            change(id, &|logit| logit - penalty);
        }
    }
    Some(logits)
}

/// Tokens that may not come next: ends of a text that is too short, and those that would complete a bad word.
fn forbidden(request: &SampleRequest<'_>, ends: Ends<'_>) -> Vec<TokenId> {
    let params = request.params;
    let too_short = request.output.len() < params.min_tokens as usize;
    let completed = params.bad_words.iter().filter_map(|word| {
        let (last, before) = word.split_last()?;
        request.output.ends_with(before).then_some(*last)
    });
    let ends = if too_short { ends } else { Ends::default() };
    ends.into_iter().flatten().copied().chain(completed).collect()
}

/// The logits with all but the allowed (none named = all) and those forbidden at minus infinity.
fn mask(logits: &[f32], allowed: &[TokenId], forbidden: &[TokenId]) -> Vec<f32> {
    let mut masked = logits.to_vec();
    if !allowed.is_empty() {
        masked.fill(f32::NEG_INFINITY);
        for &id in allowed {
            if let (Some(to), Some(from)) = (masked.get_mut(id as usize), logits.get(id as usize)) {
                *to = *from;
            }
        }
    }
    let mut strict = masked.clone();
    for &id in forbidden {
        if let Some(logit) = strict.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let possible = strict.iter().any(|logit| *logit > f32::NEG_INFINITY);
    if possible { strict } else { masked }
}
