use std::process::ExitCode;

use clap::Parser;

/// Writes, merges, checks and shows rank tables: which instances make a cluster, on which machines and devices.
#[derive(Parser)]
#[command(name = "ranktable-tool", version)]
struct Cli {
    #[command(flatten)]
    args: ranktable_tool::Args,
}

fn main() -> ExitCode {
    match ranktable_tool::run(Cli::parse().args) {
        Ok(()) => ExitCode::SUCCESS,
        // A wrong table is not a fault of the program: no backtrace.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
