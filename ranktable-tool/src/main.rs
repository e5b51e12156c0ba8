use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match ranktable_tool::run(ranktable_tool::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // A wrong table is not a fault of the program: no backtrace.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
