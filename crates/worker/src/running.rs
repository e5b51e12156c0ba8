//! An instance from load to exit: model first, then the port, then work, then a drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use engine::{Engine, LoadStage};
use kv::{BlockPool, KvStore};
use net::TcpListener;
use telemetry::WorkerMetrics;
use text::Grammars;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use types::{Limits, ModelIdentity, Role, TokenId};

use crate::control::{Control, Introduction, RoleService, watchdog};
use crate::server::{self, Door};
use crate::{Config, EngineHandle, Planner, Runner, RunnerConfig, WorkerArgs};

/// Longest wait for running attempts when the instance is asked to stop.
const DRAIN: Duration = Duration::from_secs(30);

/// A worker's program: decide, load and listen (`start`), serve until a signal has drained it.
pub async fn run(
    args: &WorkerArgs,
    role: Role,
    start: impl AsyncFnOnce(Config) -> anyhow::Result<Running>,
) -> anyhow::Result<()> {
    let config = Config::decide(args, role)?;
    if let Some(cores) = &args.cpu_list {
        cores.apply().with_context(|| format!("--cpu-list {cores}: this process may not use all of these cores"))?;
    }
    let _exporter = telemetry::init(config.instance.as_str())?;
    start(config).await?.until_signal().await
}

/// A model in memory, its engine thread, and nothing that listens yet.
pub struct Loaded {
    pub config: Config,
    pub engine: EngineHandle,
    pub pool: BlockPool,
    pub store: Arc<dyn KvStore>,
    pub model: ModelIdentity,
    pub limits: Limits,
    pub grammars: Grammars,
    /// Changes whenever the process does.
    pub incarnation: u64,
}

/// A listening instance. Dropping it stops everything at once; [`Running::drain`] does so gently.
pub struct Running {
    address: SocketAddr,
    pool: BlockPool,
    engine: EngineHandle,
    /// Stops accepting new attempts, waits for those that run, ends connections.
    drain: CancellationToken,
    task: JoinHandle<()>,
}

impl Loaded {
    /// Loads the model, off the async threads, and starts its engine.
    pub async fn load(config: Config, planner: Box<dyn Planner>) -> anyhow::Result<Self> {
        let (role, instance, path) = (config.role, config.instance.clone(), config.engine.model_dir.clone());
        tracing::info!(%role, %instance, model = %path.display(), address = %config.listen, "starting");
        let wanted = config.engine.clone();
        let load = move || {
            Engine::load(&wanted, &mut |progress| {
                if progress.stage != LoadStage::Done {
                    let (done, total) = (progress.done_bytes, progress.total_bytes);
                    tracing::debug!(stage = ?progress.stage, done, total, "loading");
                }
            })
        };
        let engine =
            tokio::task::spawn_blocking(load).await?.with_context(|| format!("cannot load {}", path.display()))?;
        let (model, limits, store) = (engine.identity().clone(), engine.limits(), engine.kv_store());
        log_memory(&engine, &config);
        if let Some(error) = engine.pack_cache_error() {
            tracing::warn!(%error, "--pack-cache cannot be written: the packed weights are this instance's own");
        }
        let pool = BlockPool::new(limits.blocks_total, limits.block_size);
        let config_of_runner = runner_config(&model, &limits, engine.eos_token_ids());
        let runner = Runner::new(config_of_runner, pool.clone(), planner);
        let metrics = WorkerMetrics::new(&instance, role);
        let engine =
            EngineHandle::start(runner, engine, pool.clone(), metrics).context("cannot start the engine thread")?;
        let grammars = Grammars::of_model(config.engine.model_dir.clone());
        Ok(Self { config, engine, pool, store, model, limits, grammars, incarnation: rand::random() })
    }

    /// Binds the port, so that the KV plane can announce it before anything is served.
    pub async fn bind(&self) -> anyhow::Result<TcpListener> {
        let address = self.config.listen;
        TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}; --port and NODE_PORTS name it"))
    }

    /// Serves `role` on the bound port. `kv` is D's gRPC door.
    pub fn serve<R: RoleService>(self, listener: TcpListener, role: R, kv: Option<Router>) -> anyhow::Result<Running> {
        let address = listener.local_addr()?;
        let me = Introduction {
            role: self.config.role,
            instance: self.config.instance.clone(),
            table_hash: self.config.table_hash.clone(),
            model: self.model,
            limits: self.limits,
            incarnation: self.incarnation,
        };
        let control = Control::new(me, self.config.tables.clone(), role, self.engine.clone(), self.grammars);
        let door = Door::new(&self.config, &control, &self.engine, kv);
        let drain = CancellationToken::new();
        let watchdog = watchdog::watch(control.clone(), self.config.step_timeout);
        let task = tokio::spawn(live(control, self.engine.clone(), watchdog, drain.clone(), listener, door));
        tracing::info!(instance = %self.config.instance, %address, "ready");
        Ok(Running { address, pool: self.pool, engine: self.engine, drain, task })
    }
}

/// Serves until the drain is over or the engine is gone; then connections end.
async fn live<R: RoleService>(
    control: Control<R>,
    engine: EngineHandle,
    watchdog: impl Future<Output = ()>,
    drain: CancellationToken,
    listener: TcpListener,
    door: Door,
) {
    let stop = CancellationToken::new();
    let until_stopped = async {
        tokio::select! {
            biased;
            () = engine.ended() => {}
            () = drained(&control, &drain) => {}
            () = watchdog => {}
        }
        control.close();
        stop.cancel();
    };
    tokio::join!(server::serve(listener, door, stop.clone()), until_stopped);
    engine.shutdown();
}

/// Waits for the order to drain, then for the attempts that run.
async fn drained<R: RoleService>(control: &Control<R>, drain: &CancellationToken) {
    drain.cancelled().await;
    tracing::info!("draining");
    control.start_draining();
    match tokio::time::timeout(DRAIN, control.drained()).await {
        Ok(()) => tracing::info!("drained"),
        Err(_) => tracing::warn!(seconds = DRAIN.as_secs(), "not drained in time, stopping"),
    }
}

impl Running {
    /// Where the instance listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The instance's blocks, for tests that look for leaks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Refuses new attempts, lets those that run end (30 s at most), then stops.
    pub async fn drain(mut self) {
        self.drain.cancel();
        let _ = (&mut self.task).await;
    }

    /// Serves until SIGTERM or SIGINT, then drains; a second signal ends the process at once. An error if the engine died.
    pub async fn until_signal(mut self) -> anyhow::Result<()> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = &mut self.task => anyhow::bail!("the engine stopped, see the log above"),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        self.drain.cancel();
        tokio::select! {
            _ = &mut self.task => Ok(()),
            _ = terminate.recv() => anyhow::bail!("stopped by a second signal"),
            _ = interrupt.recv() => anyhow::bail!("stopped by a second signal"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
        self.engine.shutdown();
    }
}

fn runner_config(model: &ModelIdentity, limits: &Limits, eos_token_ids: &[TokenId]) -> RunnerConfig {
    RunnerConfig {
        digest: model.digest.clone(),
        vocab_size: model.vocab_size,
        max_model_len: model.max_model_len,
        eos_token_ids: eos_token_ids.to_vec(),
        max_num_seqs: limits.max_num_seqs,
        max_num_batched_tokens: limits.max_num_batched_tokens,
    }
}

fn log_memory(engine: &Engine, config: &Config) {
    let (model, limits, memory) = (engine.identity(), engine.limits(), engine.memory());
    let transports = config.transports.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(",");
    let threads = match config.engine.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    tracing::info!(
        architecture = %model.architecture,
        dtype = %model.dtype,
        kv_dtype = %model.kv_dtype,
        max_model_len = model.max_model_len,
        weights_mib = memory.weights_bytes >> 20,
        packed_mib = memory.packed.map(|packed| packed.bytes >> 20),
        packed_error = memory.packed.map(|packed| packed.error),
        kv_mib = memory.kv_bytes >> 20,
        blocks = memory.blocks,
        block_size = memory.block_size,
        tensor_parallel_size = limits.tensor_parallel_size,
        max_num_seqs = limits.max_num_seqs,
        max_num_batched_tokens = limits.max_num_batched_tokens,
        threads,
        instructions = engine.instructions(),
        transports,
        "loaded"
    );
}
