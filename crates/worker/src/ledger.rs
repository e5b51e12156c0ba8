//! The block ledger as JSON: who holds how many KV blocks of this instance, and for what.

use std::collections::BTreeMap;
use std::time::Duration;

use kv::{BlockPool, Phase, PhaseCounts};
use serde_json::{Map, Value, json};
use types::{InstanceId, RequestKey};

/// Holders listed, those with most blocks first; the rest is only counted.
const HOLDERS_MAX: usize = 256;

/// Counts of the pool, blocks by phase, and holders. A block that is shared counts once per holder. `deadline_ms` is how long a holder
/// has if nobody gives another sign: what is left of its lease, or `vouched`, after which a silent scheduler's work ends.
pub(crate) fn report(
    instance: &InstanceId,
    pool: &BlockPool,
    leases: &[(RequestKey, Duration)],
    vouched: Duration,
) -> Value {
    let mut held: BTreeMap<(String, u32, &'static str), usize> = BTreeMap::new();
    for row in pool.ledger() {
        let key = &row.owner.key;
        *held.entry((key.request.to_string(), key.epoch, phase_name(row.owner.phase))).or_default() += 1;
    }
    let mut holders: Vec<_> = held.into_iter().collect();
    holders.sort_by_key(|(_, blocks)| std::cmp::Reverse(*blocks));
    let not_listed = holders.len().saturating_sub(HOLDERS_MAX);
    let leases: BTreeMap<(&str, u32), Duration> =
        leases.iter().map(|(key, left)| ((key.request.as_str(), key.epoch), *left)).collect();
    let deadline_ms = |request: &str, epoch| leases.get(&(request, epoch)).unwrap_or(&vouched).as_millis() as u64;
    let listed = holders.into_iter().take(HOLDERS_MAX).map(|((request, epoch, phase), blocks)| {
        let deadline_ms = deadline_ms(&request, epoch);
        json!({ "request": request, "epoch": epoch, "phase": phase, "blocks": blocks, "deadline_ms": deadline_ms })
    });
    let listed: Vec<_> = listed.collect();
    let stats = pool.stats();
    let phases: Map<String, Value> =
        phases(&stats.references).iter().map(|(phase, blocks)| ((*phase).to_owned(), json!(blocks))).collect();
    json!({
        "instance": instance.as_str(),
        "blocks": { "total": stats.total, "free": stats.free, "cached": stats.cached, "leased": stats.leased },
        "phases": phases,
        "holders": listed,
        "holders_not_listed": not_listed,
    })
}

/// References by the name of their phase.
pub(crate) fn phases(counts: &PhaseCounts) -> [(&'static str, u32); 4] {
    [
        (phase_name(Phase::Computing), counts.computing),
        (phase_name(Phase::Landing), counts.landing),
        (phase_name(Phase::Decoding), counts.decoding),
        (phase_name(Phase::HandOver), counts.hand_over),
    ]
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Computing => "computing",
        Phase::Landing => "landing",
        Phase::Decoding => "decoding",
        Phase::HandOver => "hand_over",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv::Owner;

    #[test]
    fn holders_are_listed_largest_first_up_to_the_bound() {
        let pool = BlockPool::new(600, 8);
        let hold = |name: &str, phase, blocks| {
            let owner = Owner { key: RequestKey { request: name.into(), epoch: 1 }, phase };
            pool.allocate(blocks, owner).unwrap()
        };
        let _large = hold("large", Phase::Landing, 5);
        let mut small: Vec<_> = (0..300).map(|i| hold(&i.to_string(), Phase::Decoding, 1)).collect();
        let leases = [(RequestKey { request: "large".into(), epoch: 1 }, Duration::from_secs(9))];
        let report = |pool| report(&"decode-0".into(), pool, &leases, Duration::from_secs(7));
        let seen = report(&pool);
        assert_eq!(seen["blocks"], json!({"total": 600, "free": 295, "cached": 0, "leased": 305}));
        assert_eq!(seen["phases"], json!({"computing": 0, "landing": 5, "decoding": 300, "hand_over": 0}));
        assert_eq!(
            seen["holders"][0],
            json!({"request": "large", "epoch": 1, "phase": "landing", "blocks": 5, "deadline_ms": 9000})
        );
        assert_eq!(seen["holders"][1]["deadline_ms"], 7000);
        assert_eq!((seen["holders"].as_array().unwrap().len(), &seen["holders_not_listed"]), (256, &json!(45)));
        small.clear();
        assert_eq!(report(&pool)["holders"].as_array().unwrap().len(), 1);
    }
}
