//! How a beam search runs beside everything else: its members are sequences like any other, parked while they wait for each other.
//!
//! A member that was preempted or got no block is recomputed, and the search waits for it; nothing of the search is lost, since its
//! state is tokens.

use types::{SampledToken, TokenId};

use super::beam::{Child, Next};
use super::plan::SeqId;
use super::sequence::Sequence;
use super::{Event, Happening, Runner, Stepper, of_job};

/// Tokens of a search's answers in one event: a message of 150 kB with the most alternatives that a request may ask for.
const TOKENS_PER_EVENT: usize = 512;

impl Runner {
    /// A member of a beam search has its candidates; when all of them have, the search goes on.
    pub(super) fn park(
        &mut self,
        sequence: Sequence,
        drawn: Vec<SampledToken>,
        stepper: &mut dyn Stepper,
        events: &mut Vec<Event>,
    ) {
        let (id, key) = (sequence.id, sequence.key.clone());
        let candidates = drawn.into_iter().next().map(|best| best.top).unwrap_or_default();
        self.parked.insert(id, (sequence, candidates));
        if [&self.waiting, &self.running].iter().any(|queue| queue.range(of_job(id)).next().is_some()) {
            return;
        }
        let members: Vec<SeqId> = self.parked.range(of_job(id)).map(|(id, _)| *id).collect();
        let members = members.iter().filter_map(|id| self.parked.remove(id));
        let (parents, candidates): (Vec<_>, Vec<_>) = members.unzip();
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let (Some(search), prompt) = (&mut job.search, job.prompt.take()) else { return };
        let next = search.advance(&candidates);
        // Also says that the search is alive.
        events.push(Event { key: key.clone(), what: Happening::Sampled { tokens: Vec::new(), prompt } });
        match next {
            Next::Live(children) => self.branch(parents, &children, stepper),
            Next::Over(answers) => {
                let tokens = answers.concat();
                let parts = tokens.chunks(TOKENS_PER_EVENT).map(<[SampledToken]>::to_vec);
                let told = parts.map(|tokens| Happening::Sampled { tokens, prompt: None });
                events.extend(told.chain([Happening::Finished]).map(|what| Event { key: key.clone(), what }));
                self.jobs.remove(&key);
            }
        }
    }

    /// The next live sequences of a search share what their parents computed.
    fn branch(&mut self, parents: Vec<Sequence>, children: &[Child], stepper: &mut dyn Stepper) {
        for (place, mut parent) in parents.into_iter().enumerate() {
            let position = parent.output().len() as u32;
            let of_parent = children.iter().zip(0..).filter(|(child, _)| child.parent == place);
            let tokens = of_parent.map(|(child, choice)| follow(choice, child.token, position)).collect::<Vec<_>>();
            parent.choices = tokens.iter().map(|token| token.choice).collect();
            self.split(parent, &tokens, stepper);
        }
    }
}

/// A token that a search goes on with.
fn follow(choice: u32, id: TokenId, position: u32) -> SampledToken {
    SampledToken { choice, id, position, logprob: 0.0, top: Vec::new(), finish: None }
}
