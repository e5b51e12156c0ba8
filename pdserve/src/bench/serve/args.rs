//! What can be said to `pdserve bench serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use super::interfere::InterfereSpec;
use super::outcome::Limits;
use super::workload::{FixedSpec, PoissonSpec, TraceSpec};

/// Where `--url` without a value looks.
const URL_DEFAULT: &str = "http://127.0.0.1:9000";

/// Load a scheduler over HTTP: requests per second, time to first token, gaps between tokens.
///
/// Examples:
///   pdserve bench serve mixed                                        a cluster of its own with the demo model
///   pdserve bench serve mixed -- --model ./Qwen2.5-0.5B              the same with a model
///   pdserve bench serve interfere -- --prefill 1 -- --prefill 0      two clusters in turns: 1P1D and one that does both
///   pdserve bench serve poisson --url --rate 4 --ttft-ms 500         what runs on this machine already
///   pdserve bench serve mixed --url a=http://h1:9000 --url b=http://h2:8000 --rounds 5
#[derive(Parser, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(super) workload: Workload,
}

#[derive(Subcommand, Debug)]
pub(super) enum Workload {
    /// 32 requests of 512 tokens in and 64 out, 8 at a time
    Mixed {
        #[command(flatten)]
        common: Common,
    },
    /// Running answers, with and without long prompts arriving: what prefill/decode separation is for
    Interfere {
        #[command(flatten)]
        spec: InterfereSpec,
        #[command(flatten)]
        common: Common,
    },
    /// Users who each send one request after another
    Fixed {
        #[command(flatten)]
        spec: FixedSpec,
        #[command(flatten)]
        common: Common,
    },
    /// Requests that arrive at random, whatever the server does
    Poisson {
        #[command(flatten)]
        spec: PoissonSpec,
        #[command(flatten)]
        common: Common,
    },
    /// Requests that arrive as they were recorded
    Trace {
        #[command(flatten)]
        spec: TraceSpec,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args, Debug, Clone)]
pub(super) struct Common {
    /// Server to load; several take turns and are compared [without: start one; without a value: http://127.0.0.1:9000]
    #[arg(long, value_name = "[NAME=]URL", num_args = 0..=1, default_missing_value = URL_DEFAULT)]
    pub(super) url: Vec<String>,
    /// The CA of the certificates of servers at https addresses
    #[arg(long, value_name = "FILE")]
    pub(super) cacert: Option<PathBuf>,
    /// Model to ask for [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub(super) model: Option<String>,
    /// Token ids of prompts are below this; at most the model's vocabulary
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) vocab: u32,
    /// Leading tokens that all prompts have in common
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    pub(super) shared_prefix: u32,
    /// Another seed, other prompts and arrivals
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// How often each server gets the workload; figures are medians over rounds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// A request is good if its first token comes within this
    #[arg(long, value_name = "MS")]
    pub(super) ttft_ms: Option<f64>,
    /// A request is good if 99 % of its gaps between tokens are within this
    #[arg(long, value_name = "MS")]
    pub(super) itl_ms: Option<f64>,
    /// A request that takes longer is an error
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(super) timeout_s: u64,
    /// Write figures and every request's times to this file
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write one page with pictures to this file
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Arguments of `pdserve up` for a cluster of its own; another -- begins those of a further cluster
    #[arg(last = true, value_name = "UP_ARGS")]
    pub(super) up: Vec<String>,
}

impl Workload {
    pub(super) fn common(&self) -> &Common {
        match self {
            Self::Mixed { common }
            | Self::Interfere { common, .. }
            | Self::Fixed { common, .. }
            | Self::Poisson { common, .. }
            | Self::Trace { common, .. } => common,
        }
    }
}

impl Common {
    /// Name, if it has one, and address of each `--url`.
    pub(super) fn named_urls(&self) -> Vec<(Option<String>, String)> {
        let named = |text: &String| match text.split_once('=') {
            Some((name, url)) if !name.contains("://") => (Some(name.to_owned()), url.to_owned()),
            _ => (None, text.clone()),
        };
        self.url.iter().map(named).collect()
    }

    /// Arguments of each cluster to start: at least one, cut at every further `--`.
    pub(super) fn clusters(&self) -> Vec<Vec<String>> {
        self.up.split(|arg| arg == "--").map(<[String]>::to_vec).collect()
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { ttft_ms: self.ttft_ms, itl_ms: self.itl_ms }
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    fn common(line: &str) -> Common {
        Args::parse_from(["serve"].into_iter().chain(line.split(' '))).workload.common().clone()
    }

    #[test]
    fn servers_come_from_urls_or_from_arguments_of_up() {
        let urls = |line: &str| common(line).named_urls();
        let pair = |name: Option<&str>, url: &str| (name.map(str::to_owned), url.to_owned());
        assert_eq!(urls("mixed"), []);
        assert_eq!(urls("mixed --url --rounds 2"), [pair(None, URL_DEFAULT)]);
        assert_eq!(
            urls("mixed --url a=http://h:1 --url http://h:2/?x=y"),
            [pair(Some("a"), "http://h:1"), pair(None, "http://h:2/?x=y")]
        );
        let clusters = |line: &str| common(line).clusters();
        assert_eq!(clusters("mixed"), [Vec::<String>::new()]);
        assert_eq!(clusters("mixed -- --prefill 1 -- --prefill 0"), [["--prefill", "1"], ["--prefill", "0"]]);
    }
}
