//! The scheduler as a process of its own.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = scheduler::Args::parse();
    let _exporter = telemetry::init("scheduler")?;
    scheduler::run(args).await
}
