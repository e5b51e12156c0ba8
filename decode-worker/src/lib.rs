//! How shipped KV becomes tokens.
//!
//! `service` tells the life of an attempt, `landing` sets blocks aside for KV and receives it, `planner` says who runs next.

mod landing;
mod planner;
mod service;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Mutex;
use transfer::KvReceiver;
use types::Role;
use worker::{Config, Loaded, Running};

use landing::Landings;
use service::DecodeService;

pub use planner::DecodePlanner;

/// Flags of a decode instance.
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "decode-worker", version, about = "Receives KV from prefill instances and streams tokens")]
pub struct Args {
    #[command(flatten)]
    pub worker: worker::WorkerArgs,

    /// Prompt tokens that one step computes while others decode, who all wait for it: fewer = smaller gaps between their tokens.
    /// 0 = as many as --max-num-batched-tokens leaves.
    #[arg(long, value_name = "TOKENS", default_value_t = DecodePlanner::default().long_prefill_token_threshold)]
    pub long_prefill_token_threshold: u32,
}

/// Runs the instance until SIGTERM or SIGINT has drained it.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let planner = DecodePlanner { long_prefill_token_threshold: args.long_prefill_token_threshold };
    worker::run(&args.worker, Role::Decode, async |config| start(config, planner).await).await
}

/// Loads the model and serves; returns when the ports listen.
pub async fn start(config: Config, planner: DecodePlanner) -> anyhow::Result<Running> {
    serve(Loaded::load(config, Box::new(planner)).await?).await
}

/// Serves with a model that is already in memory.
pub async fn serve(loaded: Loaded) -> anyhow::Result<Running> {
    let listener = loaded.bind().await?;
    let config = &loaded.config;
    let receiver = KvReceiver::new(config.transfer(loaded.incarnation, &loaded.model.digest), loaded.store.clone());
    let doors = receiver.listen(config.listen.ip(), config.advertise, config.kv_port).await?;
    receiver.set_grpc_address(SocketAddr::new(config.advertise, listener.local_addr()?.port()));
    let grpc = axum::Router::new().route_service("/pdserve.kv.v1.KvTransfer/{*method}", receiver.grpc_service());
    tracing::info!(address = %doors.address(), "listening for KV");
    let landings = Landings {
        receiver,
        engine: loaded.engine.clone(),
        digest: loaded.model.digest.clone(),
        max_model_len: loaded.model.max_model_len,
        line: Mutex::new(()),
        pledged: Arc::default(),
    };
    loaded.serve(listener, DecodeService { landings, _doors: doors }, Some(grpc))
}
