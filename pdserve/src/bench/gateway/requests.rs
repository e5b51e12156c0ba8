//! Short requests of several kinds: what one costs the scheduler with many users, and how long it takes with one.

use std::sync::Arc;

use anyhow::Context;
use serde_json::{Value, json};

use super::load::{ANSWER_TOKENS, Load, Window};
use super::process::MODEL;
use super::prompts::{Bodies, Kind, TEXTS, Writer};
use super::server::Server;
use super::{Bench, Found};
use crate::bench::report::Table;
use crate::bench::serve::Target;
use crate::bench::stats::median;

const COLUMNS: [&str; 8] =
    ["req/s per core", "us/req", "kernel %", "req/s", "ms p50", "ms p99", "alone p50", "alone p99"];
/// Of another router; then ours over its.
const RATIOS: [&str; 5] = ["req/s per core", "us/req", "ratio per core", "ratio ms p99", "ratio alone p99"];

/// What was measured round by round: all users, and one.
type Rounds = Vec<(Window, Window)>;

/// A kind of request and what was measured of it.
struct Row {
    name: &'static str,
    load: Load,
    rounds: Rounds,
    /// Of other routers, in their order, if it is compared.
    routers: Vec<Rounds>,
}

/// Every kind once per round; where there are other routers, each in turn.
pub(super) async fn measure(bench: &Bench, writer: &mut Writer) -> anyhow::Result<Found> {
    let mut rows = rows(bench, writer).await?;
    let routers = start_routers(bench, &rows).await?;
    rows.iter_mut().filter(|row| row.is_compared()).for_each(|row| row.routers = vec![Vec::new(); routers.len()]);
    for _ in bench.rounds("requests") {
        for row in &mut rows {
            row.turn(bench, &routers).await?;
        }
    }
    let details = rows.iter().map(|row| (row.name.to_owned(), row.json(&routers)));
    Ok(Found {
        name: "requests",
        tables: tables(bench, &rows, &routers),
        notes: note(&rows).into_iter().collect(),
        rounds: Value::Object(details.collect()),
    })
}

fn tables(bench: &Bench, rows: &[Row], routers: &[Server]) -> Vec<Table> {
    let (bytes, users, rounds) = (bench.args.prompt_bytes, bench.args.users, bench.args.rounds);
    let shape = format!("{bytes} byte prompts, {ANSWER_TOKENS} tokens back, {users} users (alone: 1)");
    let mut own = Table::new(format!("requests: {shape}, medians of {rounds} round(s)"), COLUMNS);
    rows.iter().for_each(|row| own.row(row.name, row.values()));
    let title = format!("other routers; then pdserve over each, medians of the ratios of {rounds} round(s)");
    let mut ratios = Table::new(title, RATIOS);
    for row in rows {
        for (router, rounds) in routers.iter().zip(&row.routers) {
            ratios.row(format!("{}, {}", router.name, row.name), row.beside(rounds));
        }
    }
    if routers.is_empty() { vec![own] } else { vec![own, ratios] }
}

/// Starts the routers of the command line; each has answered once.
async fn start_routers(bench: &Bench, rows: &[Row]) -> anyhow::Result<Vec<Server>> {
    let compared = rows.iter().find(|row| row.is_compared()).context("nothing to compare")?;
    let mut routers = Vec::new();
    for router in &bench.args.router {
        eprintln!("starting {} ...", router.name);
        routers.push(router.start(&compared.load).await?);
    }
    Ok(routers)
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
        routers: Vec::new(),
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
    Some(format!("a prompt as text costs {:.2} of what as many token ids cost", text / ids))
}

impl Row {
    /// Whether other routers answer it alike.
    fn is_compared(&self) -> bool {
        matches!(self.load.bodies.kind, Kind::Text | Kind::Chat)
    }

    /// The scheduler, then every router.
    async fn turn(&mut self, bench: &Bench, routers: &[Server]) -> anyhow::Result<()> {
        let own = (&bench.gateway.server, &mut self.rounds);
        for (server, rounds) in [own].into_iter().chain(routers.iter().zip(&mut self.routers)) {
            let many = self.load.run(server, bench.args.users.into(), bench.time()).await?;
            let alone = self.load.run(server, 1, bench.time() / 2).await?;
            rounds.push((many, alone));
        }
        Ok(())
    }

    fn over(&self, of: impl Fn(&(Window, Window)) -> Option<f64>) -> Option<f64> {
        over(&self.rounds, of)
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

    /// A router's own figures, and ours over them within rounds.
    fn beside(&self, router: &Rounds) -> Vec<Option<f64>> {
        let ratio = |of: fn(&(Window, Window)) -> Option<f64>| {
            let ratios = self.rounds.iter().zip(router).filter_map(|(own, other)| Some(of(own)? / of(other)?));
            median(&ratios.collect::<Vec<_>>())
        };
        vec![
            over(router, |(many, _)| many.per_core()),
            over(router, |(many, _)| Some(1e6 / many.per_core()?)),
            ratio(|(many, _)| many.per_core()),
            ratio(|(many, _)| many.latency(0.99)),
            ratio(|(_, alone)| alone.latency(0.99)),
        ]
    }

    fn json(&self, routers: &[Server]) -> Value {
        let rounds = |rounds: &Rounds| -> Value {
            rounds.iter().map(|(many, alone)| json!({ "users": many.json(), "alone": alone.json() })).collect()
        };
        let others = routers.iter().zip(&self.routers).map(|(router, of)| (router.name.clone(), rounds(of)));
        json!({ "pdserve": rounds(&self.rounds), "routers": Value::Object(others.collect()) })
    }
}

fn over(rounds: &Rounds, of: impl Fn(&(Window, Window)) -> Option<f64>) -> Option<f64> {
    median(&rounds.iter().filter_map(of).collect::<Vec<_>>())
}
