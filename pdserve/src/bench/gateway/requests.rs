//! Short requests of several kinds: what one costs the scheduler with many users, and how long it takes with one.

use std::sync::Arc;

use anyhow::Context;
use serde_json::{Value, json};

use super::load::{ANSWER_TOKENS, Load, Window};
use super::process::MODEL;
use super::prompts::{Bodies, Kind, TEXTS, Writer};
use super::{Bench, Found};
use crate::bench::report::Table;
use crate::bench::serve::Target;
use crate::bench::stats::median;

const COLUMNS: [&str; 8] =
    ["req/s per core", "us/req", "kernel %", "req/s", "ms p50", "ms p99", "alone p50", "alone p99"];

/// A kind of request and what was measured of it, round by round: all users, and one.
struct Row {
    name: &'static str,
    load: Load,
    rounds: Vec<(Window, Window)>,
}

/// Every kind once per round.
pub(super) async fn measure(bench: &Bench, writer: &mut Writer) -> anyhow::Result<Found> {
    let mut rows = rows(bench, writer).await?;
    for _ in bench.rounds("requests") {
        for row in &mut rows {
            let many = row.load.run(&bench.gateway, bench.args.users.into(), bench.time()).await?;
            let alone = row.load.run(&bench.gateway, 1, bench.time() / 2).await?;
            row.rounds.push((many, alone));
        }
    }
    let (bytes, users, rounds) = (bench.args.prompt_bytes, bench.args.users, bench.args.rounds);
    let mut table = Table::new(
        format!(
            "requests: {bytes} byte prompts, {ANSWER_TOKENS} tokens back, {users} users (alone: 1), medians of {rounds} round(s)"
        ),
        COLUMNS,
    );
    rows.iter().for_each(|row| table.row(row.name, row.values()));
    let details = rows.iter().map(|row| (row.name.to_owned(), row.json()));
    Ok(Found {
        name: "requests",
        table,
        notes: note(&rows).into_iter().collect(),
        rounds: Value::Object(details.collect()),
    })
}

async fn rows(bench: &Bench, writer: &mut Writer) -> anyhow::Result<Vec<Row>> {
    let fields = json!({ "model": MODEL, "max_tokens": ANSWER_TOKENS, "ignore_eos": true });
    let bytes = bench.args.prompt_bytes as usize;
    let (target, mut prompts) = (bench.gateway.target().await?, Vec::new());
    for _ in 0..TEXTS {
        let text = writer.text(bytes);
        prompts.push(json!(token_ids(&target, &text).await?));
    }
    let row = |name, bodies| Row {
        name,
        load: Load { bodies: Arc::new(bodies), numbers: bench.numbers.clone() },
        rounds: Vec::new(),
    };
    Ok(vec![
        row("GET /health", Bodies::new(Kind::Health, &[Value::Null], &fields)),
        row("token ids", Bodies::new(Kind::Ids, &prompts, &fields)),
        row("text", Bodies::texts(Kind::Text, writer, TEXTS, bytes, &fields)),
        row("chat", Bodies::texts(Kind::Chat, writer, TEXTS, bytes, &fields)),
    ])
}

/// The tokens of a text, less as many as [`Bodies`] puts in front.
async fn token_ids(target: &Target, text: &str) -> anyhow::Result<Vec<u64>> {
    let answer = target.post("/tokenize", &json!({ "prompt": text })).await?;
    let ids = answer["tokens"].as_array().context("/tokenize answered without tokens")?;
    Ok(ids.iter().skip(8).filter_map(Value::as_u64).collect())
}

/// What text costs beside ids.
fn note(rows: &[Row]) -> Option<String> {
    let cost = |name| rows.iter().find(|row| row.name == name)?.over(|(many, _)| Some(1e6 / many.per_core()?));
    let (ids, text): (f64, f64) = (cost("token ids")?, cost("text")?);
    Some(format!(
        "a prompt as text costs {:.1} us ({:.0} %) more than as many token ids",
        text - ids,
        100.0 * (text - ids) / text
    ))
}

impl Row {
    fn over(&self, of: impl Fn(&(Window, Window)) -> Option<f64>) -> Option<f64> {
        median(&self.rounds.iter().filter_map(of).collect::<Vec<_>>())
    }

    fn values(&self) -> Vec<Option<f64>> {
        vec![
            self.over(|(many, _)| many.per_core()),
            self.over(|(many, _)| Some(1e6 / many.per_core()?)),
            self.over(|(many, _)| many.processor.kernel_percent()),
            self.over(|(many, _)| Some(many.per_second())),
            self.over(|(many, _)| many.latency(0.5)),
            self.over(|(many, _)| many.latency(0.99)),
            self.over(|(_, alone)| alone.latency(0.5)),
            self.over(|(_, alone)| alone.latency(0.99)),
        ]
    }

    fn json(&self) -> Value {
        let round = |(many, alone): &(Window, Window)| json!({ "users": many.json(), "alone": alone.json() });
        self.rounds.iter().map(round).collect()
    }
}
