//! How an instance's memory is divided.

use std::fmt;
use std::path::Path;

use crate::{EngineConfig, Error, Quantization};

/// Decided at load and printed at start.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct MemoryPlan {
    /// Bytes of weights, mapped from the files.
    pub weights_bytes: u64,
    /// What was packed into memory of its own.
    pub packed: Option<PackedWeights>,
    /// Bytes set aside for KV, over all ranks. Pages are only touched when used.
    pub kv_bytes: u64,
    pub blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
}

/// Weights in fewer bits.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PackedWeights {
    pub quantization: Quantization,
    /// Bytes over all ranks.
    pub bytes: u64,
    /// Root mean square of what rounding changed, relative to the weights.
    pub error: f64,
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let tokens = u64::from(self.blocks) * u64::from(self.block_size);
        write!(f, "weights {:.1} MiB mapped, ", mib(self.weights_bytes))?;
        if let Some(PackedWeights { quantization, bytes, error }) = self.packed {
            let (size, percent) = (mib(bytes), 100.0 * error);
            write!(f, "packed as {quantization} into {size:.1} MiB (rounding changes weights by {percent:.2} %), ")?;
        }
        write!(f, "KV {:.1} MiB = {} blocks of {} tokens ", mib(self.kv_bytes), self.blocks, self.block_size)?;
        write!(f, "({tokens} tokens)")
    }
}

/// Share of the available memory that KV gets when nobody says how much: a prefill and a decode instance, and page cache for the
/// weights, are to fit on one machine.
const KV_SHARE: u64 = 4;

/// The plan and the longest sequence. `block_bytes` is one block over all layers and ranks, `model_max` the model's own limit.
pub(crate) fn plan(
    config: &EngineConfig,
    model_max: u32,
    block_bytes: u64,
    weights_bytes: u64,
    available_bytes: u64,
) -> Result<(MemoryPlan, u32), Error> {
    let block_size = config.block_size;
    let wanted_len = wanted_len(config, model_max)?;
    let blocks_per_sequence = u64::from(wanted_len.div_ceil(block_size));
    let needed = blocks_per_sequence.saturating_mul(u64::from(config.max_num_seqs)).saturating_mul(block_bytes);
    let kv_bytes = config.kv_bytes.unwrap_or_else(|| needed.min(available_bytes / KV_SHARE));
    let blocks = u32::try_from(kv_bytes / block_bytes).unwrap_or(u32::MAX);
    let tokens = u64::from(blocks) * u64::from(block_size);
    let len = match config.max_model_len {
        Some(len) if u64::from(len) > tokens => {
            let reason =
                format!("KV memory of {kv_bytes} bytes holds {tokens} tokens; give more memory or a shorter length");
            return Err(Error::Option { option: "max_model_len", found: len.to_string(), reason });
        }
        Some(len) => len,
        // A power of two, so that instances with slightly different free memory still agree.
        None if u64::from(wanted_len) > tokens => u32::try_from(tokens).map_or(wanted_len, previous_power_of_two),
        None => wanted_len,
    };
    if len == 0 {
        let reason = format!("one block of {block_size} tokens needs {block_bytes} bytes");
        return Err(Error::Option { option: "kv_bytes", found: kv_bytes.to_string(), reason });
    }
    Ok((MemoryPlan { weights_bytes, packed: None, kv_bytes: u64::from(blocks) * block_bytes, blocks, block_size }, len))
}

fn wanted_len(config: &EngineConfig, model_max: u32) -> Result<u32, Error> {
    match config.max_model_len {
        None => Ok(model_max),
        Some(len) if len >= 1 && len <= model_max => Ok(len),
        Some(len) => {
            let reason = format!("the model's max_position_embeddings is {model_max}");
            Err(Error::Option { option: "max_model_len", found: len.to_string(), reason })
        }
    }
}

fn previous_power_of_two(number: u32) -> u32 {
    number.checked_ilog2().map_or(0, |exponent| 1 << exponent)
}

/// What the system and, in a container, its memory limit leave for new work; half a gibibyte if the system does not say.
pub(crate) fn available_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = available_in(&text).unwrap_or(512 << 20);
    container_left(Path::new("/sys/fs/cgroup")).map_or(machine, |left| machine.min(left))
}

/// What a cgroup's memory limit (version 2, as a container sees its own) leaves; `None` without a limit. File pages that nobody
/// uses any more count as free: the kernel drops them first.
fn container_left(cgroup: &Path) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(cgroup.join(name)).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let idle = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(idle)))
}

fn available_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kv_bytes: Option<u64>, max_model_len: Option<u32>, expected: Result<(u32, u32), &str>) {
        let config = EngineConfig {
            model_dir: "m".into(),
            tensor_parallel_size: 1,
            threads: 1,
            block_size: 16,
            quantization: None,
            pack_cache: None,
            kv_dtype: None,
            kv_bytes,
            max_model_len,
            max_num_seqs: 2,
            max_num_batched_tokens: 64,
        };
        // 1000 bytes per block, 400 kB available: 100 kB for KV.
        let found = plan(&config, 1024, 1000, 5, 400_000).map(|(plan, len)| (plan.blocks, len));
        assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn kv_is_what_is_needed_or_what_there_is() {
        check(None, Some(160), Ok((20, 160)));
        check(None, None, Ok((100, 1024)));
        check(Some(10_000), Some(160), Ok((10, 160)));
        check(Some(10_999), None, Ok((10, 128)));
        check(Some(2_000_000), None, Ok((2000, 1024)));
        let short =
            "max_model_len is 161: KV memory of 10000 bytes holds 160 tokens; give more memory or a shorter length";
        check(Some(10_000), Some(161), Err(short));
        check(None, Some(1025), Err("max_model_len is 1025: the model's max_position_embeddings is 1024"));
        check(Some(999), None, Err("kv_bytes is 999: one block of 16 tokens needs 1000 bytes"));
    }

    #[test]
    fn meminfo_is_read() {
        assert_eq!(available_in("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 << 10));
        assert_eq!(available_in("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn prints_what_was_decided() {
        let plan = MemoryPlan { weights_bytes: 3 << 20, packed: None, kv_bytes: 1 << 20, blocks: 64, block_size: 16 };
        assert_eq!(plan.to_string(), "weights 3.0 MiB mapped, KV 1.0 MiB = 64 blocks of 16 tokens (1024 tokens)");
    }

    #[test]
    fn a_container_s_limit_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(container_left(dir.path()), None, "no cgroup");
        write("memory.max", "max\n");
        write("memory.current", "300\n");
        assert_eq!(container_left(dir.path()), None, "no limit");
        write("memory.max", "1000\n");
        assert_eq!(container_left(dir.path()), Some(700));
        write("memory.stat", "anon 100\ninactive_file 200\n");
        assert_eq!(container_left(dir.path()), Some(900));
        write("memory.current", "5000\n");
        assert_eq!(container_left(dir.path()), Some(0), "over the limit");
    }
}
