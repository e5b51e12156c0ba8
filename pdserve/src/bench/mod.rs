//! `pdserve bench`: what users feel (`serve`), what the arithmetic reaches (`engine`), how it
//! stands beside other engines (`peers`), what a hand-over costs (`transfer`), what the scheduler alone does (`gateway`) and how it
//! chooses instances (`pairing`).
//!
//! Whatever is compared is measured in turns within one run, and every figure stands beside a limit or a rival of that same run:
//! a shared machine's speed drifts by more than most improvements are worth. Figures are medians over rounds.

mod conditions;
mod engine;
mod gateway;
mod model;
mod pairing;
mod peers;
mod report;
mod serve;
pub(crate) mod stats;
mod trace;
mod transfer;

use clap::{Parser, Subcommand};

/// Measure this build on this machine.
#[derive(Parser, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Load a scheduler over HTTP: requests per second, time to first token, gaps between tokens
    Serve(serve::Args),
    /// Prefill and decode of one engine, beside the limits of this machine
    Engine(engine::Args),
    /// The same steps on other engines of this machine, in turns, as ratios
    Peers(peers::Args),
    /// Hand-over of KV on every transport, beside a plain copy and a bare TCP socket
    Transfer(transfer::Args),
    /// The scheduler alone, in front of workers that answer at once: requests, long prompts and open streams per processor second
    Gateway(gateway::Args),
    /// The scheduler's choice of a prefill and a decode instance: its time, and its quality beside an exhaustive search
    Pairing(pairing::Args),
    /// Write a model folder with random weights and print where it is
    Model(model::Args),
}

/// Measures, prints a table, and writes the files that were asked for.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        What::Serve(args) => serve::run(args).await,
        What::Engine(args) => engine::run(args),
        What::Peers(args) => peers::run(args),
        What::Transfer(args) => transfer::run(args).await,
        What::Gateway(args) => gateway::run(args).await,
        What::Pairing(args) => pairing::run(&args),
        What::Model(args) => model::run(&args),
    }
}
