//! A sequence's place in its grammar.

use types::{TokenId, TokenSet};

use super::GrammarError;
use super::compile::reason;

/// See the module's head. Costs some kilobytes, and grows with what its grammar needs.
pub struct Matcher {
    state: llguidance::Matcher,
    /// Tokens that the state has taken.
    taken: usize,
    /// Stands for the end of the text.
    end: TokenId,
}

impl Matcher {
    pub(super) fn new(state: llguidance::Matcher, end: TokenId) -> Self {
        Self { state, taken: 0, end }
    }

    /// An independent matcher at the same place: for another choice of the same request.
    pub fn fork(&self) -> Self {
        Self { state: self.state.deep_clone(), taken: self.taken, end: self.end }
    }

    /// What may follow `output`, which begins with all that was asked about before.
    ///
    /// # Errors
    /// `output` is no text of the grammar, the grammar has become too large to follow, or no token of the vocabulary goes on.
    pub fn next(&mut self, output: &[TokenId]) -> Result<TokenSet, GrammarError> {
        let new = output.get(self.taken..).unwrap_or_default();
        if !new.is_empty() {
            self.state.consume_tokens(new).map_err(|error| reason(&error))?;
            self.taken = output.len();
        }
        let mask = self.state.compute_mask_or_eos().map_err(|error| reason(&error))?;
        let mut set = TokenSet { words: mask.as_slice().to_vec(), end: mask.is_allowed(self.end) };
        set.remove(self.end);
        Ok(set)
    }
}
