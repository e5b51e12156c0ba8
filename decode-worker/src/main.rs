//! The decode instance as a program of its own.

use std::process::ExitCode;

use clap::Parser;

/// Two threads are for sockets only; the engine has threads of its own.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    match decode_worker::run(decode_worker::Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line that names value, place and fix; a backtrace helps nobody who runs this.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
