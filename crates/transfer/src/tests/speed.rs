//! How long a hand-over takes: `cargo test --release -p transfer -- --ignored --nocapture speed`.

use std::time::{Duration, Instant};

use kv::{KvDtype, KvLayout, Phase};

use super::harness::{Case, Pair, key};
use crate::TransportKind;

/// A 2048-token prompt of a 1B Llama in bf16: 16 layers of 4 MiB.
const LAYOUT: KvLayout =
    KvLayout { layers: 16, kv_heads: 8, head_dim: 64, dtype: KvDtype::Bf16, block_size: 16, blocks: 128 };
const CASE: Case = Case { prompt: 2048, cached: 0, chunk: 2048, heads: 8 };
const ROUNDS: usize = 31;
const BYTES: f64 = 64.0 * 1024.0 * 1024.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, to be run alone and in release"]
async fn speed_of_64_mib() {
    let cpu = cpu_seconds();
    print("memcpy", copies(), cpu);
    for kind in TransportKind::ALL {
        let pair = Pair::new(kind, LAYOUT, LAYOUT).await;
        hand_over(&pair, 0).await;
        let (cpu, mut times) = (cpu_seconds(), Vec::new());
        for request in 1..=ROUNDS {
            times.push(hand_over(&pair, request as u64).await);
        }
        print(kind.as_str(), times, cpu);
    }
}

/// From the first report to D's commit, everything being computed already.
async fn hand_over(pair: &Pair, request: u64) -> Duration {
    let key = key(&format!("r{request}"), 0);
    let d_blocks = pair.d.blocks(&key, CASE.prompt, Phase::Landing);
    let landing = pair.open(&key, 0..CASE.prompt, &d_blocks);
    let blocks = pair.p.blocks(&key, CASE.prompt, Phase::HandOver);
    let outgoing = pair.sender.begin(&landing.ticket(), blocks).unwrap();
    let started = Instant::now();
    for layer in 0..LAYOUT.layers {
        outgoing.layer_ready(layer, 0..LAYOUT.kv_heads, 0..CASE.prompt);
    }
    let land = async {
        landing.landed().await?;
        landing.commit()
    };
    tokio::try_join!(outgoing.finish(), land).unwrap();
    started.elapsed()
}

fn copies() -> Vec<Duration> {
    let (from, mut to) = (vec![1u8; BYTES as usize], vec![0u8; BYTES as usize]);
    let copy = |_| {
        let started = Instant::now();
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
        started.elapsed()
    };
    (0..ROUNDS).map(copy).collect()
}

/// Of the whole process, both ends: steadier than time on a busy machine.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // After the name, which ends with the last parenthesis, user and system time are the 12th and 13th field, in 1/100 s.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

fn print(name: &str, mut times: Vec<Duration>, cpu_before: f64) {
    let cpu = (cpu_seconds() - cpu_before) / (BYTES / 1e9 * times.len() as f64);
    times.sort();
    let speed = |time: Duration| BYTES / time.as_secs_f64() / 1e9;
    let (best, median) = (times[0], times[times.len() / 2]);
    let (best_speed, median_speed) = (speed(best), speed(median));
    println!(
        "{name:8} median {median:>9.2?} {median_speed:5.2} GB/s   best {best:>9.2?} {best_speed:5.2} GB/s   {cpu:.2} CPU s/GB"
    );
}
