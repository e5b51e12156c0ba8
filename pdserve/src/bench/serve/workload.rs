//! Which requests are sent and when: from the command line to a list of jobs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::lengths::{Mix, SHAREGPT_INPUT, SHAREGPT_OUTPUT, next_arrival};
use super::prompts::{Prompt, PromptSource, mix};
use crate::bench::trace::{self, Arrival, HASH_BLOCK};

/// One request to send.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Job {
    pub(super) class: Class,
    /// Since the run's start; not looked at where a number of users send one request after another.
    pub(super) after: Duration,
    pub(super) prompt: Prompt,
    pub(super) output: u32,
}

/// What part a request plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Measured,
    /// Arrives while the measured ones decode.
    Interfering,
}

/// What makes the next request leave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    /// So many users, each sends its next request when the last has ended.
    Users(usize),
    /// The clock, whatever the server does.
    Clock,
}

/// Requests of one size from a number of users.
#[derive(Args, Debug, Clone)]
pub(super) struct FixedSpec {
    /// Tokens of each prompt
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) input: u32,
    /// Tokens of each answer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) output: u32,
    /// Requests in all
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) requests: u32,
    /// Users, each with one request at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) concurrency: u32,
    /// Lengths of prompts and answers
    #[arg(long, value_enum, default_value_t = Mix::Fixed)]
    pub(super) lengths: Mix,
}

impl FixedSpec {
    /// The workload of the published comparisons.
    pub(super) const MIXED: Self = Self { input: 512, output: 64, requests: 32, concurrency: 8, lengths: Mix::Fixed };
}

/// Requests that arrive by themselves, at random.
#[derive(Args, Debug, Clone)]
pub(super) struct PoissonSpec {
    /// Arrivals per second on average
    #[arg(long, value_parser = positive)]
    pub(super) rate: f64,
    /// Requests in all
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) requests: u32,
    /// Lengths of prompts and answers
    #[arg(long, value_enum, default_value_t = Mix::Sharegpt)]
    pub(super) lengths: Mix,
    /// Tokens of each prompt with --lengths fixed
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) input: u32,
    /// Tokens of each answer with --lengths fixed
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) output: u32,
}

/// Requests that arrive as they were recorded.
#[derive(Args, Debug, Clone)]
pub(super) struct TraceSpec {
    /// CSV with t_ms,input_tokens,output_tokens, or JSON Lines with timestamp, input_length, output_length, hash_ids
    pub(super) file: PathBuf,
    /// Requests taken from the start of the file
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) requests: u32,
    /// Multiplies recorded times: 0.5 sends twice as fast
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    pub(super) time_scale: f64,
    /// Multiplies recorded lengths, for models that are smaller than the recorded ones
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    pub(super) length_scale: f64,
    /// Cuts prompts to this many tokens
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_input: Option<u32>,
    /// Cuts answers to this many tokens
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_output: Option<u32>,
}

fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if value > 0.0 && value.is_finite() { Ok(value) } else { Err("must be above 0".to_owned()) }
}

/// Lengths are the same in every round and for every server; the prompts of another round have other tokens.
pub(super) fn fixed(spec: &FixedSpec, seed: u64, source: &mut PromptSource) -> Vec<Job> {
    let mut random = StdRng::seed_from_u64(mix(seed));
    let job = |_| job(Duration::ZERO, draw(spec.lengths, spec.input, spec.output, &mut random), source);
    (0..spec.requests).map(job).collect()
}

pub(super) fn poisson(spec: &PoissonSpec, seed: u64, source: &mut PromptSource) -> Vec<Job> {
    let mut random = StdRng::seed_from_u64(mix(seed));
    let mut at = 0.0;
    let mut jobs = Vec::new();
    for _ in 0..spec.requests {
        let lengths = draw(spec.lengths, spec.input, spec.output, &mut random);
        jobs.push(job(Duration::from_secs_f64(at), lengths, source));
        at += next_arrival(spec.rate, &mut random);
    }
    jobs
}

pub(super) fn trace(spec: &TraceSpec, source: &mut PromptSource) -> anyhow::Result<Vec<Job>> {
    let arrivals = trace::read(&spec.file, spec.requests as usize)?;
    Ok(arrivals.iter().map(|arrival| replay(arrival, spec, source)).collect())
}

fn replay(arrival: &Arrival, spec: &TraceSpec, source: &mut PromptSource) -> Job {
    let scale = |tokens: u32, max: Option<u32>| {
        let scaled = (f64::from(tokens) * spec.length_scale).round() as u32;
        scaled.clamp(1, max.unwrap_or(u32::MAX))
    };
    let (input, output) = (scale(arrival.input, spec.max_input), scale(arrival.output, spec.max_output));
    let prompt = match &arrival.blocks[..] {
        [] => source.unique(input),
        blocks => source.of_blocks(blocks, scale(HASH_BLOCK, None), input),
    };
    let after = Duration::from_secs_f64(arrival.at_ms * spec.time_scale / 1e3);
    Job { class: Class::Measured, after, prompt, output }
}

fn draw(lengths: Mix, input: u32, output: u32, random: &mut StdRng) -> (u32, u32) {
    match lengths {
        Mix::Fixed => (input, output),
        Mix::Sharegpt => (SHAREGPT_INPUT.sample(random), SHAREGPT_OUTPUT.sample(random)),
    }
}

fn job(after: Duration, (input, output): (u32, u32), source: &mut PromptSource) -> Job {
    Job { class: Class::Measured, after, prompt: source.unique(input), output }
}

/// Refuses jobs that the server would refuse one by one.
pub(super) fn check_fits(jobs: &[Job], max_model_len: Option<u32>, server: &str) -> anyhow::Result<()> {
    let longest = jobs.iter().max_by_key(|job| u64::from(job.prompt.len()) + u64::from(job.output));
    if let (Some(job), Some(max)) = (longest, max_model_len) {
        let (input, output) = (job.prompt.len(), job.output);
        ensure!(
            u64::from(input) + u64::from(output) <= u64::from(max),
            "a request of {input} + {output} tokens does not fit: {server} takes {max}; use shorter ones \
             (--input, --output, --length-scale, --max-input, --max-output) or a model with a longer context"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(round: u32) -> PromptSource {
        PromptSource::new(1, round, 0)
    }

    fn shape(jobs: &[Job]) -> Vec<(u128, u32, u32)> {
        jobs.iter().map(|job| (job.after.as_millis(), job.prompt.len(), job.output)).collect()
    }

    #[test]
    fn mixed_is_the_published_workload() {
        assert_eq!(shape(&fixed(&FixedSpec::MIXED, 1, &mut source(0))), vec![(0, 512, 64); 32]);
    }

    #[test]
    fn rounds_have_the_same_shape_and_other_prompts() {
        let spec = PoissonSpec { rate: 2.0, requests: 20, lengths: Mix::Sharegpt, input: 1, output: 1 };
        let (first, second) = (poisson(&spec, 1, &mut source(0)), poisson(&spec, 1, &mut source(1)));
        assert_eq!(shape(&first), shape(&second));
        assert_ne!(first, second);
        assert!(first.is_sorted_by_key(|job| job.after));
        assert_ne!(shape(&first), shape(&poisson(&spec, 2, &mut source(0))));
    }

    #[test]
    fn a_trace_is_scaled_and_cut() {
        let spec = TraceSpec {
            file: PathBuf::new(),
            requests: 1,
            time_scale: 0.5,
            length_scale: 0.125,
            max_input: Some(100),
            max_output: Some(10),
        };
        for (arrival, expected) in [
            (Arrival { at_ms: 3000.0, input: 80, output: 40, blocks: vec![] }, (1500, 10, 5)),
            (Arrival { at_ms: 0.0, input: 8000, output: 4000, blocks: vec![1, 2] }, (0, 100, 10)),
            (Arrival { at_ms: 0.0, input: 1, output: 1, blocks: vec![] }, (0, 1, 1)),
        ] {
            assert_eq!(shape(&[replay(&arrival, &spec, &mut source(0))]), [expected], "{arrival:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers() {
        let jobs = fixed(&FixedSpec::MIXED, 1, &mut source(0));
        for (max, fits) in [(None, true), (Some(576), true), (Some(575), false)] {
            assert_eq!(check_fits(&jobs, max, "it").is_ok(), fits);
        }
        let error = check_fits(&jobs, Some(575), "it").unwrap_err().to_string();
        assert!(error.contains("512 + 64") && error.contains("575"), "{error}");
    }
}
