//! `pdserve bench gateway`: the scheduler alone, as its own process between users and workers that answer at once.
//!
//! ```text
//! users (here) --HTTP--> scheduler (its own process) --gRPC--> workers (here): 1 prefill, some decode
//! ```
//! What counts is the processor time of that process, since users and workers share the machine with it: requests, prompts and
//! tokens per second of it are what one core of a scheduler does. Wall-clock figures stand beside them.

mod load;
mod long;
mod mock;
mod process;
mod prompts;
mod requests;
mod router;
mod server;
mod sockets;
mod streams;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde_json::{Map, Value, json};
use tokio::signal::ctrl_c;

use super::conditions::Conditions;
use super::report::{self, Table};
use crate::up;
use process::Gateway;
use prompts::Writer;
use router::Router;

/// Measure the scheduler alone: requests, long prompts and open streams per second of its processor time.
///
/// A scheduler is started as a process of its own, with 1 prefill and some decode instances that speak the control protocol and answer
/// every message at once. Everything stays on this machine and ends with the command.
#[derive(Parser, Debug)]
pub(crate) struct Args {
    /// What to measure [default: all]
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    parts: Vec<Part>,
    /// Directory of a model whose tokenizer and chat template are used [default: the built-in demo model]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Decode instances
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    decode: u16,
    /// requests: bytes of a prompt
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..=4096))]
    prompt_bytes: u32,
    /// requests: users, each sending its next request when the last has ended
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=2048))]
    users: u16,
    /// requests: another router to compare with, started in turn on workers that speak HTTP. {port} in its command is where it
    /// shall listen, {prefill} and {decode} are the workers' URLs
    #[arg(long, value_name = "NAME=COMMAND")]
    router: Vec<Router>,
    /// long: bytes of a prompt
    #[arg(long, default_value_t = 220_000, value_parser = clap::value_parser!(u32).range(8192..=1_000_000))]
    long_bytes: u32,
    /// long: numbers of users
    #[arg(long, value_delimiter = ',', value_name = "LIST", default_value = "1,2,4,8,16", value_parser = clap::value_parser!(u16).range(1..=256))]
    long_users: Vec<u16>,
    /// streams: numbers of open streams, each a connection
    #[arg(long, value_delimiter = ',', value_name = "LIST", default_value = "64,256,1024,4096", value_parser = clap::value_parser!(u16).range(1..=4096))]
    streams: Vec<u16>,
    /// Seconds that each figure of a round is measured for
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// How often each is measured, in turns; figures are medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seed of the prompts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the figures of every round to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Short prompts as text, as token ids and in a chat, beside GET /health
    Requests,
    /// Long prompts at growing concurrency, with short requests beside them
    Long,
    /// Tokens relayed to growing numbers of open streams
    Streams,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.1..=60.0).contains(&seconds) { Ok(seconds) } else { Err("must be between 0.1 and 60".to_owned()) }
}

/// What one part found: its tables, what is to be said of it, and its figures of every round.
struct Found {
    name: &'static str,
    tables: Vec<Table>,
    notes: Vec<String>,
    rounds: Value,
}

/// What all parts share.
struct Bench {
    args: Args,
    gateway: Gateway,
    /// Prompts so far.
    numbers: Arc<AtomicU64>,
}

/// Measures and reports.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    tokio::select! {
        done = measure(args) => done,
        // Dropping what is measured ends the scheduler and removes its tables.
        _ = ctrl_c() => anyhow::bail!("interrupted"),
    }
}

async fn measure(args: Args) -> anyhow::Result<()> {
    let model = args.model.clone().map_or_else(up::demo_model_dir, Ok)?;
    let conditions = Conditions::gather()
        .and("tokenizer", model.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()))
        .and("workers", format!("1 prefill + {} decode without a model, in the process of the users", args.decode))
        .and("each", format!("{} s of each of {} round(s)", args.seconds, args.rounds));
    let streams = args.streams.iter().copied().max().map_or(0, usize::from);
    let gateway = Gateway::start(&model, args.decode.into(), streams).await?;
    let json = args.json.clone();
    let bench = Bench { args, gateway, numbers: Arc::default() };
    let found = bench.parts().await?;
    let tables: Vec<_> = found.iter().flat_map(|part| part.tables.clone()).collect();
    let notes: Vec<_> = found.iter().flat_map(|part| part.notes.clone()).collect();
    report::print(&conditions, &tables, &notes);
    if let Some(path) = &json {
        let details: Map<_, _> = found.into_iter().map(|part| (part.name.to_owned(), part.rounds)).collect();
        report::write_json(path, &conditions, &tables, json!(details))?;
    }
    Ok(())
}

impl Bench {
    async fn parts(&self) -> anyhow::Result<Vec<Found>> {
        let mut writer = Writer::new(self.args.seed);
        let asked = |part| self.args.parts.is_empty() || self.args.parts.contains(&part);
        let mut found = Vec::new();
        if asked(Part::Requests) {
            found.push(requests::measure(self, &mut writer).await?);
        }
        if asked(Part::Long) {
            found.push(long::measure(self, &mut writer).await?);
        }
        if asked(Part::Streams) {
            found.push(streams::measure(self).await?);
        }
        Ok(found)
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.args.seconds)
    }

    fn rounds(&self, part: &'static str) -> impl Iterator<Item = u32> {
        let rounds = self.args.rounds;
        (0..rounds).inspect(move |round| eprintln!("{part}: round {} of {rounds}", round + 1))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
        let args = Args::parse_from(["gateway", "--parts", "long,streams", "--streams=1,4096", "--seconds", "0.5"]);
        assert_eq!((args.parts, args.streams), (vec![Part::Long, Part::Streams], vec![1, 4096]));
        for wrong in ["--seconds=0", "--seconds=nan", "--seconds=x", "--streams=4097", "--decode=0", "--parts=all"] {
            assert!(Args::try_parse_from(["gateway", wrong]).is_err(), "{wrong}");
        }
    }
}
