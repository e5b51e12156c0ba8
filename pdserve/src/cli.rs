//! Command line of the one binary: which role or tool to run.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{bench, certs, chaos, kv, parent, up};

/// Prefill/decode disaggregated LLM serving: one binary, every role.
///
/// Without a command: start 1 scheduler, 1 prefill and 1 decode instance on this machine with the built-in demo model.
#[derive(Parser, Debug)]
#[command(name = "pdserve", version, about, long_about)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start a whole cluster on this machine and stay in front of it
    Up(up::Args),
    /// The CPU-only api-server: takes OpenAI requests, chooses a prefill and a decode instance
    Scheduler(scheduler::Args),
    /// An instance that computes prompts and ships their KV blocks
    PrefillWorker(prefill_worker::Args),
    /// An instance that receives KV blocks and streams tokens
    DecodeWorker(decode_worker::Args),
    /// Show who holds KV blocks on every instance of a running cluster
    Kv(kv::Args),
    /// Make the certificates of a cluster
    Certs(certs::Args),
    /// Write, merge, check and show rank tables
    Ranktable(ranktable_tool::Args),
    /// Measure this build on this machine
    Bench(bench::Args),
    /// Hurt a cluster on this machine on purpose and print a verdict table
    Chaos(chaos::Args),
}

/// Runs what the command line asks for; the exit code is 0 only if it ended as asked.
pub fn main() -> ExitCode {
    if let Err(error) = parent::die_with_parent() {
        eprintln!("pdserve: {error:#}");
        return ExitCode::FAILURE;
    }
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pdserve: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command.unwrap_or_else(|| Command::Up(up::Args::default())) {
        Command::Up(args) => runtime()?.block_on(up::run(args)),
        Command::Scheduler(args) => runtime()?.block_on(scheduler::run(args)),
        Command::PrefillWorker(args) => runtime()?.block_on(prefill_worker::run(args)),
        Command::DecodeWorker(args) => runtime()?.block_on(decode_worker::run(args)),
        Command::Kv(args) => runtime()?.block_on(kv::run(args)),
        Command::Certs(args) => certs::run(&args),
        Command::Ranktable(args) => ranktable_tool::run(args),
        Command::Bench(args) => runtime()?.block_on(bench::run(args)),
        Command::Chaos(args) => runtime()?.block_on(chaos::run(args)),
    }
}

/// Sockets only: the arithmetic has threads of its own, so two of these are enough on small machines.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8));
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).thread_name("pdserve-io").enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
