//! Who may use the API: the operator's keys and what each of them may do. Keys are never shown, not even by `Debug`.

use std::fmt;
use std::io::Read;
use std::path::Path;

use crate::args::Args;
use crate::config::ConfigError;

/// Keys and their limits. Without keys everyone may do everything.
#[derive(Clone, Debug)]
pub struct Access {
    pub keys: Vec<ApiKey>,
    /// Requests of one key in flight; one more is answered 429.
    pub requests_per_key: usize,
    /// Requests that one key may send per minute; `None` = any number.
    pub per_minute: Option<u32>,
    /// `/metrics` needs no key.
    pub public_metrics: bool,
    /// Prompts of different keys share cached prefixes.
    pub share_prefixes: bool,
}

impl Default for Access {
    fn default() -> Self {
        Self { keys: Vec::new(), requests_per_key: 128, per_minute: None, public_metrics: false, share_prefixes: false }
    }
}

/// A secret that a client sends as `Authorization: Bearer KEY`.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl From<String> for ApiKey {
    fn from(secret: String) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// Bytes of a key file at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

impl Access {
    /// # Errors
    /// A key file that cannot be read or holds no key, a key that no header can carry.
    pub(crate) fn from_args(args: &Args) -> Result<Self, ConfigError> {
        let mut keys = args.api_key.clone();
        if keys.is_empty() {
            keys.extend(args.vllm_api_key.clone());
        }
        if let Some(file) = &args.api_key_file {
            let problem = |problem: String| ConfigError::KeyFile { path: file.clone(), problem };
            let lines = read_keys(file).map_err(|error| problem(error.to_string()))?;
            if lines.is_empty() {
                return Err(problem("it holds no key".to_owned()));
            }
            keys.extend(lines);
        }
        let sendable = |key: &ApiKey| !key.0.is_empty() && key.0.bytes().all(|byte| byte.is_ascii_graphic());
        if let Some(at) = keys.iter().position(|key| !sendable(key)) {
            return Err(ConfigError::Key { number: at + 1 });
        }
        Ok(Self {
            keys,
            requests_per_key: args.api_key_concurrency as usize,
            per_minute: args.api_key_rpm,
            public_metrics: args.public_metrics,
            share_prefixes: args.share_prefix_cache,
        })
    }
}

/// One key per line; empty lines and those that begin with `#` are skipped.
fn read_keys(file: &Path) -> std::io::Result<Vec<ApiKey>> {
    let mut text = String::new();
    std::fs::File::open(file)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(|line| ApiKey(line.to_owned())).collect())
}
