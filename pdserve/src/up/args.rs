//! What can be said to `pdserve up`. Everything has a default; flags that concern the workers are handed on to them as they are.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Parser;

/// Start 1 scheduler, some prefill and some decode instances on this machine.
///
/// Examples:
///   pdserve up                                             the demo model, 1 prefill + 1 decode
///   pdserve up --model ./Qwen2.5-0.5B --prefill 2 --decode 2
///   pdserve up --prefill 0 --decode 1                      one aggregated instance
#[derive(Parser, Debug, Clone)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Hugging Face model directory [default: the demo model inside this binary]
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Prefill instances; 0 lets decode instances compute prompts themselves
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) prefill: usize,
    /// Decode instances
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) decode: usize,
    /// Ranks that share each instance's work
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) tensor_parallel_size: usize,
    /// Port of the scheduler, the only one that clients talk to; 0 = any free one
    #[arg(long, default_value_t = 9000)]
    pub(super) port: u16,
    /// Address that the scheduler listens on; workers stay on loopback
    #[arg(long, default_value = "127.0.0.1")]
    pub(super) host: IpAddr,
    /// Name that clients use in `model` [default: the model directory's name]
    #[arg(long, value_name = "NAME")]
    pub(super) served_model_name: Option<String>,
    /// Compute threads of each worker, on whatever cores [default: the cores are shared out, and each worker keeps to its own]
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,
    /// Prompt + output limit in tokens [default: what the model was made for]
    #[arg(long, value_name = "TOKENS")]
    pub(super) max_model_len: Option<u32>,
    /// Sequences that one instance works on at once
    #[arg(long, value_name = "N")]
    pub(super) max_num_seqs: Option<u32>,
    /// Tokens that one step computes
    #[arg(long, value_name = "TOKENS")]
    pub(super) max_num_batched_tokens: Option<u32>,
    /// Prompt tokens that a decode instance computes in one step while others decode; 0 = as many as fit [default: 256]
    #[arg(long, value_name = "TOKENS")]
    pub(super) long_prefill_token_threshold: Option<u32>,
    /// Tokens in one KV block
    #[arg(long, value_name = "TOKENS")]
    pub(super) block_size: Option<u32>,
    /// KV memory of each worker, for example 2GiB [default: derived from what is free]
    #[arg(long, value_name = "BYTES")]
    pub(super) kv_cache_memory: Option<String>,
    /// Pack the weights at load: int8 (half the memory of bf16, decode nearly twice as fast) or int4 (a third; texts change a little)
    #[arg(long, value_name = "METHOD")]
    pub(super) quantization: Option<String>,
    /// Keep packed weights in this directory: all workers map and share one copy, and the next start is quick
    #[arg(long, value_name = "DIR", requires = "quantization")]
    pub(super) pack_cache: Option<PathBuf>,
    /// KV element type: auto, bf16, f32 or int8
    #[arg(long, value_name = "TYPE")]
    pub(super) kv_cache_dtype: Option<String>,
    /// KV transports that workers may use, best first: shm, tcp, grpc
    #[arg(long, value_name = "LIST")]
    pub(super) kv_transports: Option<String>,
    /// Mutual TLS between the processes: the directory that `pdserve certs` wrote
    #[arg(long, value_name = "DIR")]
    pub(super) cluster_tls_dir: Option<PathBuf>,
    /// Serve HTTPS with this certificate (PEM)
    #[arg(long, value_name = "FILE", visible_alias = "ssl-certfile", requires = "tls_key")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", visible_alias = "ssl-keyfile", requires = "tls_cert")]
    pub(super) tls_key: Option<PathBuf>,
    /// Where rank tables and logs go [default: a new directory below the temporary one]
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Show the log lines of every process
    #[arg(long, short)]
    pub(super) verbose: bool,
    /// Address that the rank table names for the workers instead of their own: whoever asks for it puts proxies there
    #[arg(skip)]
    pub(crate) announce: Option<IpAddr>,
}

impl Default for Args {
    /// What `pdserve` without a command means.
    fn default() -> Self {
        Args::parse_from(["up"])
    }
}
