//! How shipped KV becomes tokens.

mod planner;

/// Flags of a decode instance.
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "decode-worker", version, about = "Receives KV from prefill instances and streams tokens")]
pub struct Args {
    #[command(flatten)]
    pub worker: worker::WorkerArgs,
}

/// Runs the instance until SIGTERM or SIGINT has drained it.
pub async fn run(args: Args) -> anyhow::Result<()> {
    anyhow::bail!("decode-worker for {} is not built yet", args.worker.model.display())
}
