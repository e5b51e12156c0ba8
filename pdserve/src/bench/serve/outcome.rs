//! What one request felt like, and the figures of many.

use std::time::Duration;

use super::workload::{Class, Job};
use crate::bench::stats::percentile;

/// One request, timed from the run's start.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    pub(super) class: Class,
    /// When it should have been sent.
    pub(super) due: Duration,
    /// One per event that brought tokens.
    pub(super) events: Vec<TokenEvent>,
    pub(super) end: Duration,
    /// As the server counted them; 0 until it said.
    pub(super) prompt_tokens: u32,
    pub(super) cached_tokens: u32,
    /// Equal for equal texts.
    pub(super) text_hash: u64,
    pub(super) error: Option<String>,
}

/// Tokens there were at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenEvent {
    pub(super) at: Duration,
    /// Since the request began.
    pub(super) tokens: u32,
}

/// What a user still calls good, in milliseconds. `None`: anything.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    pub(super) ttft_ms: Option<f64>,
    pub(super) itl_ms: Option<f64>,
}

impl Outcome {
    pub(super) fn new(job: &Job, due: Duration) -> Self {
        Self {
            class: job.class,
            due,
            events: Vec::new(),
            end: due,
            prompt_tokens: job.prompt.len(),
            cached_tokens: 0,
            text_hash: 0,
            error: None,
        }
    }

    /// Output tokens so far.
    pub(super) fn tokens(&self) -> u32 {
        self.events.last().map_or(0, |event| event.tokens)
    }

    /// Milliseconds from due to first token.
    pub(super) fn ttft_ms(&self) -> Option<f64> {
        Some(ms(self.events.first()?.at - self.due))
    }

    /// Milliseconds between events that brought tokens.
    pub(super) fn gaps_ms(&self) -> impl Iterator<Item = f64> {
        self.events.windows(2).map(|pair| ms(pair[1].at - pair[0].at))
    }

    /// Milliseconds per token after the first event.
    pub(super) fn tpot_ms(&self) -> Option<f64> {
        let (first, last) = (self.events.first()?, self.events.last()?);
        let tokens = last.tokens - first.tokens;
        (tokens > 0).then(|| ms(last.at - first.at) / f64::from(tokens))
    }

    /// Whether it ended well, began within the limit and kept 99 % of its gaps within theirs.
    fn is_good(&self, limits: &Limits) -> bool {
        let within =
            |value: Option<f64>, limit: Option<f64>| limit.is_none_or(|limit| value.is_none_or(|v| v <= limit));
        let gaps: Vec<_> = self.gaps_ms().collect();
        self.error.is_none() && within(self.ttft_ms(), limits.ttft_ms) && within(percentile(&gaps, 0.99), limits.itl_ms)
    }
}

/// A figure by name; `None` where there is nothing to tell.
pub(super) type Figure = (&'static str, Option<f64>);

/// The figures of one run that took `wall`.
pub(super) fn figures(outcomes: &[Outcome], wall: Duration, limits: &Limits) -> Vec<Figure> {
    let ended: Vec<_> = outcomes.iter().filter(|outcome| outcome.error.is_none()).collect();
    let per_second = |count: f64| Some(count / wall.as_secs_f64());
    let output: f64 = outcomes.iter().map(|outcome| f64::from(outcome.tokens())).sum();
    let prompt: f64 = ended.iter().map(|outcome| f64::from(outcome.prompt_tokens)).sum();
    let cached: f64 = ended.iter().map(|outcome| f64::from(outcome.cached_tokens)).sum();
    let mut figures = vec![
        ("requests/s", per_second(ended.len() as f64)),
        ("output tok/s", per_second(output)),
        ("total tok/s", per_second(output + prompt)),
        ("prompt from cache %", (prompt > 0.0).then(|| 100.0 * cached / prompt)),
    ];
    let ttft: Vec<_> = outcomes.iter().filter_map(Outcome::ttft_ms).collect();
    let gaps: Vec<_> = outcomes.iter().flat_map(Outcome::gaps_ms).collect();
    let tpot: Vec<_> = outcomes.iter().filter_map(Outcome::tpot_ms).collect();
    figures.extend(spread(&ttft, ["TTFT ms p50", "TTFT ms p90", "TTFT ms p99"]));
    figures.extend(spread(&gaps, ["ITL ms p50", "ITL ms p90", "ITL ms p99"]));
    figures.extend(spread(&tpot, ["TPOT ms p50", "TPOT ms p90", "TPOT ms p99"]));
    if limits.ttft_ms.is_some() || limits.itl_ms.is_some() {
        let good = outcomes.iter().filter(|outcome| outcome.is_good(limits)).count();
        figures.push(("good requests/s", per_second(good as f64)));
        figures.push(("good requests %", Some(100.0 * good as f64 / outcomes.len().max(1) as f64)));
    }
    figures.push(("errors", Some((outcomes.len() - ended.len()) as f64)));
    figures
}

pub(super) fn spread(values: &[f64], names: [&'static str; 3]) -> impl Iterator<Item = Figure> {
    names.into_iter().zip([0.5, 0.9, 0.99]).map(|(name, p)| (name, percentile(values, p)))
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::serve::prompts::PromptSource;

    /// A request due at `due` ms whose events came at the given ms, one token each.
    pub(in crate::bench::serve) fn outcome(due: u64, events: &[u64]) -> Outcome {
        let prompt = PromptSource::new(0, 0, 0).unique(10);
        let job = Job { class: Class::Measured, after: Duration::ZERO, prompt, output: events.len() as u32 };
        let mut outcome = Outcome::new(&job, Duration::from_millis(due));
        let event =
            |(index, &at): (usize, &u64)| TokenEvent { at: Duration::from_millis(at), tokens: index as u32 + 1 };
        outcome.events = events.iter().enumerate().map(event).collect();
        outcome.end = outcome.events.last().map_or(outcome.due, |last| last.at);
        outcome
    }

    #[test]
    fn a_request_is_timed_from_when_it_was_due() {
        let outcome = outcome(100, &[150, 160, 190]);
        assert_eq!(outcome.ttft_ms(), Some(50.0));
        assert_eq!(outcome.gaps_ms().collect::<Vec<_>>(), [10.0, 30.0]);
        assert_eq!(outcome.tpot_ms(), Some(20.0));
    }

    #[test]
    fn an_event_of_several_tokens_is_one_gap() {
        let mut outcome = outcome(0, &[10, 30]);
        outcome.events[1].tokens = 5;
        assert_eq!(outcome.gaps_ms().collect::<Vec<_>>(), [20.0]);
        assert_eq!(outcome.tpot_ms(), Some(5.0));
    }

    #[test]
    fn requests_without_tokens_have_no_latency() {
        let outcome = outcome(5, &[]);
        assert_eq!((outcome.ttft_ms(), outcome.tpot_ms(), outcome.tokens()), (None, None, 0));
    }

    #[test]
    fn figures_count_what_ended_well() {
        let mut failed = outcome(0, &[100]);
        failed.error = Some("lost".to_owned());
        let outcomes = [outcome(0, &[100, 120]), outcome(0, &[900, 1000]), failed];
        let limits = Limits { ttft_ms: Some(500.0), itl_ms: Some(50.0) };
        let figures = figures(&outcomes, Duration::from_secs(2), &limits);
        let get = |name| figures.iter().find(|(found, _)| *found == name).unwrap().1;
        for (name, expected) in [
            ("requests/s", 1.0),
            ("output tok/s", 2.5),
            ("total tok/s", 12.5),
            ("TTFT ms p50", 100.0),
            ("TTFT ms p99", 900.0),
            ("ITL ms p99", 100.0),
            ("good requests/s", 0.5),
            ("errors", 1.0),
        ] {
            assert_eq!(get(name), Some(expected), "{name}");
        }
    }
}
