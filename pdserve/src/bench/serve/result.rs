//! From measured rounds to what is printed and written.

use std::time::Duration;

use serde_json::{Value, json};

use super::args::Common;
use super::outcome::{Figure, Outcome, ms};
use super::picture;
use super::target::Target;
use crate::bench::conditions::Conditions;
use crate::bench::report::{self, Table};
use crate::bench::stats::median;

/// One server in one round.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) server: String,
    pub(super) figures: Vec<Figure>,
    /// What was sent, phase by phase.
    pub(super) runs: Vec<Run>,
}

/// Requests that were sent together, in the order of their jobs.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) label: String,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) wall: Duration,
}

/// Prints the table and writes the files that were asked for. `rounds[i]` holds one entry per server.
pub(super) fn report(
    common: &Common,
    conditions: Conditions,
    servers: &[Target],
    rounds: &[Vec<Measured>],
) -> anyhow::Result<()> {
    let conditions = describe(conditions, common, servers);
    let title = format!("medians of {} round(s)", rounds.len());
    let tables = [table(title, rounds)];
    let notes: Vec<_> = notes(rounds).collect();
    report::print(&conditions, &tables, &notes);
    if let Some(path) = &common.json {
        let details =
            json!({ "notes": notes, "rounds": rounds.iter().map(|round| details(round)).collect::<Vec<_>>() });
        report::write_json(path, &conditions, &tables, details)?;
    }
    if let (Some(path), Some(last)) = (&common.html, rounds.last()) {
        let runs: Vec<_> = last.iter().flat_map(|measured| &measured.runs).collect();
        picture::write(path, &conditions, &tables, &notes, &runs)?;
    }
    Ok(())
}

fn describe(conditions: Conditions, common: &Common, servers: &[Target]) -> Conditions {
    let prompts = format!("seed {}, ids below {}, first {} shared", common.seed, common.vocab, common.shared_prefix);
    let models: Vec<_> = servers
        .iter()
        .map(|server| format!("{}: {} with {}", server.label, server.description, server.model))
        .collect();
    conditions.and("prompts", prompts).and("servers", models.join("; "))
}

/// A column per server, then one per further server: its figures over the first server's, as the median of each round's ratio.
fn table(title: String, rounds: &[Vec<Measured>]) -> Table {
    let Some(first) = rounds.first() else { return Table::new(title, [""; 0]) };
    let names: Vec<_> = first.iter().map(|measured| measured.server.clone()).collect();
    let ratios = names.iter().skip(1).map(|name| format!("{name} / {}", names[0]));
    let mut table = Table::new(title, names.iter().cloned().chain(ratios));
    for (row, (label, _)) in first.first().map(|measured| &measured.figures[..]).unwrap_or_default().iter().enumerate()
    {
        let value = |round: &[Measured], server: usize| round.get(server)?.figures.get(row)?.1;
        let over_rounds = |of: &dyn Fn(&[Measured]) -> Option<f64>| {
            median(&rounds.iter().filter_map(|round| of(round)).collect::<Vec<_>>())
        };
        let values = (0..names.len()).map(|server| over_rounds(&|round| value(round, server)));
        let ratio =
            |round: &[Measured], server| Some(value(round, server)? / value(round, 0).filter(|&base| base != 0.0)?);
        let ratios = (1..names.len()).map(|server| over_rounds(&|round| ratio(round, server)));
        table.row(*label, values.chain(ratios).collect());
    }
    table
}

/// Whether the servers answered the same, and what went wrong first on each.
fn notes(rounds: &[Vec<Measured>]) -> impl Iterator<Item = String> {
    let servers = rounds.first().map_or(0, Vec::len);
    let equal = (1..servers).map(move |server| {
        let (mut equal, mut all) = (0, 0);
        for round in rounds {
            let texts = |server: usize| outcomes(&round[server]).map(|outcome| outcome.text_hash);
            equal += texts(0).zip(texts(server)).filter(|(a, b)| a == b).count();
            all += texts(0).count();
        }
        format!("{equal} of {all} texts of {} equal those of {}", rounds[0][server].server, rounds[0][0].server)
    });
    let errors = (0..servers).filter_map(|server| {
        let mut errors =
            rounds.iter().flat_map(move |round| outcomes(&round[server])).filter_map(|outcome| outcome.error.as_ref());
        Some(format!("{}: first error: {}", rounds[0][server].server, errors.next()?))
    });
    equal.chain(errors)
}

fn outcomes(measured: &Measured) -> impl Iterator<Item = &Outcome> {
    measured.runs.iter().flat_map(|run| &run.outcomes)
}

fn details(round: &[Measured]) -> Value {
    let measured = round.iter().map(|measured| {
        let figures: serde_json::Map<_, _> =
            measured.figures.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let runs: Vec<_> = measured.runs.iter().map(run_details).collect();
        json!({ "server": measured.server, "figures": figures, "runs": runs })
    });
    measured.collect()
}

fn run_details(run: &Run) -> Value {
    let request = |outcome: &Outcome| {
        json!({
            "due_ms": ms(outcome.due), "ttft_ms": outcome.ttft_ms(), "tpot_ms": outcome.tpot_ms(), "end_ms": ms(outcome.end),
            "input": outcome.prompt_tokens, "cached": outcome.cached_tokens, "output": outcome.tokens(),
            "gaps_ms": outcome.gaps_ms().map(|gap| (gap * 1e3).round() / 1e3).collect::<Vec<_>>(), "error": outcome.error,
        })
    };
    let requests: Vec<_> = run.outcomes.iter().map(request).collect();
    json!({ "label": run.label, "wall_s": run.wall.as_secs_f64(), "requests": requests })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::serve::outcome::tests::outcome;

    fn measured(server: &str, speed: f64, texts: &[u64]) -> Measured {
        let outcomes = texts.iter().map(|&text_hash| Outcome { text_hash, ..outcome(0, &[1]) }).collect();
        let run = Run { label: server.to_owned(), outcomes, wall: Duration::from_secs(1) };
        Measured { server: server.to_owned(), figures: vec![("tok/s", Some(speed)), ("odd", None)], runs: vec![run] }
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        // The machine slows down by ten between rounds; the ratio stays.
        let rounds: Vec<_> =
            [100.0, 10.0, 1.0].map(|s| vec![measured("a", s, &[]), measured("b", 2.0 * s, &[])]).into();
        let table = table("t".to_owned(), &rounds);
        assert_eq!(table.columns, ["a", "b", "b / a"]);
        assert_eq!(table.rows[0], ("tok/s".to_owned(), vec![Some(10.0), Some(20.0), Some(2.0)]));
        assert_eq!(table.rows[1], ("odd".to_owned(), vec![None, None, None]));
    }

    #[test]
    fn texts_are_compared_with_the_first_server() {
        let mut failed = measured("b", 1.0, &[1, 9]);
        failed.runs[0].outcomes[1].error = Some("lost".to_owned());
        let rounds =
            [vec![measured("a", 1.0, &[1, 2]), failed], vec![measured("a", 1.0, &[3, 4]), measured("b", 1.0, &[3, 4])]];
        let notes: Vec<_> = notes(&rounds).collect();
        assert_eq!(notes, ["3 of 4 texts of b equal those of a", "b: first error: lost"]);
    }
}
