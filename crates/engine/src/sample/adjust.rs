//! Bias, minimum length and penalties: what is done to logits before a token is drawn.

use std::collections::{HashMap, HashSet};

use types::TokenId;

use crate::SampleRequest;

/// The adjusted logits, `None` if the request leaves them as they are. Ids outside the vocabulary are ignored.
pub(super) fn adjust(logits: &[f32], request: &SampleRequest<'_>, ends: &[TokenId]) -> Option<Vec<f32>> {
    let params = request.params;
    let too_short = request.output.len() < params.min_tokens as usize && !ends.is_empty();
    let repeats = params.repetition_penalty != 1.0;
    let counts = params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
    if params.logit_bias.is_empty() && !too_short && !repeats && !counts {
        return None;
    }
    let mut logits = logits.to_vec();
    let mut change = |id: TokenId, change: &dyn Fn(f32) -> f32| {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = change(*logit);
        }
    };
    for (id, bias) in &params.logit_bias {
        change(*id, &|logit| logit + bias);
    }
    if too_short {
        ends.iter().for_each(|id| change(*id, &|_| f32::NEG_INFINITY));
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
