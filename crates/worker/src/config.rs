//! What was decided: one instance's place in the cluster and how it runs. Everything that can be checked without the model is checked
//! here, before a port is bound or a weight is read.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use edge::{Credentials, PortBounds, SECRET_VARIABLE, SetupError};
use engine::{EngineConfig, Quantization};
use kv::KvDtype;
use transfer::{TransferConfig, TransportKind};
use types::{InstanceId, Role};

use crate::WorkerArgs;
use crate::place::{Place, Tables};

/// Tokens per step when nothing is said: a chunk of some hundred milliseconds on a CPU, long enough to keep its kernels busy.
const BATCHED_TOKENS: u32 = 2048;

/// A set-up that cannot work; names the flag or variable, what was found and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "{missing} not set: this worker finds its place in the cluster by GLOBAL_RANK_TABLE_FILE_PATH (the cluster's table) and RANK_TABLE_FILE_PATH (its own); make both with `ranktable-tool gen`"
    )]
    NoTables { missing: String },
    #[error(transparent)]
    Table(#[from] ranktable::Error),
    #[error("{flag}: found {found}, expected {expected}")]
    Flag { flag: &'static str, found: String, expected: String },
    #[error(
        "--max-num-batched-tokens {batched} is smaller than --max-model-len {len}: raise the first or leave it out"
    )]
    BatchedTokens { batched: u32, len: u32 },
    #[error("no port: give --port, or NODE_PORTS with the ports of all prefill, then all decode instances")]
    NoPort,
    #[error(
        "--host {host} is only reachable from this machine, but the rank table announces {announced}: use --host 0.0.0.0 or --host {announced}"
    )]
    Unreachable { host: String, announced: IpAddr },
    #[error(
        "the rank table has moved {instance} from {before} to {now}, or to other devices; fix: start it anew, there"
    )]
    Moved { instance: InstanceId, before: SocketAddr, now: SocketAddr },
    #[error(transparent)]
    Credentials(#[from] SetupError),
    #[error(
        "--host {host} lets other machines in, and nothing keeps strangers out: give all roles the same secret by {SECRET_VARIABLE} or --cluster-secret-file (`openssl rand -hex 32` makes one), or certificates by --cluster-tls-dir (`pdserve certs` makes them), or use --host 127.0.0.1"
    )]
    Open { host: String },
}

/// One instance, ready to start.
#[derive(Clone, Debug)]
pub struct Config {
    pub role: Role,
    pub instance: InstanceId,
    /// Of the global rank table; all roles must have read the same.
    pub table_hash: String,
    /// To read both again; `None` = they never change.
    pub tables: Option<Tables>,
    pub engine: EngineConfig,
    /// Where to listen; port 0 = any free one (tests).
    pub listen: SocketAddr,
    /// The address that peers use.
    pub advertise: IpAddr,
    pub kv_port: u16,
    pub transports: Vec<TransportKind>,
    /// What whoever opens a control or KV connection must prove; nothing only on loopback.
    pub credentials: Credentials,
    pub port: PortBounds,
    /// A step that gets through no layer for so long stands still.
    pub step_timeout: Duration,
}

impl Config {
    /// Reads the tables and checks everything that was typed.
    pub fn decide(args: &WorkerArgs, role: Role) -> Result<Self, ConfigError> {
        let place = Place::find(args, role)?;
        check_unsupported(args)?;
        let devices = place.identity.devices.len();
        let tensor_parallel_size = args.tensor_parallel_size.map_or(devices, |size| size as usize);
        place.identity.require_tensor_parallel_size(tensor_parallel_size)?;
        let config = Self {
            role,
            instance: place.instance.clone(),
            table_hash: place.table_hash.clone(),
            tables: Some(place.tables(args, role)),
            engine: engine_config(args, tensor_parallel_size)?,
            listen: SocketAddr::new(bind_address(&args.host)?, place.port),
            advertise: place.server_ip(),
            kv_port: args.kv_port,
            transports: transports(&args.kv_transports)?,
            credentials: Credentials::load(args.cluster_secret_file.as_deref(), args.cluster_tls_dir.as_deref(), role)?,
            port: crate::server::port_bounds(),
            step_timeout: Duration::from_secs(args.step_timeout),
        };
        if !config.credentials.any() && !config.listen.ip().is_loopback() {
            return Err(ConfigError::Open { host: args.host.clone() });
        }
        if config.listen.ip().is_loopback() && !config.advertise.is_loopback() {
            return Err(ConfigError::Unreachable { host: args.host.clone(), announced: config.advertise });
        }
        Ok(config)
    }

    /// How this instance takes part in hand-overs.
    pub fn transfer(&self, incarnation: u64, digest: &str) -> TransferConfig {
        let (transports, credentials) = (self.transports.clone(), self.credentials.clone());
        TransferConfig { transports, credentials, ..TransferConfig::new(self.instance.clone(), incarnation, digest) }
    }
}

fn engine_config(args: &WorkerArgs, tensor_parallel_size: usize) -> Result<EngineConfig, ConfigError> {
    if !(8..=128).contains(&args.block_size) || !args.block_size.is_multiple_of(8) {
        return Err(flag("--block-size", args.block_size, "a multiple of 8 from 8 to 128"));
    }
    if let (Some(batched), Some(len)) = (args.max_num_batched_tokens, args.max_model_len)
        && batched < len
    {
        return Err(ConfigError::BatchedTokens { batched, len });
    }
    let kv_dtype = match args.kv_cache_dtype.as_str() {
        "auto" => None,
        dtype => {
            Some(dtype.parse::<KvDtype>().map_err(|_| flag("--kv-cache-dtype", dtype, "auto, bf16, f32 or int8"))?)
        }
    };
    let quantization = match args.quantization.as_deref() {
        None | Some("" | "none") => None,
        Some(name) => {
            Some(name.parse::<Quantization>().map_err(|_| flag("--quantization", name, "none, int8 or int4"))?)
        }
    };
    check_model(&args.model)?;
    Ok(EngineConfig {
        model_dir: args.model.clone(),
        tensor_parallel_size,
        threads: args.threads.unwrap_or(0) as usize,
        block_size: args.block_size,
        quantization,
        pack_cache: args.pack_cache.clone(),
        kv_dtype,
        kv_bytes: args.kv_cache_memory,
        max_model_len: args.max_model_len,
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: args.max_num_batched_tokens.unwrap_or(BATCHED_TOKENS),
    })
}

fn check_model(model: &Path) -> Result<(), ConfigError> {
    if model.join("config.json").is_file() {
        return Ok(());
    }
    Err(flag("--model", model.display(), "a Hugging Face directory with a config.json in it"))
}

fn check_unsupported(args: &WorkerArgs) -> Result<(), ConfigError> {
    match args.device.as_str() {
        "auto" | "cpu" => Ok(()),
        cuda if cuda.starts_with("cuda") => Err(flag("--device", cuda, "cpu or auto: CUDA is not built in")),
        other => Err(flag("--device", other, "cpu or auto")),
    }
}

fn bind_address(host: &str) -> Result<IpAddr, ConfigError> {
    if host == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    let found = (host, 0).to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    found.map(|address| address.ip()).ok_or_else(|| flag("--host", host, "an address of this machine, or 0.0.0.0"))
}

fn transports(names: &[String]) -> Result<Vec<TransportKind>, ConfigError> {
    let parse =
        |name: &String| name.trim().parse().map_err(|_| flag("--kv-transports", name, "inproc, shm, tcp, grpc"));
    let kinds: Vec<TransportKind> =
        names.iter().filter(|name| !name.trim().is_empty()).map(parse).collect::<Result<_, _>>()?;
    if kinds.is_empty() {
        return Err(flag("--kv-transports", "nothing", "at least one of inproc, shm, tcp, grpc"));
    }
    Ok(kinds)
}

fn flag(flag: &'static str, found: impl ToString, expected: &str) -> ConfigError {
    ConfigError::Flag { flag, found: found.to_string(), expected: expected.to_owned() }
}

#[cfg(test)]
mod tests;
