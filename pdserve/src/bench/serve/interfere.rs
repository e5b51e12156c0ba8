//! Running answers with and without long prompts arriving among them.
//!
//! Each round measures the answers alone, then the same again while prompts of one output token arrive one after another. The gap
//! between tokens of the running answers is what prefill/decode separation is to keep as it was alone.

use std::cell::Cell;
use std::time::Duration;

use clap::Args;
use futures::future::{join, join_all};
use tokio::time::{Instant, sleep};

use super::load::Load;
use super::outcome::{Figure, Outcome, spread};
use super::prompts::PromptSource;
use super::result::{Measured, Run};
use super::target::Target;
use super::workload::{Class, Job, check_fits};
use crate::bench::stats::percentile;

#[derive(Args, Debug, Clone)]
pub(super) struct InterfereSpec {
    /// Answers that run
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    streams: u32,
    /// Tokens of each answer's prompt
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    stream_input: u32,
    /// Tokens of each answer
    #[arg(long, default_value_t = 192, value_parser = clap::value_parser!(u32).range(2..))]
    stream_output: u32,
    /// Tokens of each prompt that arrives
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    input: u32,
    /// Prompts that arrive at most; none is sent once the answers have ended
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    arrivals: u32,
    /// Between the end of one such prompt and the next
    #[arg(long, value_name = "MS", default_value_t = 500)]
    gap_ms: u64,
    /// From the answers' start to the first prompt
    #[arg(long, value_name = "MS", default_value_t = 1500)]
    settle_ms: u64,
}

pub(super) async fn run(
    spec: &InterfereSpec,
    load: &Load,
    server: &Target,
    source: &mut PromptSource,
) -> anyhow::Result<Measured> {
    let alone = phase(spec, load, server, source, 0, "alone").await?;
    let disturbed = phase(spec, load, server, source, spec.arrivals, "with prompts").await?;
    Ok(Measured { server: server.label.clone(), figures: figures(&alone, &disturbed), runs: vec![alone, disturbed] })
}

async fn phase(
    spec: &InterfereSpec,
    load: &Load,
    server: &Target,
    source: &mut PromptSource,
    arrivals: u32,
    name: &str,
) -> anyhow::Result<Run> {
    let mut jobs = |class, count, input, output| -> Vec<Job> {
        (0..count).map(|_| Job { class, after: Duration::ZERO, prompt: source.unique(input), output }).collect()
    };
    let streams = jobs(Class::Measured, spec.streams, spec.stream_input, spec.stream_output);
    let prompts = jobs(Class::Interfering, arrivals, spec.input, 1);
    check_fits(&[&streams[..], &prompts].concat(), server.max_model_len, &server.label)?;

    let start = Instant::now();
    let running = Cell::new(true);
    let streams = async {
        let outcomes = join_all(streams.into_iter().map(|job| load.ask(server, job, start, start))).await;
        running.set(false);
        outcomes
    };
    let prompts = async {
        let mut outcomes = Vec::new();
        sleep(Duration::from_millis(spec.settle_ms)).await;
        for job in prompts {
            if !running.get() {
                break;
            }
            outcomes.push(load.ask(server, job, start, Instant::now()).await);
            sleep(Duration::from_millis(spec.gap_ms)).await;
        }
        outcomes
    };
    let (mut outcomes, interfering) = join(streams, prompts).await;
    let wall = outcomes.iter().map(|outcome| outcome.end).max().unwrap_or_default();
    outcomes.extend(interfering);
    Ok(Run { label: format!("{} {name}", server.label), outcomes, wall })
}

fn figures(alone: &Run, disturbed: &Run) -> Vec<Figure> {
    let (calm, busy) = (gaps(alone), gaps(disturbed));
    let over = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let p99 = |gaps: &[f64]| percentile(gaps, 0.99);
    let ttft: Vec<_> = of(disturbed, Class::Interfering).filter_map(Outcome::ttft_ms).collect();
    let mut figures: Vec<Figure> =
        spread(&calm, ["ITL ms p50 alone", "ITL ms p90 alone", "ITL ms p99 alone"]).collect();
    figures.extend(spread(&busy, ["ITL ms p50 with prompts", "ITL ms p90 with prompts", "ITL ms p99 with prompts"]));
    figures.push(("ITL ms max with prompts", percentile(&busy, 1.0)));
    figures.push(("ITL p99 with / alone", over(p99(&busy), p99(&calm))));
    figures.push(("answers tok/s alone", tokens_per_second(alone)));
    figures.push(("answers tok/s with prompts", tokens_per_second(disturbed)));
    figures.push(("answers tok/s with / alone", over(tokens_per_second(disturbed), tokens_per_second(alone))));
    figures.push(("prompts sent", Some(of(disturbed, Class::Interfering).count() as f64)));
    figures.push(("prompts' TTFT ms p50", percentile(&ttft, 0.5)));
    figures.push(("prompts' TTFT ms max", percentile(&ttft, 1.0)));
    let outcomes = alone.outcomes.iter().chain(&disturbed.outcomes);
    figures.push(("errors", Some(outcomes.filter(|outcome| outcome.error.is_some()).count() as f64)));
    figures
}

fn of(run: &Run, class: Class) -> impl Iterator<Item = &Outcome> {
    run.outcomes.iter().filter(move |outcome| outcome.class == class)
}

fn gaps(run: &Run) -> Vec<f64> {
    of(run, Class::Measured).flat_map(Outcome::gaps_ms).collect()
}

fn tokens_per_second(run: &Run) -> Option<f64> {
    let tokens: u32 = of(run, Class::Measured).map(Outcome::tokens).sum();
    (tokens > 0).then(|| f64::from(tokens) / run.wall.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::serve::outcome::tests::outcome;

    fn run(outcomes: Vec<Outcome>, wall_ms: u64) -> Run {
        Run { label: String::new(), outcomes, wall: Duration::from_millis(wall_ms) }
    }

    #[test]
    fn only_gaps_of_running_answers_count() {
        let alone = run(vec![outcome(0, &[10, 20, 30, 40])], 40);
        let prompt = Outcome { class: Class::Interfering, ..outcome(20, &[220]) };
        let disturbed = run(vec![outcome(0, &[10, 20, 60, 80]), prompt], 80);
        let figures = figures(&alone, &disturbed);
        for (name, expected) in [
            ("ITL ms p99 alone", 10.0),
            ("ITL ms p99 with prompts", 40.0),
            ("ITL p99 with / alone", 4.0),
            ("answers tok/s alone", 100.0),
            ("answers tok/s with / alone", 0.5),
            ("prompts sent", 1.0),
            ("prompts' TTFT ms p50", 200.0),
            ("errors", 0.0),
        ] {
            assert_eq!(figures.iter().find(|(found, _)| *found == name).unwrap().1, Some(expected), "{name}");
        }
    }
}
