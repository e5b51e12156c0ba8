//! Holds a sequence to its grammar: the matcher, where the engine can ask it.

use parking_lot::Mutex;
use text::Matcher;
use types::{TokenId, TokenSet};

/// Follows one sequence. When it can no longer follow, it allows nothing, so that nothing unconstrained is ever drawn.
pub(crate) struct Constraint(Mutex<State>);

struct State {
    matcher: Matcher,
    failure: Option<String>,
}

impl Constraint {
    pub(crate) fn new(matcher: Matcher) -> Self {
        Self(Mutex::new(State { matcher, failure: None }))
    }

    /// For another choice of the same request, which goes its own way from here.
    pub(crate) fn fork(&self) -> Self {
        Self::new(self.0.lock().matcher.fork())
    }

    /// Why it allows nothing any more.
    pub(crate) fn failure(&self) -> Option<String> {
        self.0.lock().failure.clone()
    }
}

impl engine::Constraint for Constraint {
    fn next(&self, output: &[TokenId]) -> TokenSet {
        let State { matcher, failure } = &mut *self.0.lock();
        matcher.next(output).unwrap_or_else(|error| {
            *failure = Some(error.to_string());
            TokenSet::default()
        })
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Constraint")
    }
}
