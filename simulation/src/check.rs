//! What must hold: while the faults go on, and once they are over.

use std::collections::BTreeMap;
use std::time::Duration;

use kv::Phase;

use crate::ask::{Ask, Seen, Text};
use crate::client::request_id;
use crate::host::Host;
use crate::model::Model;
use crate::plan::Place;

/// A request's blocks come back at most so long after its client has what it will get: a worker notices within 7 s that its scheduler
/// is gone (asked after 2 s, given up 5 s later), and the slowest links take 1.5 s. Giving back takes no time once that is known.
const RECLAIM_MAX: Duration = Duration::from_secs(9);

/// A hand-over whose cancel was lost goes on until its lease ends.
const LEASE: Duration = Duration::from_secs(11);

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// Holders of blocks, and since when their request has been over.
#[derive(Default)]
pub(crate) struct Ledgers {
    /// A holder may be so late.
    late_max: Duration,
    /// By place, life of its process, request and epoch.
    over_since: BTreeMap<(Place, u32, String, u32), Duration>,
}

impl Ledgers {
    pub(crate) fn new(cancels_lost: bool) -> Self {
        let late_max = if cancels_lost { RECLAIM_MAX + LEASE } else { RECLAIM_MAX };
        Self { late_max, ..Self::default() }
    }

    /// Looks at every worker that runs: sums are right, and nobody holds blocks for a request that has long been over.
    pub(crate) fn check(
        &mut self,
        now: Duration,
        hosts: &[Host],
        seen: impl Fn(&str) -> bool,
    ) -> Result<(), Violation> {
        let mut held = BTreeMap::new();
        for host in hosts.iter().filter(|host| host.is_running()) {
            let Some(worker) = host.worker() else { continue };
            let place = host.place;
            worker.pool().audit().map_err(|wrong| Violation(format!("{place:?}: {wrong}")))?;
            for row in worker.pool().ledger() {
                let key = &row.owner.key;
                let id = (place, host.lives, key.request.to_string(), key.epoch);
                let since = self.over_since.get(&id).copied();
                if seen(key.request.as_str()) {
                    held.insert(id, (since.unwrap_or(now), row.owner.phase));
                }
            }
        }
        self.over_since = held.iter().map(|(id, (since, _))| (id.clone(), *since)).collect();
        let overdue = held.iter().find(|(_, (since, _))| now - *since > self.late_max);
        overdue.map_or(Ok(()), |((place, _, request, epoch), (since, phase))| {
            let phase: &Phase = phase;
            Err(Violation(format!(
                "{place:?} holds blocks ({phase:?}) of {request} epoch {epoch}, which was over at {since:?}, at {now:?}"
            )))
        })
    }
}

/// Nothing is held any more by anybody.
pub(crate) fn check_quiet(hosts: &[Host]) -> Result<(), Violation> {
    for host in hosts {
        let Some(worker) = host.worker() else { continue };
        let stats = worker.pool().stats();
        if stats.leased > 0 || stats.free + stats.cached != stats.total {
            let ledger = worker.pool().ledger();
            return Err(Violation(format!(
                "{:?} still holds blocks when all is quiet: {stats:?} {ledger:?}",
                host.place
            )));
        }
    }
    Ok(())
}

/// How a request ended, if it ended in a way that is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All of the answer, and it was right.
    Whole,
    /// The client left; what it saw was right.
    Left,
    /// An error that says so; what came before it was right.
    Refused,
    /// The scheduler went away.
    Cut,
}

/// What a request may come to besides its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct May {
    /// Its scheduler died.
    pub(crate) be_cut: bool,
    /// There were not always enough instances.
    pub(crate) be_refused: bool,
}

/// Compares what a client saw with the oracle.
pub(crate) fn check_seen(number: usize, ask: &Ask, seen: &Seen, model: &Model, may: May) -> Result<Ended, Violation> {
    let wrong =
        |what: String| Err(Violation(format!("{}: {what}\n  ask  {ask:?}\n  seen {seen:?}", request_id(number))));
    let expected = ask.expected(model);
    for (index, found) in seen.choices.iter().enumerate() {
        let Some(expected) = expected.get(index) else { return wrong(format!("choice {index} was never asked for")) };
        if let Some(difference) = differs(found, expected) {
            return wrong(format!("choice {index}: {difference}"));
        }
    }
    let finished = seen.choices.len() == expected.len() && seen.choices.iter().all(|choice| choice.finish.is_some());
    match (seen.ends, seen.errors.len(), &seen.broken) {
        // Whoever has all of it does not mind how the connection ends.
        (1, 0, _) if !finished => return wrong("it ended before its choices did".to_owned()),
        (1, 0, _) => {}
        (0, 0, None) if ask.leaves.is_some() => return Ok(Ended::Left),
        (0, 0, None) => return wrong("it never ended".to_owned()),
        (0, 0, Some(_)) if may.be_cut => return Ok(Ended::Cut),
        (0, 1, None) if may.be_refused && is_refusal(seen) => return Ok(Ended::Refused),
        _ => return wrong("it ended in no allowed way".to_owned()),
    }
    let tokens: usize = expected.iter().map(|choice| choice.tokens.len()).sum();
    let usage = Some((ask.prompt.len() as u64, tokens as u64));
    if seen.usage != usage {
        return wrong(format!("usage is {:?}, expected {usage:?}", seen.usage));
    }
    Ok(Ended::Whole)
}

/// Overload or a lack of instances: before the answer by status, within it by an event.
fn is_refusal(seen: &Seen) -> bool {
    matches!(seen.status, Some(429 | 503)) || seen.status == Some(200)
}

/// How what was seen of a choice is no beginning of what it must be, or not all of it although it says so.
fn differs(found: &Text, expected: &Text) -> Option<String> {
    let whole = found.finish.is_some();
    let starts = expected.text.starts_with(&found.text)
        && expected.tokens.starts_with(&found.tokens)
        && expected.logprobs.starts_with(&found.logprobs);
    let right = if whole { found == expected } else { starts };
    (!right).then(|| format!("found {found:?}, expected {expected:?}"))
}
