//! `pdserve bench transfer`: what a hand-over of KV costs over each transport, beside a plain copy and a bare socket of the same run.
//!
//! The KV is that of one prompt of the 1b shape: 16 layers, 2 KiB per layer and token, so that 2,048 tokens are 64 MiB in layers of
//! 4 MiB. Both ends live in this process; what they move, and how, is what two workers of one host do.

mod baseline;
mod ends;
mod pair;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::Parser;
use kv::{KvDtype, KvLayout};
use serde_json::json;
use transfer::TransportKind;

use super::conditions::Conditions;
use super::report::{self, Table};
use super::stats::median;
use baseline::{PlainCopy, RawSocket};
use ends::Ends;
use pair::Pair;

/// 8 KV heads of 64 in bf16, as in Llama-3.2-1B.
const KV_HEADS: u32 = 8;
const HEAD_DIM: u32 = 64;
/// Layers are reported this far apart when computing is pretended.
const LAYER_COMPUTES: Duration = Duration::from_millis(10);
const COLUMNS: [&str; 6] = ["ms", "GB/s", "pieces", "of copy", "of socket", "exposed ms"];

/// Hand KV over on every transport, beside a plain copy and a bare TCP socket.
#[derive(Parser, Debug)]
pub(crate) struct Args {
    /// Tokens of the prompt whose KV is handed over; each is 2 KiB per layer
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    tokens: u32,
    /// Layers of the model
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    layers: u32,
    /// Tokens per KV block
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(8..=128))]
    block_size: u32,
    /// Transports to measure [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    transports: Vec<TransportKind>,
    /// How often each is measured, in turns; figures are medians
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Write the figures of every round to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One hand-over.
#[derive(Debug, Clone, Copy)]
struct Sample {
    ms: f64,
    /// None for the rivals, which have none.
    pieces: Option<u32>,
    /// From the last layer's report to D's commit, while computing is pretended.
    exposed_ms: Option<f64>,
}

/// A rival or a transport with one sample per round.
struct Contender {
    name: String,
    samples: Vec<Sample>,
}

/// Measures and reports.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let layout = KvLayout {
        layers: args.layers,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        dtype: KvDtype::Bf16,
        block_size: args.block_size,
        blocks: args.tokens.div_ceil(args.block_size),
    };
    let layer_bytes = args.tokens as usize * layout.token_bytes(KV_HEADS);
    let bytes = layer_bytes * args.layers as usize;
    // First, since it counts the cores of this process.
    let conditions = Conditions::gather();
    let ends = Ends::begin()?;
    let conditions = conditions
        .and("hand-over", format!("{:.1} MiB as {} layers of {:.2} MiB", mib(bytes), args.layers, mib(layer_bytes)))
        .and("ends", &ends);
    let contenders = measure(&args, layout, layer_bytes, &ends).await?;
    let table = table(args.rounds, bytes, &contenders);
    report::print(&conditions, std::slice::from_ref(&table), &[]);
    if let Some(path) = &args.json {
        let all = |contender: &Contender| {
            let sample =
                |sample: &Sample| json!({ "ms": sample.ms, "pieces": sample.pieces, "exposed_ms": sample.exposed_ms });
            (contender.name.clone(), contender.samples.iter().map(sample).collect())
        };
        let details: serde_json::Map<_, _> = contenders.iter().map(all).collect();
        report::write_json(path, &conditions, &[table], json!({ "bytes": bytes, "rounds": details }))?;
    }
    Ok(())
}

/// Everybody once per round, after one round that is not counted: it connects and touches every page.
async fn measure(args: &Args, layout: KvLayout, layer_bytes: usize, ends: &Ends) -> anyhow::Result<Vec<Contender>> {
    let kinds = if args.transports.is_empty() { TransportKind::ALL.to_vec() } else { args.transports.clone() };
    let mut copy = PlainCopy::new(layer_bytes, args.layers);
    let mut socket = RawSocket::connect(layer_bytes * args.layers as usize, ends)?;
    let mut pairs = Vec::new();
    for kind in kinds {
        pairs.push(Pair::connect(kind, layout, args.tokens, ends).await?);
    }
    let names = ["plain copy".to_owned(), "raw socket".to_owned()].into_iter();
    let names = names.chain(pairs.iter().map(|pair| pair.kind.to_string()));
    let mut contenders: Vec<_> = names.map(|name| Contender { name, samples: Vec::new() }).collect();
    for round in 0..=args.rounds {
        let rival = |took: Duration| Sample { ms: ms(took), pieces: None, exposed_ms: None };
        let mut samples = vec![rival(copy.run()), rival(socket.run()?)];
        for pair in &mut pairs {
            samples.push(pair.sample().await?);
        }
        if round == 0 {
            pairs.iter().try_for_each(Pair::check_bytes)?;
            continue;
        }
        contenders.iter_mut().zip(samples).for_each(|(contender, sample)| contender.samples.push(sample));
    }
    ensure!(!contenders.is_empty(), "nothing to measure");
    Ok(contenders)
}

/// Medians; the shares are medians of each round's share, of the first two contenders' speed.
fn table(rounds: u32, bytes: usize, contenders: &[Contender]) -> Table {
    let mut table = Table::new(format!("medians of {rounds} round(s)"), COLUMNS);
    for contender in contenders {
        let over =
            |of: &dyn Fn(&Sample) -> Option<f64>| median(&contender.samples.iter().filter_map(of).collect::<Vec<_>>());
        let share = |rival: &Contender| {
            let shares = rival.samples.iter().zip(&contender.samples).map(|(rival, own)| rival.ms / own.ms);
            median(&shares.collect::<Vec<_>>())
        };
        let values = vec![
            over(&|sample| Some(sample.ms)),
            over(&|sample| Some(bytes as f64 / sample.ms / 1e6)),
            over(&|sample| sample.pieces.map(f64::from)),
            contenders.first().and_then(share),
            contenders.get(1).and_then(share),
            over(&|sample| sample.exposed_ms),
        ];
        table.row(&contender.name, values);
    }
    table
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(name: &str, times: &[f64]) -> Contender {
        let sample = |&ms: &f64| Sample { ms, pieces: None, exposed_ms: None };
        Contender { name: name.to_owned(), samples: times.iter().map(sample).collect() }
    }

    #[test]
    fn shares_are_taken_within_rounds() {
        // The machine slows down by ten between rounds; the shares stay.
        let contenders = [
            contender("copy", &[1.0, 10.0, 100.0]),
            contender("socket", &[2.0, 20.0, 200.0]),
            contender("shm", &[4.0, 40.0, 400.0]),
        ];
        let table = table(3, 40_000_000, &contenders);
        let shm = &table.rows[2].1;
        assert_eq!(shm, &vec![Some(40.0), Some(1.0), None, Some(0.25), Some(0.5), None]);
    }

    #[tokio::test]
    async fn every_transport_moves_the_bytes() {
        let args = Args::parse_from(["transfer", "--tokens", "20", "--layers", "2", "--rounds", "1"]);
        let layout = KvLayout {
            layers: 2,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            dtype: KvDtype::Bf16,
            block_size: 16,
            blocks: 2,
        };
        let contenders = measure(&args, layout, 20 * layout.token_bytes(KV_HEADS), &Ends::default()).await.unwrap();
        let names: Vec<_> = contenders.iter().map(|contender| contender.name.as_str()).collect();
        assert_eq!(names, ["plain copy", "raw socket", "inproc", "shm", "tcp", "grpc"]);
        for contender in &contenders[2..] {
            assert!(contender.samples[0].pieces >= Some(2), "{}", contender.name);
        }
    }
}
