//! Long prompts at growing concurrency: whether twice what saturates still does as much, and what short requests feel of it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::load::{ANSWER_TOKENS, Load, Window};
use super::process::MODEL;
use super::prompts::{Bodies, Kind, Writer};
use super::{Bench, Found};
use crate::bench::report::Table;
use crate::bench::stats::{median, percentile};

const COLUMNS: [&str; 8] = ["req/s", "MB/s", "MB/s per core", "ms p50", "health ms p50", "p99", "short ms p50", "p99"];
/// Long texts made in advance.
const TEXTS: usize = 8;
/// Bytes of the short prompts beside them.
const SHORT_BYTES: usize = 64;
/// A concurrency saturates when none does more than this much better.
const SATURATED: f64 = 0.95;

/// One round at one concurrency: the long prompts, and the latencies of the probes.
struct Round {
    window: Window,
    health_ms: Vec<f64>,
    short_ms: Vec<f64>,
}

/// Every concurrency once per round.
pub(super) async fn measure(bench: &Bench, writer: &mut Writer) -> anyhow::Result<Found> {
    let fields = json!({ "model": MODEL, "max_tokens": ANSWER_TOKENS, "ignore_eos": true });
    let load = |bodies| Load { bodies: Arc::new(bodies), numbers: bench.numbers.clone() };
    let long = load(Bodies::texts(Kind::Text, writer, TEXTS, bench.args.long_bytes as usize, &fields));
    let probes = [
        load(Bodies::new(Kind::Health, &[Value::Null], &fields)),
        load(Bodies::texts(Kind::Text, writer, TEXTS, SHORT_BYTES, &fields)),
    ];
    let mut rows: Vec<(u16, Vec<Round>)> = bench.args.long_users.iter().map(|&users| (users, Vec::new())).collect();
    for _ in bench.rounds("long") {
        for (users, rounds) in &mut rows {
            let (window, probed) =
                long.run_beside(&bench.gateway.server, usize::from(*users), bench.time(), &probes).await?;
            let [health_ms, short_ms] = probed.try_into().unwrap_or_default();
            rounds.push(Round { window, health_ms, short_ms });
        }
    }
    let bytes = f64::from(bench.args.long_bytes);
    let title = format!(
        "long: {bytes} byte prompts by users, short requests beside them, medians of {} round(s)",
        bench.args.rounds
    );
    let mut table = Table::new(title, COLUMNS);
    rows.iter().for_each(|(users, rounds)| table.row(format!("{users} users"), values(bytes, rounds)));
    let details = rows.iter().map(|(users, rounds)| (users.to_string(), rounds.iter().map(Round::json).collect()));
    Ok(Found {
        name: "long",
        tables: vec![table],
        notes: note(&rows).into_iter().collect(),
        rounds: Value::Object(details.collect()),
    })
}

fn values(bytes: f64, rounds: &[Round]) -> Vec<Option<f64>> {
    let over = |of: &dyn Fn(&Round) -> Option<f64>| median(&rounds.iter().filter_map(of).collect::<Vec<_>>());
    vec![
        over(&|round| Some(round.window.per_second())),
        over(&|round| Some(round.window.per_second() * bytes / 1e6)),
        over(&|round| Some(round.window.per_core()? * bytes / 1e6)),
        over(&|round| round.window.latency(0.5)),
        over(&|round| percentile(&round.health_ms, 0.5)),
        over(&|round| percentile(&round.health_ms, 0.99)),
        over(&|round| percentile(&round.short_ms, 0.5)),
        over(&|round| percentile(&round.short_ms, 0.99)),
    ]
}

/// The smallest concurrency that does as much as any, within a little, and the share of it that twice as much still does; taken within
/// rounds.
fn note(rows: &[(u16, Vec<Round>)]) -> Option<String> {
    let speed = |(users, rounds): &(u16, Vec<Round>)| {
        Some((*users, median(&rounds.iter().map(|round| round.window.per_second()).collect::<Vec<_>>())?))
    };
    let speeds: Vec<(u16, f64)> = rows.iter().filter_map(speed).collect();
    let (users, twice) = saturation(&speeds)?;
    let rounds = |users: u16| rows.iter().find(|(found, _)| *found == users).map(|(_, rounds)| rounds);
    let pairs = rounds(users)?.iter().zip(rounds(twice)?);
    let share = median(&pairs.map(|(one, two)| two.window.per_second() / one.window.per_second()).collect::<Vec<_>>())?;
    Some(format!("{users} users saturate; {twice} users get {share:.2} of their throughput"))
}

/// The smallest number of users that saturates, and the one to compare with: at least twice as many.
fn saturation(speeds: &[(u16, f64)]) -> Option<(u16, u16)> {
    let best = speeds.iter().map(|(_, speed)| *speed).fold(0.0, f64::max);
    let (users, _) = speeds.iter().find(|(_, speed)| *speed >= SATURATED * best)?;
    let twice = speeds.iter().map(|(users, _)| *users).filter(|more| *more >= users.saturating_mul(2)).min()?;
    Some((*users, twice))
}

impl Round {
    fn json(&self) -> Value {
        json!({ "long": self.window.json(), "health_ms": self.health_ms, "short_ms": self.short_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturation_is_the_least_that_does_as_much() {
        let check = |speeds: &[(u16, f64)], expected| assert_eq!(saturation(speeds), expected, "{speeds:?}");
        check(&[(1, 5.0), (2, 9.0), (4, 9.8), (8, 10.0), (16, 9.0)], Some((4, 8)));
        check(&[(1, 10.0), (3, 5.0)], Some((1, 3)));
        check(&[(1, 5.0), (2, 10.0)], None);
        check(&[], None);
    }
}
