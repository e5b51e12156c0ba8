//! Runs many seeds, or one again: `cargo run --release -p simulation -- --seeds 1000`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use parking_lot::Mutex;
use simulation::{Model, Outcome, Plan, Violation, run};

/// Simulates a whole cluster under seeded faults and checks that nothing is lost, doubled, wrong or leaked.
#[derive(Parser)]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run this seed only, and say what was planned and what came of it. RUST_LOG=debug shows what the roles say.
    #[arg(long)]
    seed: Option<u64>,
    /// Threads; each runs whole seeds.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let model = Model::new()?;
    if let Some(seed) = args.seed {
        tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
        let plan = Plan::new(seed, &model);
        println!("{plan:#?}");
        return Ok(report(seed, &run(plan, &model)));
    }
    let (next, failed) = (AtomicU64::new(args.first), AtomicBool::new(false));
    let (start, total) = (Instant::now(), Mutex::new(Outcome::default()));
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.first + args.seeds {
                        return;
                    }
                    let ran = run(Plan::new(seed, &model), &model);
                    match ran {
                        Ok(outcome) => total.lock().add(&outcome),
                        Err(_) => {
                            report(seed, &ran);
                            failed.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let total = total.into_inner();
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    println!(
        "{} seeds in {:.1} s, {:.0} per minute; {} faults in {} simulated s; answers: {} whole, {} refused, {} cut off, {} clients left",
        args.seeds,
        minutes * 60.0,
        args.seeds as f64 / minutes,
        total.faults,
        total.seconds,
        total.whole,
        total.refused,
        total.cut,
        total.left
    );
    Ok(if failed.into_inner() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn report(seed: u64, ran: &Result<Outcome, Violation>) -> ExitCode {
    match ran {
        Ok(outcome) => {
            println!("seed {seed}: {outcome:?}");
            ExitCode::SUCCESS
        }
        Err(Violation(what)) => {
            println!("seed {seed}: {what}\n  again: cargo run --release -p simulation -- --seed {seed}");
            ExitCode::FAILURE
        }
    }
}
