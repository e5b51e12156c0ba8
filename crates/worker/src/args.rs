//! What was typed: the flags and variables that both workers take. What they come to is decided in `config`.

use std::path::PathBuf;

use clap::Args;

use crate::cores::CpuList;

/// Flags of a prefill or decode instance. Both `--flag value` and `--flag=value` work.
#[derive(Args, Clone, Debug)]
pub struct WorkerArgs {
    /// Directory of the model, as Hugging Face lays it out (config.json, *.safetensors, tokenizer.json).
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,

    /// Ranks of this instance; must equal the number of devices in its rank-table entry. Default: that number.
    #[arg(long, value_name = "N")]
    pub tensor_parallel_size: Option<u32>,

    /// Longest context, input plus output, in tokens. Default: what the model allows.
    #[arg(long, value_name = "TOKENS")]
    pub max_model_len: Option<u32>,

    /// Sequences that run at once.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_num_seqs: u32,

    /// Tokens computed in one step; longer prompts are computed in chunks. Default: 2048.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_num_batched_tokens: Option<u32>,

    /// Address to listen on.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub host: String,

    /// Port to listen on. Default: this instance's entry of NODE_PORTS or of the rank table.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,

    /// Name that clients use for the model; only the scheduler needs it, workers accept it.
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,

    /// Pack the weights at load: int8 (half the memory of bf16, decode nearly twice as fast) or int4 (a third; texts change a little);
    /// none = as they are stored. All instances need the same.
    #[arg(long, value_name = "METHOD")]
    pub quantization: Option<String>,

    /// Keep packed weights in this directory: the next start maps them, and instances of one host share the memory. Needs
    /// --quantization.
    #[arg(long, value_name = "DIR", requires = "quantization")]
    pub pack_cache: Option<PathBuf>,

    /// Tokens per KV block: a multiple of 8 from 8 to 128. P and D may differ.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    pub block_size: u32,

    /// Memory for the KV cache, for example 512MiB or 4GiB. Default: derived from what is free.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub kv_cache_memory: Option<u64>,

    /// Element type of the KV cache: auto (as the model), bf16, f32, or int8 (half of bf16, with a scale per token and head). P and D must
    /// agree.
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    pub kv_cache_dtype: String,

    /// Compute threads. Default: the cores this process may use.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,

    /// Cores for all threads of this instance, as `taskset` writes them: 0-3,8. Default: those that the process was given.
    #[arg(long, value_name = "CORES")]
    pub cpu_list: Option<CpuList>,

    /// Seconds in which a step must get through a layer of the model. One that stands still for longer makes the instance not ready
    /// until it goes on; its requests go on elsewhere.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub step_timeout: u64,

    /// Where to compute: cpu or auto.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,

    /// Ways to move KV from prefill to decode, best first; both sides must offer one in common.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "inproc,shm,tcp,grpc")]
    pub kv_transports: Vec<String>,

    /// File with the secret that all processes of the cluster share; the variable PDSERVE_CLUSTER_SECRET may hold it instead.
    /// This or --cluster-tls-dir is needed unless --host is a loopback address.
    #[arg(long, value_name = "FILE")]
    pub cluster_secret_file: Option<PathBuf>,

    /// Mutual TLS between the processes of the cluster: directory with ca.crt, tls.crt and tls.key of this role, as
    /// `pdserve certs` makes them. Changed files are taken over while running.
    #[arg(long, value_name = "DIR", env = "PDSERVE_CLUSTER_TLS_DIR")]
    pub cluster_tls_dir: Option<PathBuf>,

    /// Port for KV over TCP and shared memory on a decode instance; 0 = any free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub kv_port: u16,

    /// The cluster's rank table, the same file for every role.
    #[arg(long, value_name = "FILE", env = "GLOBAL_RANK_TABLE_FILE_PATH")]
    pub global_rank_table: Option<PathBuf>,

    /// This instance's rank table.
    #[arg(long, value_name = "FILE", env = "RANK_TABLE_FILE_PATH")]
    pub rank_table: Option<PathBuf>,

    /// Ports of all prefill, then all decode instances, in the order of the global rank table.
    #[arg(long, value_name = "P1,P2,..", env = "NODE_PORTS")]
    pub node_ports: Option<String>,
}

/// A number of bytes with an optional suffix: `1073741824`, `512MiB`, `512m`, `4GB` (powers of 1024 throughout).
fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.trim().to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("unknown suffix {suffix:?}: use KiB, MiB, GiB or TiB")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} does not start with a whole number"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is more than 2^64 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<u64, &str>) {
        match (parse_bytes(text), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
            (Err(found), Err(part)) => assert!(found.contains(part), "{text}: {found}"),
            (found, expected) => panic!("{text}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn bytes_take_a_suffix() {
        check("4096", Ok(4096));
        check("64KiB", Ok(64 << 10));
        check("512m", Ok(512 << 20));
        check("4 GB", Ok(4 << 30));
        check("1TiB", Ok(1 << 40));
        check("GiB", Err("whole number"));
        check("-1", Err("suffix"));
        check("1.5G", Err("suffix"));
        check("99999999999T", Err("2^64"));
    }
}
