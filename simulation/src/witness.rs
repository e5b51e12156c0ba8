//! What nobody says but everybody can see: facts from the wires and the clients that are put side by side while a run goes on.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use proto::control::{Key, Spec, Token};

use crate::ask::Seen;
use crate::client::ask_of;

/// A request's name on a worker, and an epoch.
pub(crate) type Attempt = (String, u32);

/// Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Witness(Arc<Mutex<Notes>>);

struct Notes {
    /// Of each client.
    seen: Vec<Arc<Mutex<Seen>>>,
    /// Attempts of which D has taken a piece.
    landing: BTreeSet<Attempt>,
    /// The first thing that must not be.
    wrong: Option<String>,
}

pub(crate) fn attempt(key: &Key) -> Attempt {
    (key.request_id.clone(), key.epoch)
}

impl Witness {
    pub(crate) fn new(seen: &[Arc<Mutex<Seen>>]) -> Self {
        Self(Arc::new(Mutex::new(Notes { seen: seen.to_vec(), landing: BTreeSet::new(), wrong: None })))
    }

    pub(crate) fn wrong(&self) -> Option<String> {
        self.0.lock().wrong.clone()
    }

    pub(crate) fn accuse(&self, what: String) {
        self.0.lock().wrong.get_or_insert(what);
    }

    /// D has taken a piece.
    pub(crate) fn landed(&self, attempt: Attempt) {
        self.0.lock().landing.insert(attempt);
    }

    /// Whether D has taken a piece.
    pub(crate) fn has_landed(&self, attempt: &Attempt) -> bool {
        self.0.lock().landing.contains(attempt)
    }

    /// Whether D has taken a piece of any attempt at an ask.
    pub(crate) fn lands(&self, number: usize) -> bool {
        self.0.lock().landing.iter().any(|(request, _)| ask_of(request) == Some(number))
    }

    /// An order goes to a worker: it must know every token that a client has been told, or they would be computed anew. `first` are
    /// tokens that an order has beside its output.
    pub(crate) fn ordered(&self, key: &Key, spec: &Spec, first: &[Token]) {
        let Some(seen) = ask_of(&key.request_id).and_then(|number| self.0.lock().seen.get(number).cloned()) else {
            return;
        };
        for choice in spec.first_choice..spec.first_choice + spec.choices {
            let beside = first.iter().any(|token| token.choice == choice);
            if beside == first.is_empty() {
                // It ended with its first token, so nobody goes on with it.
                continue;
            }
            let known = spec.output.len() + usize::from(beside);
            let told = seen.lock().choices.get(choice as usize).map_or(0, |choice| choice.tokens.len());
            if told > known {
                let (request, epoch) = attempt(key);
                self.accuse(format!(
                    "{request} epoch {epoch} goes on after {known} tokens of choice {choice}, of which its client has {told}"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Text;

    fn check(told: usize, output: usize, first: &[u32], accused: bool) {
        let text = Text { tokens: vec![1; told], ..Text::default() };
        let seen = Arc::new(Mutex::new(Seen { choices: vec![Text::default(), text], ..Seen::default() }));
        let witness = Witness::new(&[seen]);
        let key = Key { request_id: "ask0-00000001.0/1".into(), epoch: 1 };
        let spec = Spec { output: vec![1; output], first_choice: 1, choices: 1, ..Spec::default() };
        let first: Vec<Token> = first.iter().map(|&choice| Token { choice, ..Token::default() }).collect();
        witness.ordered(&key, &spec, &first);
        assert_eq!(witness.wrong().is_some(), accused, "{told} told, {output} known, {first:?} beside");
    }

    #[test]
    fn an_order_knows_all_that_its_client_was_told() {
        check(3, 3, &[], false);
        check(3, 5, &[], false);
        check(3, 2, &[], true);
        check(3, 0, &[], true);
        check(3, 2, &[1], false);
        check(4, 2, &[1], true);
        check(1, 0, &[0], false);
    }
}
