//! Some choices of a request on one attempt: what they have, where they were tried, and what a failure means for the next attempt.

use std::collections::HashSet;
use std::time::Duration;

use proto::control::{self, FailCode};
use tokio::time::Instant;
use types::{Epoch, GenerateSpec, RequestId, TokenId};

use crate::answer::Answer;
use crate::cluster::Cluster;
use crate::link::{Cause, Failure};
use crate::pairing::{Excluded, Slot};
use crate::request::{Request, RequestError};

/// Before the first hand-over between two that failed one is tried again, if there is no other way; twice as long before each further.
const PAUSE: Duration = Duration::from_millis(250);

/// One process behind a slot: after a reconnect it is another one and may be tried again.
pub(crate) type Process = (Slot, u64);

/// The first leg holds all choices; once a choice has text, it goes on as a leg of its own.
pub(crate) struct Leg {
    pub(crate) epoch: Epoch,
    /// Unfinished ones first come, first served; contiguous choices.
    pub(crate) answers: Vec<Answer>,
    /// Of a beam search: what D has sent of the texts it found. They count only when all are here, so that a resumed search may begin
    /// anew.
    pub(crate) found: Vec<control::Token>,
    /// Where the attempt runs or ran last.
    pub(crate) prefill: Option<Process>,
    pub(crate) decode: Option<Process>,
    pub(crate) tried: Tried,
    /// Attempts that failed. Waiting for room is none.
    pub(crate) failures: u32,
    /// When it first found no room, or no instance, since it last ran.
    pub(crate) waiting_since: Option<Instant>,
    pub(crate) absent_since: Option<Instant>,
    /// A pair that failed it is not tried again before then.
    pub(crate) bold_from: Option<Instant>,
}

/// Where a leg must not or need not go again.
#[derive(Clone, Default)]
pub(crate) struct Tried {
    processes: HashSet<Process>,
    pairs: HashSet<(Process, Process)>,
    /// Both ends of a hand-over that failed: one of them may be to blame, so others come first.
    suspects: HashSet<Process>,
    /// Said that they have no room; asked again when something changed.
    pub(crate) busy: HashSet<Slot>,
}

/// What a failure asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not a failure: full now. Try elsewhere, then wait.
    Busy,
    /// The instance is gone or leaving; nobody's fault that counts.
    Elsewhere,
    /// It failed by itself: counts for its breaker and against the retry budget.
    Faulty,
    /// The hand-over between the two failed.
    FaultyPair,
    /// It can never take this request.
    TooSmall,
    /// The request itself is at fault.
    Rejected(String),
}

impl Leg {
    pub(crate) fn new(answers: Vec<Answer>) -> Self {
        Self {
            epoch: 0,
            answers,
            found: Vec::new(),
            prefill: None,
            decode: None,
            tried: Tried::default(),
            failures: 0,
            waiting_since: None,
            absent_since: None,
            bold_from: None,
        }
    }

    pub(crate) fn has_output(&self) -> bool {
        self.answers.iter().any(|answer| !answer.tokens().is_empty())
    }

    /// First tokens that P sends: one per choice, or one with the candidates of a search.
    pub(crate) fn first_tokens(&self, request: &Request) -> usize {
        if request.sampling.beam.is_some() { 1 } else { self.answers.len() }
    }

    /// Of the choices that have ended.
    pub(crate) fn finished_tokens(&self) -> usize {
        let finished = self.answers.iter().filter(|answer| answer.is_finished());
        finished.map(|answer| answer.tokens().len()).sum()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.answers.iter().all(Answer::is_finished)
    }

    /// What the client already has; of several choices nothing, since each goes on by itself once it has any.
    pub(crate) fn output(&self) -> &[TokenId] {
        self.answers.first().map_or(&[], Answer::tokens)
    }

    pub(crate) fn spec(&self, request: &Request) -> GenerateSpec {
        let start = self.answers.first().map_or(0, |answer| answer.choice);
        GenerateSpec {
            prompt: request.prompt.clone(),
            output: self.output().to_vec(),
            choices: start..start + self.answers.len() as u32,
            sampling: request.sampling.clone(),
            cache_salt: request.cache_salt.clone(),
        }
    }

    /// What workers call it. A choice that goes on by itself has a name of its own, since a worker keeps only the newest attempt of
    /// a name.
    pub(crate) fn name(&self, request: &Request) -> RequestId {
        match self.answers.as_slice() {
            [answer] if request.choices > 1 => RequestId::from(format!("{}/{}", request.id, answer.choice)),
            _ => request.id.clone(),
        }
    }

    /// What is left to do: nothing, all choices again, or (once they have output) each by itself.
    pub(crate) fn split(mut self) -> Vec<Leg> {
        let has_output = self.has_output();
        self.answers.retain(|answer| !answer.is_finished());
        if !has_output {
            return if self.answers.is_empty() { Vec::new() } else { vec![self] };
        }
        let (tried, failures) = (self.tried, self.failures);
        let legs = self.answers.into_iter().map(|answer| Leg {
            tried: tried.clone(),
            failures,
            waiting_since: self.waiting_since,
            absent_since: self.absent_since,
            bold_from: self.bold_from,
            ..Leg::new(vec![answer])
        });
        legs.collect()
    }

    /// Notes where the attempt failed, so that the next goes elsewhere.
    pub(crate) fn blame(&mut self, failure: &Failure, cluster: &Cluster) -> Result<(), RequestError> {
        let process = (failure.slot, failure.generation);
        match verdict(&failure.cause) {
            Verdict::Rejected(message) => return Err(RequestError::Rejected { message }),
            Verdict::Busy => {
                self.tried.busy.insert(failure.slot);
                return Ok(());
            }
            Verdict::Elsewhere | Verdict::TooSmall => self.tried.add(process),
            Verdict::Faulty => {
                cluster.failed(failure.slot);
                self.tried.add(process);
                if !cluster.may_retry() {
                    return Err(RequestError::Attempts { attempts: self.failures + 1 });
                }
            }
            Verdict::FaultyPair => match (self.prefill, self.decode) {
                (Some(prefill), Some(decode)) => {
                    cluster.failed_pair(prefill.0, decode.0);
                    self.tried.pairs.insert((prefill, decode));
                    self.bold_from = Some(Instant::now() + PAUSE * 2u32.saturating_pow(self.failures));
                    self.tried.suspects.extend([prefill, decode]);
                }
                _ => self.tried.add(process),
            },
        }
        self.failures += 1;
        self.waiting_since = None;
        self.absent_since = None;
        Ok(())
    }
}

impl Tried {
    fn add(&mut self, process: Process) {
        self.processes.insert(process);
    }

    /// For the router, from wary to bold: no suspect, nothing that was tried, no instance that failed by itself or is busy. The last
    /// tries a pair again whose hand-over failed, ours or those of others: with one pair, or none better, that is all there is, and links
    /// come back. (One broken connection fails all hand-overs on it at once, so a breaker may open for very little.)
    pub(crate) fn excluded(&self, cluster: &Cluster) -> [Excluded; 3] {
        let same = |&(slot, generation): &Process| cluster.generation(slot) == Some(generation);
        let slots = |processes: &HashSet<Process>| -> HashSet<Slot> {
            processes.iter().filter(|process| same(process)).map(|process| process.0).collect()
        };
        let bold: HashSet<Slot> = &slots(&self.processes) | &self.busy;
        let wary = &bold | &slots(&self.suspects);
        let pairs = self.pairs.iter().filter(|(prefill, decode)| same(prefill) && same(decode));
        let pairs: HashSet<_> = pairs.map(|(prefill, decode)| (prefill.0, decode.0)).collect();
        [
            Excluded { instances: wary, pairs: pairs.clone(), despite_pair_breakers: false },
            Excluded { instances: bold.clone(), pairs, despite_pair_breakers: false },
            Excluded { instances: bold, pairs: HashSet::new(), despite_pair_breakers: true },
        ]
    }
}

fn verdict(cause: &Cause) -> Verdict {
    let Cause::Answered { code, message } = cause else {
        return match cause {
            Cause::Lost => Verdict::Elsewhere,
            _ => Verdict::Faulty,
        };
    };
    match code {
        FailCode::FailNoBlocks | FailCode::FailQueueFull => Verdict::Busy,
        FailCode::FailDraining => Verdict::Elsewhere,
        FailCode::FailTooLong => Verdict::TooSmall,
        FailCode::FailTransfer | FailCode::FailLease => Verdict::FaultyPair,
        FailCode::FailBadRequest => Verdict::Rejected(message.clone()),
        FailCode::FailInternal | FailCode::FailStale => Verdict::Faulty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_of_a_worker_has_a_verdict() {
        let check = |code, expected| {
            assert_eq!(verdict(&Cause::Answered { code, message: "m".into() }), expected, "{code:?}");
        };
        check(FailCode::FailNoBlocks, Verdict::Busy);
        check(FailCode::FailQueueFull, Verdict::Busy);
        check(FailCode::FailDraining, Verdict::Elsewhere);
        check(FailCode::FailTooLong, Verdict::TooSmall);
        check(FailCode::FailTransfer, Verdict::FaultyPair);
        check(FailCode::FailLease, Verdict::FaultyPair);
        check(FailCode::FailInternal, Verdict::Faulty);
        check(FailCode::FailStale, Verdict::Faulty);
        check(FailCode::FailBadRequest, Verdict::Rejected("m".into()));
        assert_eq!(verdict(&Cause::Lost), Verdict::Elsewhere);
        assert_eq!(verdict(&Cause::NotSent), Verdict::Faulty);
    }
}
