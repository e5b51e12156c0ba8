//! `pdserve bench engine`: one engine without a cluster, beside what this machine's memory and arithmetic can do in the same run.
//!
//! Prefill computes a whole prompt in one step and samples once; decode computes one token for each row of a batch. In every round
//! the limits are measured first, then every case; percentages are taken within rounds.

mod cost;
mod steps;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use engine::{Engine, EngineConfig, ModelConfig, Quantization};
use kernels::limits::{self, Arithmetic};
use kernels::{Element, Isa, Pool};
use kv::KvDtype;
use serde_json::{Value, json};

use super::conditions::Conditions;
use super::model::{self, Shape};
use super::report::{self, Table};
use super::stats::median;
use cost::{Cost, ElementBytes};

pub(super) use cost::Work;
pub(super) use steps::Steps;

/// f32 values that are read to measure memory: beyond every cache, the host's included.
const READ_VALUES: usize = 256 << 20;
const READ_VALUES_QUICK: usize = 128 << 20;
/// Measurements per round; the best counts, since a limit is what can be reached. A measurement of arithmetic takes a millisecond,
/// so that some of many are not interrupted.
const READ_TRIES: usize = 3;
/// See [`READ_TRIES`].
const PEAK_TRIES: usize = 50;

/// Measure prefill and decode of one engine, beside the limits of this machine.
#[derive(Parser, Debug)]
pub(crate) struct Args {
    /// 0.5b or 1b (random weights, written into the cache once), or a model directory
    #[arg(default_value = "0.5b", value_name = "SHAPE|DIR")]
    model: String,
    /// Prompt lengths
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [128, 512, 2048])]
    prefill: Vec<u32>,
    /// Batch sizes of decode
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [1, 4, 8, 16, 32])]
    batch: Vec<u32>,
    /// Tokens before the one that is decoded
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [256, 2048])]
    context: Vec<u32>,
    /// Compute threads; 0 = one per core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Pack the weights: int8 or int4 [default: as they are stored]
    #[arg(long, value_name = "METHOD")]
    pub(super) quantization: Option<Quantization>,
    /// KV element type: f32, bf16 or int8 [default: as the weights]
    #[arg(long, value_name = "TYPE")]
    kv_cache_dtype: Option<KvDtype>,
    /// Tokens per KV block
    #[arg(long, default_value_t = 16)]
    block_size: u32,
    /// How often everything is measured, in turns; figures are medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// A short look: prompts to 512 tokens, batches 1 and 8, context 256, one round, limits over less memory
    #[arg(long, conflicts_with_all = ["prefill", "batch", "context", "rounds"])]
    quick: bool,
    /// Write the figures of every round to this file
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

/// A row of the table.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) work: Work,
    /// Seconds of one step, one per round.
    seconds: Vec<f64>,
}

impl Case {
    pub(super) fn new(name: impl Into<String>, work: Work) -> Self {
        Self { name: name.into(), work, seconds: Vec::new() }
    }

    /// Computed by one step.
    pub(super) fn tokens(&self) -> f64 {
        f64::from(self.work.rows * self.work.new)
    }
}

/// A loaded engine and what is to be measured on it.
pub(super) struct Prepared {
    pub(super) cases: Vec<Case>,
    /// Names of the cases that do not fit the model.
    pub(super) skipped: Vec<String>,
    pub(super) conditions: Conditions,
    model: ModelConfig,
    engine: Engine,
}

/// What the machine reached at best in one round.
#[derive(Debug, Clone, Copy)]
struct Reached {
    bytes_per_second: f64,
    /// Of the kind of arithmetic that the weights are multiplied with.
    flop_per_second: f64,
}

/// Measures and reports.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let args = args.settled();
    let Prepared { mut cases, skipped, conditions, model, engine } = prepare(&args)?;
    let kv = engine.kv_store().layout().dtype;
    let cost = Cost::new(&model, ElementBytes::of(&engine.identity().dtype, kv, model.head_dim));
    let isa = Isa::from_env()?;
    let arithmetic = Arithmetic::of(isa, stored_as(&engine.identity().dtype));
    let reached = measure(&args, engine, isa, arithmetic, &mut cases)?;
    let table = table(&args, arithmetic, &cost, &cases, &reached);
    report::print(&conditions, std::slice::from_ref(&table), &does_not_fit(&skipped));
    if let Some(path) = &args.json {
        report::write_json(path, &conditions, &[table], details(arithmetic, &cases, &reached))?;
    }
    Ok(())
}

impl Args {
    /// With `--quick` spelled out.
    pub(super) fn settled(mut self) -> Self {
        if self.quick {
            (self.prefill, self.batch, self.context, self.rounds) = (vec![128, 512], vec![1, 8], vec![256], 1);
        }
        self
    }

    /// Compute threads, 0 spelled out.
    pub(super) fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// Finds or writes the model and loads it with the KV memory that its cases need.
pub(super) fn prepare(args: &Args) -> anyhow::Result<Prepared> {
    let conditions = Conditions::gather();
    let dir = match Shape::from_str(&args.model, false) {
        Ok(shape) => model::materialise(shape)?,
        Err(_) => PathBuf::from(&args.model),
    };
    ensure!(dir.join("config.json").is_file(), "{} is neither 0.5b nor 1b nor a model directory", args.model);
    let model = ModelConfig::load(&dir)?;
    let (cases, skipped) = cases(args, model.max_position_embeddings);
    ensure!(!cases.is_empty(), "nothing to measure: the model's longest sequence is {}", model.max_position_embeddings);
    let started = Instant::now();
    let engine = load(args, &dir, &model, &cases)?;
    let conditions = describe(conditions, args, &dir, &engine, started.elapsed().as_secs_f64())?;
    Ok(Prepared { cases, skipped, conditions, model, engine })
}

impl Prepared {
    /// The engine, ready to be measured, and the rest.
    pub(super) fn steps(self, args: &Args) -> anyhow::Result<(Steps, Vec<Case>)> {
        Ok((Steps::new(self.engine, args.block_size)?, self.cases))
    }
}

/// Notes on what was left out.
pub(super) fn does_not_fit(skipped: &[String]) -> Vec<String> {
    skipped.iter().map(|name| format!("{name} does not fit the model's longest sequence")).collect()
}

/// What fits the model, and the names of what does not.
fn cases(args: &Args, longest: u32) -> (Vec<Case>, Vec<String>) {
    let prefill = args.prefill.iter().map(|&new| (format!("prefill {new}"), Work { rows: 1, before: 0, new }));
    let decode = args.context.iter().flat_map(|&before| {
        let case = move |&rows: &u32| (format!("decode {rows} x {before}"), Work { rows, before, new: 1 });
        args.batch.iter().map(case)
    });
    let all = prefill.chain(decode).filter(|(_, work)| work.rows > 0 && work.new > 0);
    let (fit, skipped): (Vec<_>, Vec<_>) = all.partition(|(_, work)| work.before + work.new < longest);
    let case = |(name, work)| Case::new(name, work);
    (fit.into_iter().map(case).collect(), skipped.into_iter().map(|(name, _)| name).collect())
}

/// An engine with just the KV memory that the largest case needs.
fn load(args: &Args, dir: &Path, model: &ModelConfig, cases: &[Case]) -> anyhow::Result<Engine> {
    let max = |of: fn(&Work) -> u32| cases.iter().map(|case| of(&case.work)).max().unwrap_or(1);
    let blocks =
        |work: &Work| u64::from(work.rows) * u64::from((work.before + work.new).div_ceil(args.block_size.max(1)));
    let blocks = cases.iter().map(|case| blocks(&case.work)).max().unwrap_or(1);
    // As if in f32: bf16 needs half of it, and pages that are not used cost nothing.
    let token_bytes = (2 * model.layers * model.kv_heads * KvDtype::F32.head_bytes(model.head_dim)) as u64;
    let config = EngineConfig {
        model_dir: dir.to_owned(),
        tensor_parallel_size: 1,
        threads: args.threads,
        block_size: args.block_size,
        quantization: args.quantization,
        pack_cache: None,
        kv_dtype: args.kv_cache_dtype,
        kv_bytes: Some(blocks * u64::from(args.block_size) * token_bytes),
        // One more than is computed, so that no sampled token ends its sequence.
        max_model_len: Some(max(|work| work.before + work.new) + 1),
        max_num_seqs: max(|work| work.rows),
        max_num_batched_tokens: max(|work| work.rows * work.new),
    };
    Engine::load(&config, &mut |_| {}).with_context(|| format!("cannot load {}", dir.display()))
}

fn describe(
    conditions: Conditions,
    args: &Args,
    dir: &Path,
    engine: &Engine,
    load_seconds: f64,
) -> anyhow::Result<Conditions> {
    let (identity, memory) = (engine.identity(), engine.memory());
    let gigabytes = memory.weights_bytes as f64 / 1e9;
    Ok(conditions
        .and("threads", args.threads())
        .and("isa", engine.instructions())
        .and(
            "model",
            format!(
                "{} ({}, weights {}, KV {})",
                dir.display(),
                identity.architecture,
                identity.dtype,
                identity.kv_dtype
            ),
        )
        .and("memory", memory)
        .and("load", format!("{load_seconds:.2} s, {:.2} s per GB", load_seconds / gigabytes)))
}

/// How weights are stored, by the `dtype` of a [`types::ModelIdentity`]; `None` if they are packed.
fn stored_as(dtype: &str) -> Option<Element> {
    match dtype {
        "f32" => Some(Element::F32),
        "f16" => Some(Element::F16),
        "bf16" => Some(Element::Bf16),
        _ => None,
    }
}

/// Fills in the cases' seconds and returns what the machine could do in each round.
fn measure(
    args: &Args,
    engine: Engine,
    isa: Isa,
    arithmetic: Arithmetic,
    cases: &mut [Case],
) -> anyhow::Result<Vec<Reached>> {
    let pool = Pool::new("limits", args.threads()).context("cannot start threads")?;
    let values = vec![1.0; if args.quick { READ_VALUES_QUICK } else { READ_VALUES }];
    let mut steps = Steps::new(engine, args.block_size)?;
    let mut reached = Vec::new();
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        let best = |tries, of: &dyn Fn() -> f64| (0..tries).map(|_| of()).fold(0.0, f64::max);
        reached.push(Reached {
            bytes_per_second: best(READ_TRIES, &|| limits::read_bandwidth(isa, &pool, &values)),
            flop_per_second: best(PEAK_TRIES, &|| arithmetic.peak(isa, &pool)),
        });
        for case in cases.iter_mut() {
            case.seconds.push(steps.seconds_per_step(case.work)?);
        }
    }
    Ok(reached)
}

fn table(args: &Args, arithmetic: Arithmetic, cost: &Cost, cases: &[Case], reached: &[Reached]) -> Table {
    let operations = if args.quantization.is_some() { "GOP/s" } else { "GFLOP/s" };
    let columns = ["tok/s", "ms/step", operations, &format!("% of {arithmetic}"), "GB/s", "% of read"];
    let mut table = Table::new(format!("medians of {} round(s)", args.rounds), columns);
    let over_rounds = |of: &dyn Fn(&Reached) -> f64| median(&reached.iter().map(of).collect::<Vec<_>>());
    table.row(
        "limit",
        vec![
            None,
            None,
            over_rounds(&|reached| reached.flop_per_second / 1e9),
            Some(100.0),
            over_rounds(&|reached| reached.bytes_per_second / 1e9),
            Some(100.0),
        ],
    );
    for case in cases {
        let (flop, bytes) = (cost.flop(case.work), cost.bytes(case.work));
        let tokens = case.tokens();
        let over_rounds = |of: &dyn Fn(f64, &Reached) -> f64| {
            median(
                &case.seconds.iter().zip(reached).map(|(&seconds, reached)| of(seconds, reached)).collect::<Vec<_>>(),
            )
        };
        table.row(
            &case.name,
            vec![
                over_rounds(&|seconds, _| tokens / seconds),
                over_rounds(&|seconds, _| seconds * 1e3),
                over_rounds(&|seconds, _| flop / seconds / 1e9),
                over_rounds(&|seconds, reached| 100.0 * flop / seconds / reached.flop_per_second),
                over_rounds(&|seconds, _| bytes / seconds / 1e9),
                over_rounds(&|seconds, reached| 100.0 * bytes / seconds / reached.bytes_per_second),
            ],
        );
    }
    table
}

fn details(arithmetic: Arithmetic, cases: &[Case], reached: &[Reached]) -> Value {
    let limit = |reached: &Reached| json!({ "read_bytes_per_s": reached.bytes_per_second, "arithmetic_per_s": reached.flop_per_second });
    let seconds: serde_json::Map<_, _> = cases.iter().map(|case| (case.name.clone(), json!(case.seconds))).collect();
    json!({
        "arithmetic": arithmetic.to_string(),
        "limits": reached.iter().map(limit).collect::<Vec<_>>(),
        "seconds_per_step": seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_what_fits_the_model() {
        let args = Args::parse_from(["engine"]);
        for (longest, count, skipped) in [(32_768, 13, 0), (2048, 7, 6), (257, 1, 12)] {
            let found = cases(&args, longest);
            assert_eq!((found.0.len(), found.1.len()), (count, skipped), "{longest}");
        }
        assert_eq!(cases(&args, 4096).0[3].work, Work { rows: 1, before: 256, new: 1 });
    }

    #[test]
    fn the_demo_model_is_measured() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("model");
        let line = "engine MODEL --prefill 20 --batch 1,3 --context 17 --rounds 1 --threads 1";
        let args = Args::parse_from(line.split(' '));
        let model = ModelConfig::load(&dir).unwrap();
        let (mut cases, _) = cases(&args, model.max_position_embeddings);
        let mut steps = Steps::new(load(&args, &dir, &model, &cases).unwrap(), args.block_size).unwrap();
        for case in &mut cases {
            case.seconds.push(steps.seconds_per_step(case.work).unwrap());
        }
        let reached = [Reached { bytes_per_second: 1e9, flop_per_second: 1e9 }];
        let cost = Cost::new(&model, ElementBytes::of("bf16", KvDtype::Bf16, model.head_dim));
        let table = table(&args, Arithmetic::Fma, &cost, &cases, &reached);
        let names: Vec<_> = table.rows.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["limit", "prefill 20", "decode 1 x 17", "decode 3 x 17"]);
        assert!(table.rows[1..].iter().all(|(_, values)| values.iter().all(|value| *value > Some(0.0))));
    }

    /// The emulated level has every kind of tiles.
    #[test]
    fn the_limit_is_named_in_the_table_and_in_the_file() {
        let model = ModelConfig::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("model")).unwrap();
        let cost = Cost::new(&model, ElementBytes::of("bf16", KvDtype::Bf16, model.head_dim));
        for (dtype, name) in [("bf16", "bf16 tiles"), ("f16", "fma"), ("int4", "int8 tiles")] {
            let arithmetic = Arithmetic::of(Isa::emulated(), stored_as(dtype));
            let table = table(&Args::parse_from(["engine"]), arithmetic, &cost, &[], &[]);
            assert_eq!(table.columns[3], format!("% of {name}"), "{dtype}");
            assert_eq!(details(arithmetic, &[], &[])["arithmetic"], name, "{dtype}");
        }
    }
}
