//! Which tokens a constrained sequence may draw: the constraint's, and the model's ends where the text may end.

use types::{TokenId, TokenSet};

use crate::SampleRequest;

/// `None` without a constraint. `eos` are the model's ends. `ignore_eos` and the allowed tokens hold for what may follow: a text that
/// is complete ends.
pub(super) fn permitted(request: &SampleRequest<'_>, eos: &[TokenId]) -> Option<TokenSet> {
    let mut set = request.constraint?.next(request.output);
    let allowed = &request.params.allowed_token_ids;
    if !allowed.is_empty() {
        let both = allowed.iter().copied().filter(|id| set.contains(*id)).collect();
        set = TokenSet::new(both, set.end);
    }
    // An end is never text, even if the grammar could spell its name.
    eos.iter().for_each(|id| set.remove(*id));
    if set.end && (!request.params.ignore_eos || set.has_no_token()) {
        eos.iter().for_each(|id| set.insert(*id));
    }
    Some(set)
}

/// The logits with every token outside `set` out of reach.
pub(super) fn restricted(logits: &[f32], set: &TokenSet) -> Vec<f32> {
    let mut logits = logits.to_vec();
    let words = set.words.iter().chain(std::iter::repeat(&0));
    for (chunk, word) in logits.chunks_mut(32).zip(words) {
        match *word {
            u32::MAX => {}
            0 => chunk.fill(f32::NEG_INFINITY),
            word => {
                let outside = chunk.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
                outside.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
            }
        }
    }
    logits
}
