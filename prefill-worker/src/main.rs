//! The prefill instance as a program of its own.

use clap::Parser;

/// Sockets only; the engine has threads of its own.
#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    prefill_worker::run(prefill_worker::Args::parse()).await
}
