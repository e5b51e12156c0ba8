//! A whole instance on the pretended engine, so that P, D and a scheduler can be tested together without a model.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Duration;

use engine::EngineConfig;
use kv::BlockPool;
use telemetry::WorkerMetrics;
use text::Grammars;
use transfer::TransportKind;
use types::{Limits, ModelIdentity, Role};

use super::{FakeEngine, MAX_MODEL_LEN, Pace, Size, VOCAB};
use crate::{Config, EngineHandle, Loaded, Planner, Runner, RunnerConfig};

/// The configuration of an instance on a free loopback port. `instance` is its name, for example `prefill-0`.
pub fn config(role: Role, instance: &str, transports: &[TransportKind]) -> Config {
    Config {
        role,
        instance: instance.into(),
        table_hash: "table".into(),
        tables: None,
        engine: EngineConfig {
            model_dir: "no model".into(),
            tensor_parallel_size: 1,
            threads: 1,
            block_size: 16,
            quantization: None,
            pack_cache: None,
            kv_dtype: None,
            kv_bytes: None,
            max_model_len: None,
            max_num_seqs: 16,
            max_num_batched_tokens: 64,
        },
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        advertise: Ipv4Addr::LOCALHOST.into(),
        kv_port: 0,
        transports: transports.to_vec(),
        credentials: Default::default(),
        port: crate::server::port_bounds(),
        step_timeout: Duration::from_secs(30),
    }
}

/// As [`Loaded::load`], with the pretended engine on a thread.
pub fn loaded(config: Config, size: Size, planner: Box<dyn Planner>) -> std::io::Result<Loaded> {
    assemble(config, size, planner, Pace::default(), |runner, engine, pool, metrics| {
        EngineHandle::start(runner, engine, pool, metrics)
    })
}

/// As [`loaded`], for simulated time: the engine is a task of this runtime and its steps take time by `pace`.
pub fn simulated(config: Config, size: Size, planner: Box<dyn Planner>, pace: Pace) -> Loaded {
    let started = assemble(config, size, planner, pace, |runner, engine, pool, metrics| {
        Ok::<_, Infallible>(EngineHandle::start_task(runner, engine, pool, metrics))
    });
    match started {
        Ok(loaded) => loaded,
        Err(never) => match never {},
    }
}

fn assemble<E>(
    config: Config,
    size: Size,
    planner: Box<dyn Planner>,
    pace: Pace,
    start: impl FnOnce(Runner, FakeEngine, BlockPool, WorkerMetrics) -> Result<EngineHandle, E>,
) -> Result<Loaded, E> {
    let engine = FakeEngine::new(size.blocks, size.block_size).paced(pace);
    let pool = BlockPool::new(size.blocks, size.block_size);
    let store = engine.store();
    let runner_config = RunnerConfig {
        digest: model().digest,
        vocab_size: VOCAB,
        max_model_len: MAX_MODEL_LEN,
        eos_token_ids: vec![0],
        max_num_seqs: size.max_num_seqs,
        max_num_batched_tokens: size.max_num_batched_tokens,
    };
    let runner = Runner::new(runner_config, pool.clone(), planner);
    let metrics = WorkerMetrics::new(&config.instance, config.role);
    let limits = Limits {
        block_size: size.block_size,
        blocks_total: size.blocks,
        tensor_parallel_size: 1,
        max_num_seqs: size.max_num_seqs,
        max_num_batched_tokens: size.max_num_batched_tokens,
        instructions: "none".into(),
    };
    let engine = start(runner, engine, pool.clone(), metrics)?;
    let grammars = Grammars::of_model(config.engine.model_dir.clone());
    Ok(Loaded { config, engine, pool, store, model: model(), limits, grammars, incarnation: rand::random() })
}

fn model() -> ModelIdentity {
    ModelIdentity {
        digest: "fake".into(),
        architecture: "fake".into(),
        dtype: "f32".into(),
        kv_dtype: "f32".into(),
        layers: 2,
        heads: 2,
        kv_heads: 2,
        head_dim: 2,
        vocab_size: VOCAB,
        rope: String::new(),
        sliding_window: 0,
        max_model_len: MAX_MODEL_LEN,
    }
}
