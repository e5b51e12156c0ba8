//! The CPU-only api-server: OpenAI in, a prefill and a decode instance chosen, text streamed out.
//!
//! `request` tells the story of one request from top to bottom; `cluster` and `connection` know which instances are alive;
//! `pairing` prices them; `http` is the door.

mod access;
mod admission;
mod answer;
mod args;
mod bounds;
mod canary;
mod cluster;
mod config;
mod connection;
mod deadline;
mod http;
mod inbox;
mod leg;
mod link;
mod outbox;
mod output;
pub mod pairing;
mod request;
mod server;
mod stored;
mod table;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use net::TcpListener;
use text::{ChatTemplate, Grammars, Tokenizer};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admission::Admission;
use crate::answer::Style;
use crate::cluster::Cluster;
use crate::http::{Api, Dialect, Keys};
use crate::stored::Stored;

pub use access::{Access, ApiKey};
pub use args::{Args, Delimiter, LocalPrefill, ReasoningFlag, ToolFlag};
pub use bounds::Bounds;
pub use config::{Config, ConfigError, Protocol, Timings};
pub use edge::SECRET_VARIABLE;
pub use table::{Table, TableFile, Target};

/// A scheduler that serves. Dropping it stops it at once; [`Running::shutdown`] drains it first.
pub struct Running {
    pub address: SocketAddr,
    api: Arc<Api>,
    stop: CancellationToken,
    server: JoinSet<()>,
    /// Connections to the instances and the canary: needed until the last request is done.
    keepers: JoinSet<()>,
}

impl Running {
    /// Stops taking requests, lets those in flight finish within `Timings::drain`, then stops.
    pub async fn shutdown(mut self) {
        self.api.start_draining();
        self.stop.cancel();
        while self.server.join_next().await.is_some() {}
        self.keepers.shutdown().await;
    }
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Arguments that do not fit together, a model directory that cannot be read, a port in use.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::from_args(&args)?;
    let _exporter = telemetry::init("scheduler")?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    if std::env::args().any(|word| word == "--api-key" || word.starts_with("--api-key=")) {
        warn!("--api-key can be read by every user of this machine (ps); fix: PDSERVE_API_KEY or --api-key-file");
    }
    let running = start(config).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("draining");
    running.shutdown().await;
    info!("stopped");
    Ok(())
}

/// Serves in this process; returns once the port is bound. Instances may come and go at any time.
///
/// # Errors
/// A model directory that cannot be read, a port in use.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    let tokenizer = Tokenizer::load(&config.model)?;
    let template = ChatTemplate::load(&config.model)?;
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}; is the port in use?", config.listen))?;
    net::backlog(&listener, config.bounds.port.connections)?;
    let address = listener.local_addr()?;
    let cluster = Arc::new(Cluster::new(&config));
    let mut keepers = JoinSet::new();
    keepers.spawn(table::keep(cluster.clone(), config.table_file, config.timings.table));
    keepers.spawn(canary::keep(cluster.clone(), Style::plain(tokenizer.clone())));
    let api = Arc::new(Api {
        cluster,
        admission: Arc::new(Admission::new(&config.bounds)),
        grammars: config.grammars.unwrap_or_else(|| Grammars::new(tokenizer.clone())),
        stored: Stored::new(config.bounds.stored_answers, config.bounds.stored_bytes, config.timings.stored),
        dialect: Dialect::new(config.tool_call_parser, config.reasoning_parser, template.as_ref()),
        tokenizer,
        template,
        trust_request_chat_template: config.trust_request_chat_template,
        model_len_max: config.max_model_len.or_else(|| config::max_position_embeddings(&config.model)),
        arriving: Semaphore::new(config.bounds.arriving_bytes),
        bounds: config.bounds.clone(),
        protocol: config.protocol,
        pooling: config.pooling,
        keys: Keys::new(&config.access),
        server_info: config.server_info,
        started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        draining: AtomicBool::new(false),
        served_names: config.served_names,
    });
    let stop = CancellationToken::new();
    let mut server = JoinSet::new();
    keepers.spawn(config.credentials.clone().keep_fresh(config.timings.certificates));
    if let Some(tls) = &config.tls {
        keepers.spawn(tls.clone().keep_fresh(config.timings.certificates));
    }
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    server.spawn(server::serve(listener, api.clone(), config.tls, config.timings.drain, stop.clone()));
    info!(url = %format_args!("{scheme}://{address}/v1"), instances = config.table.instances.len(), "listening");
    Ok(Running { address, api, stop, server, keepers })
}
