//! `pdserve chaos`: a fault drill for users. It starts a cluster of its own, hurts it in every way that is in the plan while clients
//! ask questions with known answers, and prints a verdict for each.
//!
//! ```text
//! cluster of our own, proxies on its links -> references -> worker faults (faults.rs, churn.rs) -> abuse and soak (soak.rs) -> references -> table
//! ```
//! Invariants: only processes that it started are signalled, and only loopback addresses are used.

mod churn;
mod client;
mod cluster;
mod faults;
mod load;
mod mutate;
mod proxy;
mod soak;
mod verdict;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use tokio::time::Instant;

use crate::up;
use client::{End, Said};
use cluster::{ANNOUNCED_IP, Site};
use load::{Question, questions};
use verdict::{Row, Verdict};

pub use mutate::mutate;
pub use proxy::{Fault, FaultProxy};

/// Hurt a cluster on this machine on purpose and print a verdict table.
///
/// Starts 1 scheduler, 2 prefill and 2 decode instances with a KV pool that is small on purpose, asks them questions whose answers
/// it knows, and meanwhile kills, freezes, cuts off, drains and floods them. Every answer is compared byte by byte with the one
/// that the undisturbed cluster gave. The exit code is 1 if a row fails. Nothing but its own processes is touched.
///
/// Examples:
///   pdserve chaos                                  the demo model, about 5 minutes
///   pdserve chaos --minutes 2 --report chaos.json
///   pdserve chaos --model ./Qwen2.5-0.5B --minutes 20
#[derive(Parser, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// How long all of it takes, about; phases that wait for a time-out do not get shorter than that
    #[arg(long, value_name = "N", default_value_t = 5.0)]
    minutes: f64,
    /// Chooses moments, mutations and who leaves when
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Hugging Face model directory [default: the demo model inside this binary]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Write the verdict as JSON, too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Where rank tables and logs go [default: a new directory below the temporary one]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

/// Blocks of each worker's KV pool, and tokens of a block: small enough that a few dozen requests exhaust it.
const BLOCKS: u64 = 128;
const BLOCK_TOKENS: u64 = 16;
/// Minutes for which the plan's durations are written.
const PLANNED_MINUTES: f64 = 5.0;

/// Runs the drill.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    ensure!((0.1..=600.0).contains(&args.minutes), "--minutes is {}: expected a number from 0.1 to 600", args.minutes);
    let mut plan = up::Plan::new(&up_args(&args)?)?;
    // Every prompt is to cross the wire.
    plan.roles[0].env.push(("PDSERVE_LOCAL_PREFILL", "never".to_owned()));
    println!("starting {} with {BLOCKS} KV blocks each ...", plan.describe());
    let mut stop = up::StopSignals::new()?;
    let site = Site::new(&plan).await?;
    let mut cluster = up::Cluster::spawn(&plan)?;
    if let Err(error) = up::wait_until_ready(&plan, &mut cluster).await {
        cluster.kill().await;
        return Err(error);
    }
    let mut drill = Drill::new(&args, &site);
    let outcome = tokio::select! {
        outcome = drill.all() => outcome,
        result = cluster.supervise(|role, status| site.ended(role, status)) => result,
        () = stop.recv() => Err(anyhow::anyhow!("stopped by a signal")),
    };
    let verdict = drill.verdict;
    println!("\n{}", verdict.text());
    cluster.drain(&mut stop).await?;
    if let Some(file) = &args.report {
        verdict.save(args.seed, args.minutes, file)?;
    }
    outcome
        .with_context(|| format!("the drill could not go on; logs are in {}", plan.run_dir.join("logs").display()))?;
    let (failed, rows) = (verdict.failed(), verdict.rows.len());
    ensure!(failed == 0, "{failed} of {rows} rows failed; logs are in {}", plan.run_dir.join("logs").display());
    println!("all {rows} rows passed");
    Ok(())
}

/// The cluster as `up` would be asked for it.
fn up_args(args: &Args) -> anyhow::Result<up::Args> {
    let model = args.model.as_deref();
    let kv_bytes = BLOCKS * block_bytes(model)?;
    let kv_bytes = format!("--kv-cache-memory={kv_bytes}");
    let fixed = ["up", "--prefill=2", "--decode=2", "--port=0", "--block-size=16", "--kv-cache-dtype=bf16"];
    let mut up = up::Args::parse_from(fixed.into_iter().chain(["--kv-transports=tcp", kv_bytes.as_str()]));
    up.announce = Some(ANNOUNCED_IP);
    up.model.clone_from(&args.model);
    up.run_dir.clone_from(&args.run_dir);
    Ok(up)
}

/// Bytes of one block of a model's KV in bf16.
fn block_bytes(model: Option<&Path>) -> anyhow::Result<u64> {
    let demo = up::demo_model_dir()?;
    let file = model.unwrap_or(&demo).join("config.json");
    let text = std::fs::read_to_string(&file).with_context(|| format!("--model: cannot read {}", file.display()))?;
    let config: Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))?;
    let number = |key: &str| config[key].as_u64().filter(|number| (1..=1 << 20).contains(number));
    let needed = |key: &str| number(key).with_context(|| format!("{} has no {key}", file.display()));
    let heads = needed("num_attention_heads")?;
    let head_dim = number("head_dim").map_or_else(|| Ok(needed("hidden_size")? / heads), anyhow::Ok)?;
    let kv_heads = number("num_key_value_heads").unwrap_or(heads);
    Ok(needed("num_hidden_layers")? * kv_heads * head_dim * 2 * 2 * BLOCK_TOKENS)
}

/// The plan under way.
struct Drill<'a> {
    site: &'a Site,
    questions: Arc<Vec<Question>>,
    /// Of the plan's durations and counts.
    scale: f64,
    rng: StdRng,
    started: Instant,
    verdict: Verdict,
}

impl<'a> Drill<'a> {
    fn new(args: &Args, site: &'a Site) -> Self {
        let (scale, rng) = (args.minutes / PLANNED_MINUTES, StdRng::seed_from_u64(args.seed));
        let (questions, verdict) = (Arc::default(), Verdict::default());
        Self { site, questions, scale, rng, started: Instant::now(), verdict }
    }

    async fn all(&mut self) -> anyhow::Result<()> {
        self.references().await?;
        self.worker_faults().await?;
        self.churn().await?;
        self.soak().await?;
        self.compare("reference texts again, after everything").await
    }

    /// Says what comes next.
    fn say(&self, what: &str) {
        println!("[{:>4.0} s] {what}", self.started.elapsed().as_secs_f64());
    }

    /// A duration of the plan, never below what its row needs.
    fn lasting(&self, planned: f64, least: f64) -> Duration {
        Duration::from_secs_f64((planned * self.scale).max(least))
    }

    /// A count of the plan.
    fn times(&self, planned: f64) -> usize {
        (planned * self.scale).ceil() as usize
    }

    /// The answers to compare with: each question alone.
    async fn references(&mut self) -> anyhow::Result<()> {
        self.say("reference texts, one at a time");
        let mut asked = Vec::new();
        for body in questions() {
            let answer = self.answer(&body).await?;
            asked.push(Question { body, answer });
        }
        self.questions = Arc::new(asked);
        self.compare("reference texts alone and all at once").await
    }

    /// What the undisturbed cluster answers.
    async fn answer(&self, body: &Value) -> anyhow::Result<Said> {
        match self.site.client.complete(body, || {}).await.end {
            End::Whole(said) => Ok(said),
            other => anyhow::bail!("{body} was not answered by an undisturbed cluster: {other:?}"),
        }
    }

    /// Every question at once.
    async fn compare(&mut self, what: &str) -> anyhow::Result<()> {
        self.say(what);
        let asked = self.questions.iter().map(|question| self.site.client.complete(&question.body, || {}));
        let seen = futures::future::join_all(asked).await;
        let equal = |(seen, question): &(client::Seen, &Question)| seen.end == End::Whole(question.answer.clone());
        let all = self.questions.len();
        let same = seen.into_iter().zip(self.questions.iter()).filter(equal).count();
        let (done, criterion) = (what.to_owned(), "all equal".to_owned());
        self.verdict.row(Row {
            id: "text",
            done,
            criterion,
            measured: format!("{same}/{all} equal"),
            pass: same == all,
        });
        Ok(())
    }
}
