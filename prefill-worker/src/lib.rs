//! How a prompt becomes shipped KV.
//!
//! `service` tells the life of an attempt, `handoff` ships blocks while they are computed, `planner` says which prompt is next.

mod handoff;
mod planner;
mod service;

use tokio::runtime::Handle;
use transfer::KvSender;
use types::Role;
use worker::{Config, Loaded, Running};

use handoff::Shipping;
use service::PrefillService;

pub use planner::PrefillPlanner;

/// Flags of a prefill instance.
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "prefill-worker", version, about = "Computes prompts and ships their KV to decode instances")]
pub struct Args {
    #[command(flatten)]
    pub worker: worker::WorkerArgs,
}

/// Runs the instance until SIGTERM or SIGINT has drained it.
pub async fn run(args: Args) -> anyhow::Result<()> {
    worker::run(&args.worker, Role::Prefill, start).await
}

/// Loads the model and serves; returns when the port listens.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    serve(Loaded::load(config, Box::new(PrefillPlanner)).await?).await
}

/// Serves with a model that is already in memory.
pub async fn serve(loaded: Loaded) -> anyhow::Result<Running> {
    let listener = loaded.bind().await?;
    let transfer = loaded.config.transfer(loaded.incarnation, &loaded.model.digest);
    let shipping = Shipping {
        sender: KvSender::new(transfer, loaded.store.clone()),
        pool: loaded.pool.clone(),
        layers: loaded.model.layers,
        kv_heads: loaded.model.kv_heads,
        runtime: Handle::current(),
    };
    let service = PrefillService { shipping, engine: loaded.engine.clone() };
    loaded.serve(listener, service, None)
}
