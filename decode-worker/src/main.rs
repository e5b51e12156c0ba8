//! The decode instance as a program of its own.

use clap::Parser;

/// Sockets only; the engine has threads of its own.
#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    decode_worker::run(decode_worker::Args::parse()).await
}
