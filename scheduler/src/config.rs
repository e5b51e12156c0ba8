//! What the scheduler runs on, decided from the arguments before a port is bound. A `Config` in hand is consistent.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge::{Credentials, ServerTls, SetupError};
use ranktable::{GlobalRankTable, Identity, LocalRankTable};
use text::Grammars;
use types::{InstanceId, Pooling, Role};

use crate::access::Access;
use crate::args::{Args, Delimiter, LocalPrefill, ReasoningFlag, ToolFlag};
use crate::bounds::Bounds;
use crate::table::{Table, TableFile, Target};

/// Everything the scheduler needs to know. Tests build it directly with [`Config::new`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Where tokenizer, chat template and config.json lie.
    pub model: PathBuf,
    /// Names that requests may use; responses say the first. Never empty.
    pub served_names: Vec<String>,
    pub listen: SocketAddr,
    /// Who should exist.
    pub table: Table,
    /// Read again while running; `None` = the table never changes.
    pub table_file: Option<TableFile>,
    /// Prompt plus output in tokens; `None` = what the workers report.
    pub max_model_len: Option<u32>,
    pub local_prefill: LocalPrefill,
    pub protocol: Protocol,
    pub tool_call_parser: ToolFlag,
    pub reasoning_parser: ReasoningFlag,
    /// How `/v1/embeddings` makes a vector of a text.
    pub pooling: Pooling,
    pub access: Access,
    /// Requests may bring a chat template of their own.
    pub trust_request_chat_template: bool,
    /// Whether `GET /server_info` tells how this server is set up.
    pub server_info: bool,
    /// Proven to every worker, and by it.
    pub credentials: Credentials,
    /// Clients talk HTTPS.
    pub tls: Option<ServerTls>,
    /// Some that are compiled already; `None` = those of the model's tokenizer, none compiled yet.
    pub grammars: Option<Grammars>,
    /// Of the random candidates of pairing; `None` = another one each time.
    pub seed: Option<u64>,
    pub bounds: Bounds,
    pub timings: Timings,
}

/// What the door speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    #[default]
    OpenAi,
    /// vLLM's plain server: `POST /generate`.
    Plain { delimiter: Delimiter },
}

/// How long to wait for what. Tests shorten them.
#[derive(Clone, Debug)]
pub struct Timings {
    /// Silence of a worker (neither token nor heartbeat) after which it is taken for dead.
    pub stall: Duration,
    /// Connecting and exchanging Hello and Welcome.
    pub connect: Duration,
    /// Longest pause between two attempts to connect.
    pub reconnect_max: Duration,
    /// An attempt without any message of its own, on a worker that is otherwise alive.
    pub progress: Duration,
    /// Waiting for room on the instances.
    pub wait: Duration,
    /// Waiting for an instance to come back before a request that has no text yet is refused.
    pub absent: Duration,
    /// The same for a request that has text.
    pub absent_resume: Duration,
    pub drain: Duration,
    /// How long an answer of /v1/responses is kept.
    pub stored: Duration,
    /// Pause between two canaries over a pair that failed.
    pub canary: Duration,
    /// How often changed certificates are looked for.
    pub certificates: Duration,
    /// How often a changed rank table is looked for.
    pub table: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(5),
            connect: Duration::from_secs(5),
            reconnect_max: Duration::from_secs(1),
            progress: Duration::from_secs(120),
            wait: Duration::from_secs(60),
            absent: Duration::from_millis(800),
            absent_resume: Duration::from_secs(5),
            drain: Duration::from_secs(30),
            stored: Duration::from_secs(3600),
            canary: Duration::from_millis(500),
            certificates: Duration::from_secs(5),
            table: Duration::from_secs(1),
        }
    }
}

/// A combination of arguments that cannot work. Each text names the argument and the fix.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("--model {}: {problem}; fix: give the directory that holds config.json and tokenizer.json", path.display())]
    Model { path: PathBuf, problem: String },
    #[error("--api-key-file {}: {problem}; fix: give a readable file with one key per line", path.display())]
    KeyFile { path: PathBuf, problem: String },
    #[error(
        "API key number {number} (of --api-key, PDSERVE_API_KEY or VLLM_API_KEY, then --api-key-file) is empty or holds a space or another character that a header cannot carry; fix: use printable ASCII, and unset a variable that is empty"
    )]
    Key { number: usize },
    #[error(
        "--max-num-batched-tokens is {batched} and --max-model-len is {model_len}; expected at least as many batched tokens as the longest prompt; fix: --max-num-batched-tokens {model_len}"
    )]
    BatchBelowModelLen { batched: u32, model_len: u32 },
    #[error(
        "--tensor-parallel-size is {size} but {instance} has {devices} devices in {file}; fix: --tensor-parallel-size {devices}, or list the right devices in the table"
    )]
    TensorParallelSize { size: u32, instance: String, devices: usize, file: String },
    #[error("--host {listen} is also the address of {instance} in NODE_PORTS; fix: give the scheduler another --port")]
    OwnAddress { listen: SocketAddr, instance: InstanceId },
    #[error(
        "--tls-cert and --tls-key: {0}; fix: give the certificate, with those between it and its CA, and its key, both as PEM"
    )]
    Tls(SetupError),
    #[error(transparent)]
    Credentials(#[from] SetupError),
    #[error(transparent)]
    Tables(#[from] ranktable::Error),
}

impl Config {
    /// Serves the model of `model` on a free loopback port, in front of `instances`; defaults for the rest.
    pub fn new(model: impl Into<PathBuf>, instances: Vec<Target>, table_hash: impl Into<String>) -> Self {
        let model = model.into();
        Self {
            served_names: default_names(&model),
            model,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            table: Table { instances, hash: table_hash.into() },
            table_file: None,
            max_model_len: None,
            local_prefill: LocalPrefill::Auto,
            protocol: Protocol::OpenAi,
            tool_call_parser: ToolFlag::Auto,
            reasoning_parser: ReasoningFlag::Auto,
            pooling: Pooling::Last,
            access: Access::default(),
            trust_request_chat_template: false,
            server_info: false,
            credentials: Credentials::default(),
            tls: None,
            grammars: None,
            seed: None,
            bounds: Bounds::default(),
            timings: Timings::default(),
        }
    }

    /// Checks everything that can be checked without the network.
    ///
    /// # Errors
    /// The first thing that is wrong, with its fix.
    pub fn from_args(args: &Args) -> Result<Self, ConfigError> {
        check_flags(args)?;
        let table = GlobalRankTable::load(&args.global_rank_table)?;
        let local = LocalRankTable::load(&args.rank_table)?;
        Identity::resolve(&table, &local)?.require_role(ranktable::Role::Scheduler)?;
        let file = TableFile::from_args(args)?;
        let table = file.read()?;
        let mut config = Self::new(&args.model, table.instances, table.hash);
        config.listen = SocketAddr::new(args.host, args.port);
        config.table_file = Some(file);
        if !args.served_model_name.is_empty() {
            config.served_names = args.served_model_name.clone();
        }
        config.max_model_len = args.max_model_len;
        let (secret, tls) = (args.cluster_secret_file.as_deref(), args.cluster_tls_dir.as_deref());
        config.credentials = Credentials::load(secret, tls, Role::Scheduler)?;
        if let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) {
            config.tls = Some(ServerTls::load(certificate, key).map_err(ConfigError::Tls)?);
        }
        config.local_prefill = args.local_prefill;
        config.pooling = args.embedding_pooling.into();
        config.access = Access::from_args(args)?;
        if args.use_openai == 0 {
            config.protocol = Protocol::Plain { delimiter: args.generate_delimiter };
        }
        config.tool_call_parser = args.tool_call_parser;
        config.reasoning_parser = args.reasoning_parser;
        config.server_info = args.server_info;
        config.trust_request_chat_template = args.trust_request_chat_template;
        config.bounds.requests = args.max_concurrent_requests as usize;
        config.bounds.stored_answers = args.max_stored_responses as usize;
        config.bounds.waiting = args.max_waiting_requests as usize;
        config.timings.wait = Duration::from_secs(args.max_wait);
        Ok(config)
    }
}

fn check_flags(args: &Args) -> Result<(), ConfigError> {
    for file in ["config.json", "tokenizer.json"] {
        if !args.model.join(file).is_file() {
            return Err(ConfigError::Model { path: args.model.clone(), problem: format!("no {file} there") });
        }
    }
    match (args.max_num_batched_tokens, args.max_model_len) {
        (Some(batched), Some(model_len)) if batched < model_len => {
            Err(ConfigError::BatchBelowModelLen { batched, model_len })
        }
        _ => Ok(()),
    }
}

/// The directory's own name, then the path as typed.
fn default_names(model: &Path) -> Vec<String> {
    let typed = model.display().to_string();
    let resolved = model.canonicalize().unwrap_or_else(|_| model.to_owned());
    let name = resolved.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<String> = name.into_iter().chain([typed]).collect();
    names.dedup();
    names
}

/// What config.json says that the model can take; the workers' word replaces it once they are there.
pub(crate) fn max_position_embeddings(model: &Path) -> Option<u32> {
    let text = std::fs::read(model.join("config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    u32::try_from(config.get("max_position_embeddings")?.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// A model directory and the two tables of a 1p1d cluster with two devices each, as the guide writes them.
    fn files() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, content: String| std::fs::write(directory.path().join(name), content).unwrap();
        let device =
            |id: u32, rank: u32| format!(r#"{{"device_id":"{id}","device_ip":"10.1.0.{id}","rank_id":"{rank}"}}"#);
        let server = |devices: &[u32]| {
            let devices: Vec<String> = devices.iter().zip(0..).map(|(&id, rank)| device(id, rank)).collect();
            let devices =
                if devices.is_empty() { String::new() } else { format!(r#","device":[{}]"#, devices.join(",")) };
            format!(r#"{{"server_id":"10.0.0.1","server_ip":"10.0.0.1"{devices}}}"#)
        };
        let group =
            |id: u32, server: String| format!(r#"{{"group_id":"{id}","server_count":"1","server_list":[{server}]}}"#);
        let groups = [group(0, server(&[])), group(1, server(&[4, 5])), group(2, server(&[6, 7]))].join(",");
        write("global.json", format!(r#"{{"version":"1.0","status":"completed","server_group_list":[{groups}]}}"#));
        let local = |devices: &[u32]| {
            let server = server(devices);
            format!(
                r#"{{"version":"1.0","status":"completed","group_id":"0","server_count":"1","server_list":[{server}]}}"#
            )
        };
        write("host.json", local(&[]));
        write("decode.json", local(&[6, 7]));
        write("config.json", r#"{"max_position_embeddings": 128}"#.into());
        write("tokenizer.json", "{}".into());
        directory
    }

    fn config(flags: &[&str]) -> Result<Config, String> {
        let files = files();
        let path = |name: &str| files.path().join(name).display().to_string();
        let rank_table = if flags.contains(&"--decode-table") { "decode.json" } else { "host.json" };
        let mut line = vec!["scheduler".to_owned(), format!("--model={}", files.path().display())];
        line.extend(["--global-rank-table".into(), path("global.json"), "--rank-table".into(), path(rank_table)]);
        if !flags.iter().any(|flag| flag.starts_with("--node-ports")) {
            line.push("--node-ports=8088,8089".into());
        }
        line.extend(flags.iter().filter(|flag| **flag != "--decode-table").map(|flag| (*flag).to_owned()));
        let args = Args::try_parse_from(line).map_err(|error| error.to_string())?;
        Config::from_args(&args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_guides_command_line_works() {
        let flags = ["--tensor-parallel-size=2", "--max-model-len", "4096", "--max-num-seqs=256", "--host=0.0.0.0"];
        let more =
            ["--max-num-batched-tokens=4096", "--port", "9000", "--served-model-name", "a", "b", "--quantization=awq"];
        let config = config(&[&flags[..], &more[..]].concat()).unwrap();
        assert_eq!(config.listen, "0.0.0.0:9000".parse().unwrap());
        assert_eq!(config.served_names, ["a", "b"]);
        assert_eq!(config.max_model_len, Some(4096));
        let instances = config.table.instances.iter().map(|target| format!("{} {}", target.id, target.address));
        assert_eq!(instances.collect::<Vec<_>>(), ["prefill-0 10.0.0.1:8088", "decode-0 10.0.0.1:8089"]);
    }

    #[test]
    fn the_model_is_known_by_its_directory_and_by_its_path() {
        let names = config(&[]).unwrap().served_names;
        assert_eq!(names.len(), 2);
        assert!(names[1].ends_with(&names[0]) && names[1].starts_with('/'), "{names:?}");
    }

    #[test]
    fn keys_come_from_flags_and_files_and_are_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys");
        std::fs::write(&file, "# team a\nsecret-3\n\n  secret-4  \n").unwrap();
        let flags =
            ["--api-key", "secret-1,secret-1b", "--api-key=secret-2", &format!("--api-key-file={}", file.display())];
        let config = config(&flags).unwrap();
        let keys: Vec<_> = config.access.keys.iter().map(|key| key.secret()).collect();
        assert_eq!(keys, ["secret-1", "secret-1b", "secret-2", "secret-3", "secret-4"]);
        assert!(!format!("{config:?}").contains("secret-"), "{config:?}");
        std::fs::write(&file, "# none\n").unwrap();
        let empty = super::tests::config(&[&format!("--api-key-file={}", file.display())]).unwrap_err();
        assert!(empty.contains("it holds no key"), "{empty}");
        let refused = super::tests::config(&["--api-key=secret 5"]).unwrap_err();
        assert!(!refused.contains("secret 5"), "{refused}");
    }

    #[test]
    fn use_openai_0_is_the_plain_server() {
        let protocol = |flags: &[&str]| config(flags).unwrap().protocol;
        assert_eq!(protocol(&[]), Protocol::OpenAi);
        assert_eq!(protocol(&["--use-openai=0"]), Protocol::Plain { delimiter: Delimiter::Nul });
        let newline = ["--use-openai=0", "--generate-delimiter=newline"];
        assert_eq!(protocol(&newline), Protocol::Plain { delimiter: Delimiter::Newline });
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_fix() {
        let check = |flags: &[&str], part: &str| {
            let error = config(flags).unwrap_err();
            assert!(error.contains(part), "{flags:?}: {error}");
        };
        check(&["--tensor-parallel-size=4"], "--tensor-parallel-size is 4 but prefill-0 has 2 devices");
        check(&["--max-model-len=4096", "--max-num-batched-tokens=2048"], "fix: --max-num-batched-tokens 4096");
        check(&["--api-key", "two words"], "API key number 1");
        check(&["--api-key", "good", "--api-key="], "API key number 2");
        check(&["--api-key-file=/nowhere/keys"], "--api-key-file /nowhere/keys");
        check(&["--api-key-rpm=0"], "0 is not in 1..");
        check(&["--use-openai=2"], "2 is not in 0..=1");
        check(&["--node-ports=8088"], "NODE_PORTS");
        check(&["--node-ports=8088,8088"], "8088");
        check(&["--host=10.0.0.1", "--port=8088"], "is also the address of prefill-0");
        check(&["--max-model-len=0"], "0 is not in 1..");
        check(&["--decode-table"], "scheduler");
        check(&["--tls-cert=/nowhere/cert"], "--tls-key");
        check(&["--tls-cert=/nowhere/cert", "--ssl-keyfile=/nowhere/key"], "--tls-cert and --tls-key: /nowhere/cert");
        check(&["--cluster-tls-dir=/nowhere"], "/nowhere/ca.crt");
    }
}
