//! The scheduler as a process of its own.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    match scheduler::run(scheduler::Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line that names value, place and fix; a backtrace helps nobody who runs this.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
