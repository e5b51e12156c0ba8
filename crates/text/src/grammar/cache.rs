//! What was compiled last: the same schema comes with every request of an application, on P, on D and on the scheduler.

use std::collections::HashMap;

use types::Grammar;

use super::{GrammarError, Matcher};

/// Grammars that are kept, of up to some megabytes each.
const ENTRIES_MAX: usize = 32;

/// Refusals are kept, too: a grammar that was too large is not tried again.
#[derive(Default)]
pub(super) struct Cache {
    entries: HashMap<Grammar, Entry>,
    uses: u64,
}

struct Entry {
    compiled: Result<Matcher, GrammarError>,
    used: u64,
}

impl Cache {
    /// A fresh matcher, or the refusal.
    pub(super) fn get(&mut self, grammar: &Grammar) -> Option<Result<Matcher, GrammarError>> {
        self.uses += 1;
        let entry = self.entries.get_mut(grammar)?;
        entry.used = self.uses;
        Some(fork(&entry.compiled))
    }

    /// Keeps it in place of what was used longest ago.
    pub(super) fn insert(&mut self, grammar: Grammar, compiled: &Result<Matcher, GrammarError>) {
        if self.entries.len() >= ENTRIES_MAX
            && let Some(oldest) = self.entries.iter().min_by_key(|(_, entry)| entry.used)
        {
            let oldest = oldest.0.clone();
            self.entries.remove(&oldest);
        }
        self.entries.insert(grammar, Entry { compiled: fork(compiled), used: self.uses });
    }
}

fn fork(compiled: &Result<Matcher, GrammarError>) -> Result<Matcher, GrammarError> {
    compiled.as_ref().map(Matcher::fork).map_err(Clone::clone)
}
