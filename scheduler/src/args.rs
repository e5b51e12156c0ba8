//! What the operator typed: flags and environment of the scheduler. Nothing is decided here; see `config`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum, value_parser};

use crate::access::ApiKey;

/// Serve the OpenAI API in front of a cluster of prefill and decode instances.
#[derive(Clone, Debug, Parser)]
#[command(name = "scheduler", version)]
pub struct Args {
    /// Directory of the model (Hugging Face layout); the scheduler reads tokenizer, chat template and config only.
    #[arg(long)]
    pub model: PathBuf,

    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,

    /// Port to listen on; 0 picks a free one and logs it.
    #[arg(long, default_value_t = 9000)]
    pub port: u16,

    /// Names that requests may use for the model; responses say the first. Default: the directory's name, and the path as typed.
    #[arg(long, num_args = 1.., value_name = "NAME")]
    pub served_model_name: Vec<String>,

    /// The cluster's rank table, the same file for every role.
    #[arg(long, env = "GLOBAL_RANK_TABLE_FILE_PATH", value_name = "FILE")]
    pub global_rank_table: PathBuf,

    /// The service entry's own table (`local_ranktable_IP_host.json`).
    #[arg(long, env = "RANK_TABLE_FILE_PATH", value_name = "FILE")]
    pub rank_table: PathBuf,

    /// Ports of all prefill, then all decode instances, in the order of the global table: `8088,8089`. Not needed when the table names the ports.
    #[arg(long, env = "NODE_PORTS", value_name = "P1,P2,...")]
    pub node_ports: Option<String>,

    /// 1 serves the OpenAI API; 0 serves vLLM's plain server, which has POST /generate and no more.
    #[arg(long, env = "USE_OPENAI", default_value_t = 1, value_parser = value_parser!(u8).range(0..=1), value_name = "0|1")]
    pub use_openai: u8,

    /// Devices of each instance; checked against the rank table.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub tensor_parallel_size: Option<u32>,

    /// Longest prompt plus output in tokens. Default: what the workers report.
    #[arg(long, value_name = "TOKENS", value_parser = value_parser!(u32).range(1..))]
    pub max_model_len: Option<u32>,

    /// Concurrent sequences of an instance. Accepted so that all roles can share one command line; the workers act on it.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub max_num_seqs: Option<u32>,

    /// Tokens of one step of an instance; at least --max-model-len. The workers act on it.
    #[arg(long, value_name = "TOKENS", value_parser = value_parser!(u32).range(1..))]
    pub max_num_batched_tokens: Option<u32>,

    /// Quantisation of the weights. The workers act on it.
    #[arg(long, value_name = "METHOD")]
    pub quantization: Option<String>,

    /// File with the secret that all processes of the cluster share; the variable PDSERVE_CLUSTER_SECRET may hold it instead.
    #[arg(long, value_name = "FILE")]
    pub cluster_secret_file: Option<PathBuf>,

    /// Mutual TLS between the processes of the cluster: directory with ca.crt, tls.crt and tls.key of the scheduler, as
    /// `pdserve certs` makes them. Changed files are taken over while running.
    #[arg(long, value_name = "DIR", env = "PDSERVE_CLUSTER_TLS_DIR")]
    pub cluster_tls_dir: Option<PathBuf>,

    /// Serve HTTPS with this certificate (PEM, with those between it and its CA). Changed files are taken over while running.
    #[arg(long, value_name = "FILE", visible_alias = "ssl-certfile", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Key of --tls-cert (PEM).
    #[arg(long, value_name = "FILE", visible_alias = "ssl-keyfile", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Requests in flight; one more is answered 429.
    #[arg(long, default_value_t = 4096, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub max_concurrent_requests: u32,

    /// Requests that may wait for room on the instances; one more is answered 429.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub max_waiting_requests: u32,

    /// Answers of /v1/responses kept in memory for an hour, so that clients can go on from them; 0 = none.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub max_stored_responses: u32,

    /// Seconds a request may wait for room before it is answered 503.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub max_wait: u64,

    /// Whether a decode instance may compute a prompt itself.
    #[arg(long, value_enum, default_value_t = LocalPrefill::Auto, env = "PDSERVE_LOCAL_PREFILL")]
    pub local_prefill: LocalPrefill,

    /// How the model writes calls of tools. auto: as its chat template shows.
    #[arg(long, value_enum, default_value_t = ToolFlag::Auto, env = "PDSERVE_TOOL_CALL_PARSER")]
    pub tool_call_parser: ToolFlag,

    /// How the model writes what it thinks before it answers. auto: as its chat template shows.
    #[arg(long, value_enum, default_value_t = ReasoningFlag::Auto, env = "PDSERVE_REASONING_PARSER")]
    pub reasoning_parser: ReasoningFlag,

    /// Accepted because vLLM needs it for tools; here they always work.
    #[arg(long, hide = true)]
    pub enable_auto_tool_choice: bool,

    /// With USE_OPENAI=0: what ends each record of a stream.
    #[arg(long, value_enum, default_value_t = Delimiter::Nul)]
    pub generate_delimiter: Delimiter,

    /// A key that clients must send as `Authorization: Bearer KEY`; several with commas between, or the flag several times. Other users
    /// of the machine can see command lines: prefer the variable or --api-key-file. VLLM_API_KEY is read when neither flag nor variable
    /// is there.
    #[arg(long, env = "PDSERVE_API_KEY", hide_env_values = true, value_name = "KEY", value_delimiter = ',')]
    pub api_key: Vec<ApiKey>,

    #[arg(long, env = "VLLM_API_KEY", hide = true, hide_env_values = true)]
    pub vllm_api_key: Option<ApiKey>,

    /// File of further keys, one per line; lines that begin with # are skipped.
    #[arg(long, env = "PDSERVE_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Requests of one key in flight; one more is answered 429.
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub api_key_concurrency: u32,

    /// Requests that one key may send per minute; one more is answered 429. Default: any number.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub api_key_rpm: Option<u32>,

    /// Serve /metrics without a key.
    #[arg(long)]
    pub public_metrics: bool,

    /// Let prompts of different keys share cached prefixes. Off, because how fast an answer comes tells whether someone sent the same.
    #[arg(long)]
    pub share_prefix_cache: bool,

    /// Which of the model's last hidden states make the vector of /v1/embeddings.
    #[arg(long, value_enum, default_value_t = EmbeddingPooling::Last)]
    pub embedding_pooling: EmbeddingPooling,

    /// Let requests bring a chat template of their own (`chat_template`). Its steps and output are bounded, its memory is not: only for
    /// clients that you trust.
    #[arg(long)]
    pub trust_request_chat_template: bool,

    /// Answer GET /server_info, which tells limits and instances; off by default.
    #[arg(long)]
    pub server_info: bool,
}

/// What ends a record of a stream of the plain server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Delimiter {
    /// A zero byte, as in vLLM up to 2024.
    #[default]
    Nul,
    /// A line feed.
    Newline,
}

/// Formats of calls, under vLLM's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ToolFlag {
    #[default]
    Auto,
    /// Calls that the model is free to make are not read.
    None,
    Hermes,
    #[value(name = "llama3_json")]
    Llama3Json,
    Mistral,
}

/// Formats of thoughts, under vLLM's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ReasoningFlag {
    #[default]
    Auto,
    /// Thoughts are content.
    None,
    Qwen3,
    #[value(name = "deepseek_r1")]
    DeepseekR1,
}

/// How a text becomes one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum EmbeddingPooling {
    /// That of the last token, which has seen all others.
    #[default]
    Last,
    /// The mean over all tokens.
    Mean,
}

impl From<EmbeddingPooling> for types::Pooling {
    fn from(pooling: EmbeddingPooling) -> Self {
        match pooling {
            EmbeddingPooling::Last => types::Pooling::Last,
            EmbeddingPooling::Mean => types::Pooling::Mean,
        }
    }
}

/// When a decode instance computes a prompt itself, without a hand-over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LocalPrefill {
    /// When that is expected to be sooner (a short or cached prompt, an idle decode instance), or no prefill instance is left.
    #[default]
    Auto,
    /// Never: without a prefill instance requests are answered 503.
    Never,
    /// Always: prefill instances stay idle.
    Always,
}
