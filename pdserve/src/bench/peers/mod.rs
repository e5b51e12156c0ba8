//! `pdserve bench peers`: the same steps on this engine and on other engines of this machine, in turns, as ratios.
//!
//! Each peer is one process that stays loaded (`driver.rs`) and is frozen while another has its turn, so that nobody's idle threads
//! cost the others. A ratio compares engines of one precision class only, and is taken within rounds.

mod driver;
mod side;

use std::path::PathBuf;

use anyhow::ensure;
use clap::Parser;
use serde_json::json;

use super::engine::{self, Case, Steps};
use super::report::{self, Table};
use super::stats::median;
use driver::{Driver, Setting};
use side::{Class, Peer, Program};

/// Measure this engine and others in turns on the same shapes, and print ratios.
///
/// A peer is named as CLASS=PATH, where CLASS is the precision of its weights: 16-bit, int8 or int4. Only engines of one class
/// are compared. Peers must hold the same model: the folder for vLLM, its OpenVINO export, its GGUF conversion.
///
/// Example: pdserve bench peers 0.5b --python venv/bin/python --vllm 16-bit=DIR --openvino int8=IR_DIR --llama int8=FILE.gguf
#[derive(Parser, Debug)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    engine: engine::Args,
    /// Interpreter that has the peers' packages (vllm, openvino_genai, llama_cpp)
    #[arg(long, default_value = "python3", value_name = "PROGRAM")]
    python: PathBuf,
    /// vLLM on CPU with a model directory
    #[arg(long, value_name = "CLASS=DIR")]
    vllm: Vec<Peer>,
    /// OpenVINO GenAI with an exported model directory
    #[arg(long, value_name = "CLASS=DIR")]
    openvino: Vec<Peer>,
    /// llama.cpp (llama_cpp package) with a GGUF file
    #[arg(long, value_name = "CLASS=FILE")]
    llama: Vec<Peer>,
}

/// One engine and what it took.
struct Side {
    /// As in the tables.
    name: String,
    class: Class,
    runs: Runs,
    /// Seconds of a step: per case, per round. `None` = this engine cannot do this case; it said why.
    seconds: Vec<Vec<Option<f64>>>,
}

enum Runs {
    Here(Box<Steps>),
    There(Driver),
}

pub(crate) fn run(mut args: Args) -> anyhow::Result<()> {
    args.engine = args.engine.settled();
    let peers = [(Program::Vllm, &args.vllm), (Program::OpenVino, &args.openvino), (Program::Llama, &args.llama)];
    let peers: Vec<_> =
        peers.iter().flat_map(|&(program, list)| list.iter().map(move |peer| (program, peer))).collect();
    ensure!(!peers.is_empty(), "no peer to compare with: give at least one of --vllm, --openvino, --llama");
    let prepared = engine::prepare(&args.engine)?;
    let (conditions, mut notes) = (prepared.conditions.clone(), engine::does_not_fit(&prepared.skipped));
    let (steps, cases) = prepared.steps(&args.engine)?;
    let (class, here) = (Class::of(args.engine.quantization), Runs::Here(Box::new(steps)));
    let mut sides = vec![Side::new("pdserve".to_owned(), class, here, cases.len())];
    for (program, peer) in peers {
        sides.push(start(&args, program, peer, &cases)?);
    }
    for round in 0..args.engine.rounds {
        eprintln!("round {} of {}", round + 1, args.engine.rounds);
        take_turns(&mut sides, &cases, &mut notes)?;
        // Whatever grows or wears off within a round is not always to the same side's account.
        sides.rotate_left(1);
    }
    let turned = args.engine.rounds as usize % sides.len();
    sides.rotate_right(turned);
    let tables = [speeds(&cases, &sides), ratios(&cases, &sides)];
    report::print(&conditions, &tables, &notes);
    if let Some(path) = &args.engine.json {
        let details: serde_json::Map<_, _> =
            sides.iter().map(|side| (side.name.clone(), json!(side.seconds))).collect();
        report::write_json(path, &conditions, &tables, details.into())?;
    }
    Ok(())
}

fn start(args: &Args, program: Program, peer: &Peer, cases: &[Case]) -> anyhow::Result<Side> {
    let name = format!("{program} {}", peer.class);
    eprintln!("starting {name} ...");
    let most = |of: fn(&Case) -> u32| cases.iter().map(of).max().unwrap_or(1);
    let setting = Setting {
        model: peer.path.clone(),
        threads: args.engine.threads(),
        rows_max: most(|case| case.work.rows),
        tokens_max: most(|case| case.work.before + case.work.new),
        batch_tokens_max: most(|case| case.work.rows * (case.work.before + case.work.new)),
    };
    let driver = Driver::start(&args.python, program, &setting)?;
    Ok(Side::new(name, peer.class, Runs::There(driver), cases.len()))
}

/// A round: every side takes its turn with a case before the next case, so that what is compared lies close together in time.
fn take_turns(sides: &mut [Side], cases: &[Case], notes: &mut Vec<String>) -> anyhow::Result<()> {
    for (index, case) in cases.iter().enumerate() {
        sides.iter_mut().try_for_each(|side| side.turn(index, case, notes))?;
    }
    Ok(())
}

impl Side {
    fn new(name: String, class: Class, runs: Runs, cases: usize) -> Self {
        Self { name, class, runs, seconds: vec![Vec::new(); cases] }
    }

    /// Takes its turn.
    fn turn(&mut self, index: usize, case: &Case, notes: &mut Vec<String>) -> anyhow::Result<()> {
        let seconds = match &mut self.runs {
            Runs::Here(steps) => Some(steps.seconds_per_step(case.work)?),
            Runs::There(driver) => match driver.seconds_per_step(case.work)? {
                Ok(seconds) => Some(seconds),
                Err(reason) => {
                    notes.push(format!("{}, {}: {reason}", self.name, case.name));
                    None
                }
            },
        };
        self.seconds[index].push(seconds);
        Ok(())
    }

    fn tokens_per_second(&self, cases: &[Case], case: usize) -> Option<f64> {
        let seconds: Vec<_> = self.seconds[case].iter().flatten().copied().collect();
        median(&seconds).map(|seconds| cases[case].tokens() / seconds)
    }
}

fn speeds(cases: &[Case], sides: &[Side]) -> Table {
    let mut table = Table::new("tok/s, medians", sides.iter().map(|side| side.name.clone()));
    for (index, case) in cases.iter().enumerate() {
        table.row(&case.name, sides.iter().map(|side| side.tokens_per_second(cases, index)).collect());
    }
    table
}

/// Our speed over each peer's of the same class.
fn ratios(cases: &[Case], sides: &[Side]) -> Table {
    let (ours, peers) = sides.split_first().expect("our side is the first");
    let rivals: Vec<_> = peers.iter().filter(|peer| peer.class == ours.class).collect();
    let names = rivals.iter().map(|peer| format!("/ {}", peer.name));
    let mut table = Table::new(format!("{} over peers of its class, medians of the rounds' ratios", ours.name), names);
    for (index, case) in cases.iter().enumerate() {
        let ratio = |peer: &&Side| {
            let rounds = ours.seconds[index].iter().zip(&peer.seconds[index]);
            median(&rounds.filter_map(|(ours, peer)| Some((*peer)? / (*ours)?)).collect::<Vec<_>>())
        };
        table.row(&case.name, rivals.iter().map(ratio).collect());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::engine::Work;
    use super::*;

    #[test]
    fn only_engines_of_one_class_are_compared_and_ratios_are_taken_within_rounds() {
        let cases = [Case::new("prefill 8", Work { rows: 1, before: 0, new: 8 })];
        let side = |name: &str, class, seconds: [Option<f64>; 2]| Side {
            name: name.to_owned(),
            class,
            runs: Runs::There(Driver::detached()),
            seconds: vec![seconds.to_vec()],
        };
        let sides = [
            side("ours", Class::Int8, [Some(1.0), Some(4.0)]),
            side("same", Class::Int8, [Some(2.0), Some(8.0)]),
            side("other", Class::Bits16, [Some(9.0), Some(9.0)]),
            side("cannot", Class::Int8, [None, None]),
        ];
        let table = ratios(&cases, &sides);
        assert_eq!(table.columns, ["/ same", "/ cannot"]);
        assert_eq!(table.rows, [("prefill 8".to_owned(), vec![Some(2.0), None])]);
        assert_eq!(speeds(&cases, &sides).rows[0].1, [Some(3.2), Some(1.6), Some(8.0 / 9.0), None]);
    }
}
