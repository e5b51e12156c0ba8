//! The demo model inside the binary, written to a cache directory once so that workers can map it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The name under which the demo model is served.
pub(crate) const DEMO_NAME: &str = "pdserve-demo";

macro_rules! embed {
    ($($name:literal),+ $(,)?) => { &[$(($name, include_bytes!(concat!("../model/", $name)))),+] };
}

const FILES: &[(&str, &[u8])] =
    embed!["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"];

/// Writes the demo model below `cache` unless it is there already, and returns its directory.
///
/// The directory's name holds a hash of the content, so another version of pdserve never reads a stale copy; it appears by a rename,
/// so it is never half-written.
pub(crate) fn materialise(cache: &Path) -> anyhow::Result<PathBuf> {
    let target = cache.join(format!("{DEMO_NAME}-{}", content_hash()));
    if target.is_dir() {
        return Ok(target);
    }
    let staging = cache.join(format!(".{DEMO_NAME}-{}", std::process::id()));
    fs::create_dir_all(&staging).with_context(|| format!("cannot create {}", staging.display()))?;
    for (name, bytes) in FILES {
        let path = staging.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Err(error) = fs::rename(&staging, &target) {
        fs::remove_dir_all(&staging).ok();
        // Another pdserve may have been quicker; that is as good.
        if !target.is_dir() {
            return Err(error).with_context(|| format!("cannot create {}", target.display()));
        }
    }
    Ok(target)
}

/// Where the demo model is kept: the user's cache directory, or the temporary one on a machine without a home.
pub(crate) fn cache_dir() -> PathBuf {
    let from_env = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = from_env("XDG_CACHE_HOME").or_else(|| from_env("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("pdserve")
}

fn content_hash() -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in FILES {
        hasher.update(name.as_bytes()).update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }
    hasher.finalize().to_hex()[..16].to_owned()
}
