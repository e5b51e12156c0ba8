//! How a prompt becomes shipped KV.

mod planner;

/// Flags of a prefill instance.
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "prefill-worker", version, about = "Computes prompts and ships their KV to decode instances")]
pub struct Args {
    #[command(flatten)]
    pub worker: worker::WorkerArgs,
}

/// Runs the instance until SIGTERM or SIGINT has drained it.
pub async fn run(args: Args) -> anyhow::Result<()> {
    anyhow::bail!("prefill-worker for {} is not built yet", args.worker.model.display())
}
