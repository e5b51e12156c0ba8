//! `pdserve bench pairing`: how long the scheduler takes to choose a prefill and a decode instance, and how good its choices are.
//!
//! A recorded trace is replayed, faster than in reality, against the scheduler's own policy and instances that are pretended: they
//! have queues, caches and costs, but compute nothing. Only the policy's calls are timed.

mod instance;
mod overlay;
mod replay;

use std::path::PathBuf;

use anyhow::ensure;
use clap::Parser;
use serde_json::json;

use super::conditions::Conditions;
use super::report::{self, Table};
use super::stats::{median, percentile};
use super::trace;
use overlay::Overlay;
use replay::{Outcome, Policy, Replay};

/// With more instances, looking at every pair for every request takes too long to wait for.
const EXHAUSTIVE_MAX: usize = 256;
const COLUMNS: [&str; 10] = [
    "choose us p50",
    "p99",
    "book us p50",
    "p99",
    "TTFT s mean",
    "p99",
    "ms per token",
    "cached %",
    "TTFT quality",
    "token quality",
];

/// Replay a trace against pretended instances: time per choice, and its quality beside an exhaustive search
#[derive(Parser, Debug)]
pub(crate) struct Args {
    /// Requests: JSON Lines with `timestamp`, `input_length`, `output_length` and `hash_ids`, such as the public Mooncake traces
    trace: PathBuf,
    /// Numbers of instances, half of which prefill and half decode
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [64, 10_000], value_parser = instances)]
    instances: Vec<usize>,
    /// Requests that are replayed; times and qualities are those of the second half
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    requests: u32,
    /// How busy prefill would be if nothing were cached. The trace is laid over itself, each copy with prompts of its own, until it is
    #[arg(long, default_value_t = 0.7, value_parser = load)]
    load: f64,
    /// Where each copy starts, and which instances are drawn at random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn instances(text: &str) -> Result<usize, String> {
    let count = text.parse::<usize>().map_err(|error| error.to_string())?;
    let fine = (2..=100_000).contains(&count) && count.is_multiple_of(2);
    if fine { Ok(count) } else { Err("an even number from 2 to 100000 is needed".to_owned()) }
}

fn load(text: &str) -> Result<f64, String> {
    let load = text.parse::<f64>().map_err(|error| error.to_string())?;
    if (0.01..=2.0).contains(&load) { Ok(load) } else { Err("a share from 0.01 to 2 is needed".to_owned()) }
}

/// Replays and reports.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let trace = trace::read(&args.trace, usize::MAX)?;
    ensure!(
        trace.iter().any(|arrival| !arrival.blocks.is_empty()),
        "{}: no line has hash_ids, which say what prompts share",
        args.trace.display()
    );
    let conditions = Conditions::gather()
        .and("trace", format!("{}, {} requests", args.trace.display(), trace.len()))
        .and("load", args.load)
        .and("instances", instance::description());
    let mut tables = Vec::new();
    for &instances in &args.instances {
        let overlay = Overlay::new(&trace, instances / 2, args.load, args.seed);
        let replay = |policy| {
            eprintln!("{instances} instances, {policy}: {} requests ...", args.requests);
            Replay::new(instances / 2, policy, args.seed).run(overlay.clone(), args.requests as usize)
        };
        let ours = replay(Policy::Shortlist);
        let exhaustive = (instances <= EXHAUSTIVE_MAX).then(|| replay(Policy::Exhaustive));
        let mut table = Table::new(format!("{instances} instances"), COLUMNS);
        table.row(Policy::Shortlist.to_string(), figures(&ours, exhaustive.as_ref()));
        table.row(Policy::Random.to_string(), figures(&replay(Policy::Random), exhaustive.as_ref()));
        if let Some(exhaustive) = &exhaustive {
            table.row(Policy::Exhaustive.to_string(), figures(exhaustive, Some(exhaustive)));
        }
        tables.push(table);
    }
    let note = "quality: the exhaustive search's mean over that of the row, by seconds to the first token and per token; above 1 is better than it";
    report::print(&conditions, &tables, &[note.to_owned()]);
    args.json.as_deref().map_or(Ok(()), |path| report::write_json(path, &conditions, &tables, json!({})))
}

fn figures(outcome: &Outcome, best: Option<&Outcome>) -> Vec<Option<f64>> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let (first, token) = (mean(&outcome.ttft), mean(&outcome.token));
    vec![
        median(&outcome.choose_us),
        percentile(&outcome.choose_us, 0.99),
        median(&outcome.book_us),
        percentile(&outcome.book_us, 0.99),
        Some(first),
        percentile(&outcome.ttft, 0.99),
        Some(token * 1e3),
        Some(outcome.cached_tokens as f64 / outcome.prompt_tokens.max(1) as f64 * 100.0),
        best.map(|best| mean(&best.ttft) / first),
        best.map(|best| mean(&best.token) / token),
    ]
}
