//! Decides everything about the cluster before a process starts: ports, rank tables, threads, command lines.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use edge::Pinned;
use worker::CpuList;

use super::Args;
use super::tables::{Shape, WorkerTable};
use crate::shares::Shares;
use crate::{demo, ports};

/// Where workers listen: nothing but this machine talks to them.
pub(crate) const WORKER_IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// A cluster of `up` lives on one machine; more than this is a typing error.
const INSTANCES_MAX: usize = 64;

/// The cluster as it will be started.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) roles: Vec<RolePlan>,
    address: SocketAddr,
    pub(crate) run_dir: PathBuf,
    pub(super) verbose: bool,
    pub(crate) model_name: String,
    shape: String,
    is_demo: bool,
    /// How the scheduler is asked when it serves HTTPS.
    pub(super) https: Option<Pinned>,
}

/// One process: its name in the rank table, its command line after the program's name, its environment.
#[derive(Debug, Clone)]
pub(crate) struct RolePlan {
    pub(crate) name: String,
    pub(super) args: Vec<String>,
    pub(crate) env: Vec<(&'static str, String)>,
    /// A worker's own, and that for KV; none for the scheduler.
    pub(crate) ports: Option<(u16, u16)>,
}

impl Plan {
    /// Checks the arguments against this machine, writes the rank tables, and fixes each role's command line.
    pub(crate) fn new(args: &Args) -> anyhow::Result<Self> {
        ensure!(args.decode >= 1, "--decode is 0: a cluster needs at least one decode instance");
        let instances = args.prefill + args.decode;
        ensure!(
            instances <= INSTANCES_MAX,
            "{instances} instances asked for; one machine gets at most {INSTANCES_MAX}"
        );
        // Held until the workers' ports are chosen, so that none of them is this one.
        let listener = free_listener(args.host, args.port)?;
        let address = listener.local_addr()?;
        let model = model_dir(args)?;
        let model_name = model_name(args, &model);
        let run_dir = run_dir(args)?;
        let shape = Shape {
            ip: args.announce.unwrap_or(WORKER_IP),
            prefill: args.prefill,
            decode: args.decode,
            tensor_parallel_size: args.tensor_parallel_size,
        };
        let tables = shape.write_tables(address, &run_dir)?;
        drop(listener);
        let https = args.tls_cert.as_deref().map(Pinned::load).transpose().context("--tls-cert")?;
        let secret = secret();
        let env = |local: &Path| {
            vec![
                (scheduler::SECRET_VARIABLE, secret.clone()),
                ("GLOBAL_RANK_TABLE_FILE_PATH", tables.global.display().to_string()),
                ("RANK_TABLE_FILE_PATH", local.display().to_string()),
            ]
        };
        let mut roles = vec![RolePlan {
            name: "scheduler".to_owned(),
            args: scheduler_args(args, &model, &model_name, address),
            env: env(&tables.scheduler),
            ports: None,
        }];
        let shares = Shares::of_this_machine(instances);
        let threads = args.threads.unwrap_or(shares.threads);
        for (index, worker) in tables.workers.iter().enumerate() {
            let cores = shares.cores(index).filter(|_| args.threads.is_none());
            roles.push(RolePlan {
                name: worker.name.clone(),
                args: worker_args(args, &model, worker, threads, cores),
                env: env(&worker.file),
                ports: Some((worker.port, worker.kv_port)),
            });
        }
        let shape = format!("{} prefill + {} decode, {threads} threads each", args.prefill, args.decode);
        let is_demo = args.model.is_none();
        Ok(Self { roles, address, run_dir, verbose: args.verbose, model_name, shape, is_demo, https })
    }

    /// Where a client on this machine finds the scheduler.
    pub(crate) fn scheduler_address(&self) -> SocketAddr {
        if self.address.ip().is_unspecified() { SocketAddr::new(WORKER_IP, self.address.port()) } else { self.address }
    }

    pub(crate) fn describe(&self) -> String {
        format!("{} with {} (logs in {})", self.shape, self.model_name, self.run_dir.join("logs").display())
    }

    /// What a new user needs next: where to talk to and a line that works.
    pub(super) fn welcome(&self, took: Duration) -> String {
        let scheme = if self.https.is_some() { "https" } else { "http" };
        let (base, model) = (format!("{scheme}://{}", self.scheduler_address()), &self.model_name);
        let question = if self.is_demo { "What is PD separation?" } else { "Hello!" };
        // As the scheduler will read it.
        let plain = std::env::var("USE_OPENAI").is_ok_and(|value| value == "0");
        let (url, path, body) = match plain {
            true => (base.clone(), "/generate", format!(r#"{{"prompt": "{question}", "temperature": 0}}"#)),
            false => {
                let messages = format!(r#"[{{"role": "user", "content": "{question}"}}]"#);
                let body = format!(r#"{{"model": "{model}", "temperature": 0, "messages": {messages}}}"#);
                (format!("{base}/v1"), "/v1/chat/completions", body)
            }
        };
        // A certificate of one's own is not known to curl.
        let curl = if self.https.is_some() { "curl -k" } else { "curl" };
        let key = key_header(|name| std::env::var(name).is_ok_and(|value| !value.is_empty()));
        format!(
            "\npdserve is ready after {:.1} s: {}\n\n  URL    {url}\n  model  {model}\n  try    {curl} {base}{path} {key}-H 'Content-Type: application/json' \\\n           -d '{body}'\n\n\
             Add \"stream\": true to see tokens as they come. State: {base}/ready  Metrics: {base}/metrics\nCtrl-C drains and ends all of it.\n",
            took.as_secs_f64(),
            self.shape,
        )
    }
}

/// The header that a request needs when the scheduler will find keys: it names the variable and never the key.
fn key_header(is_set: impl Fn(&str) -> bool) -> String {
    let bearer = |key: &str| format!("-H \"Authorization: Bearer {key}\" ");
    match ["PDSERVE_API_KEY", "VLLM_API_KEY"].into_iter().find(|name| is_set(name)) {
        Some(name) => bearer(&format!("${name}")),
        None if is_set("PDSERVE_API_KEY_FILE") => bearer("$(grep -v '^#' $PDSERVE_API_KEY_FILE | head -n 1)"),
        None => String::new(),
    }
}

/// A new one for each run: other users of this machine cannot talk to the workers. By environment, since anyone may read a command line.
fn secret() -> String {
    rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn model_dir(args: &Args) -> anyhow::Result<PathBuf> {
    match &args.model {
        None => demo_model_dir(),
        Some(dir) => {
            ensure!(dir.join("config.json").is_file(), "--model {}: there is no config.json in it", dir.display());
            dir.canonicalize().with_context(|| format!("--model {}", dir.display()))
        }
    }
}

/// The demo model as files.
pub(crate) fn demo_model_dir() -> anyhow::Result<PathBuf> {
    demo::materialise(&demo::cache_dir()).or_else(|_| demo::materialise(&std::env::temp_dir()))
}

fn model_name(args: &Args, model: &Path) -> String {
    let directory = || model.file_name().map_or("model".to_owned(), |name| name.to_string_lossy().into_owned());
    let default = || if args.model.is_none() { demo::DEMO_NAME.to_owned() } else { directory() };
    args.served_model_name.clone().unwrap_or_else(default)
}

fn run_dir(args: &Args) -> anyhow::Result<PathBuf> {
    let default = || std::env::temp_dir().join(format!("pdserve-{}", std::process::id()));
    let dir = args.run_dir.clone().unwrap_or_else(default);
    for sub in ["logs", "pids"] {
        fs::create_dir_all(dir.join(sub)).with_context(|| format!("cannot create {}", dir.join(sub).display()))?;
    }
    Ok(dir)
}

/// Proves that the scheduler's address is free; port 0 becomes a free one.
fn free_listener(host: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    let wanted = SocketAddr::new(host, port);
    let listener = if port == 0 { ports::hold_port(host) } else { TcpListener::bind(wanted) };
    listener.with_context(|| format!("cannot listen on {wanted}; choose another with --port"))
}

fn flag(args: &mut Vec<String>, name: &str, value: Option<impl ToString>) {
    if let Some(value) = value {
        args.push(format!("--{name}={}", value.to_string()));
    }
}

fn scheduler_args(args: &Args, model: &Path, model_name: &str, address: SocketAddr) -> Vec<String> {
    let mut list = vec!["scheduler".to_owned()];
    flag(&mut list, "model", Some(model.display()));
    flag(&mut list, "served-model-name", Some(model_name));
    flag(&mut list, "host", Some(address.ip()));
    flag(&mut list, "port", Some(address.port()));
    flag(&mut list, "max-model-len", args.max_model_len);
    flag(&mut list, "cluster-tls-dir", tls_dir(args, "scheduler"));
    flag(&mut list, "tls-cert", args.tls_cert.as_ref().map(|file| file.display()));
    flag(&mut list, "tls-key", args.tls_key.as_ref().map(|file| file.display()));
    list
}

/// The role's own directory of those that `pdserve certs` made.
fn tls_dir(args: &Args, role: &str) -> Option<String> {
    args.cluster_tls_dir.as_ref().map(|dir| dir.join(role).display().to_string())
}

fn worker_args(args: &Args, model: &Path, worker: &WorkerTable, threads: usize, cores: Option<CpuList>) -> Vec<String> {
    let mut list = vec![format!("{}-worker", worker.role)];
    flag(&mut list, "model", Some(model.display()));
    flag(&mut list, "host", Some(WORKER_IP));
    flag(&mut list, "port", Some(worker.port));
    flag(&mut list, "kv-port", Some(worker.kv_port));
    flag(&mut list, "threads", Some(threads));
    flag(&mut list, "cpu-list", cores);
    flag(&mut list, "tensor-parallel-size", Some(args.tensor_parallel_size));
    flag(&mut list, "max-model-len", args.max_model_len);
    flag(&mut list, "max-num-seqs", args.max_num_seqs);
    flag(&mut list, "max-num-batched-tokens", args.max_num_batched_tokens);
    if worker.role == ranktable::Role::Decode {
        flag(&mut list, "long-prefill-token-threshold", args.long_prefill_token_threshold);
    }
    flag(&mut list, "block-size", args.block_size);
    flag(&mut list, "kv-cache-memory", args.kv_cache_memory.as_ref());
    flag(&mut list, "quantization", args.quantization.as_ref());
    flag(&mut list, "pack-cache", args.pack_cache.as_ref().map(|dir| dir.display()));
    flag(&mut list, "kv-cache-dtype", args.kv_cache_dtype.as_ref());
    flag(&mut list, "kv-transports", args.kv_transports.as_ref());
    flag(&mut list, "cluster-tls-dir", tls_dir(args, &worker.role.to_string()));
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_try_names_the_key_s_variable() {
        let header = |set: &[&str]| key_header(|name| set.contains(&name));
        assert_eq!(header(&[]), "");
        assert_eq!(header(&["PDSERVE_API_KEY", "VLLM_API_KEY"]), "-H \"Authorization: Bearer $PDSERVE_API_KEY\" ");
        assert_eq!(header(&["VLLM_API_KEY"]), "-H \"Authorization: Bearer $VLLM_API_KEY\" ");
        assert!(header(&["PDSERVE_API_KEY_FILE"]).contains("$PDSERVE_API_KEY_FILE"));
    }
}
