//! Sends jobs at their pace and collects what came of them.

use std::time::Duration;

use anyhow::bail;
use futures::StreamExt;
use futures::stream;
use tokio::time::{Instant, sleep_until};

use super::outcome::Outcome;
use super::prompts::PromptSource;
use super::target::Target;
use super::workload::{Class, Job, Pace};

/// Requests under way at once; what is due beyond them waits here, and its waiting counts.
const IN_FLIGHT_MAX: usize = 1024;
const WARM_UP_INPUT: u32 = 16;
const WARM_UP_OUTPUT: u32 = 2;
/// Prompts of no round.
const WARM_UP_ROUND: u32 = u32::MAX;

/// How requests are sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Token ids are below this.
    pub(super) vocab: u32,
    /// Of one request.
    pub(super) limit: Duration,
}

impl Load {
    /// Sends the jobs in their order, and returns what came of them in that order and the time until the last ended.
    pub(super) async fn run(&self, server: &Target, jobs: Vec<Job>, pace: Pace) -> (Vec<Outcome>, Duration) {
        let start = Instant::now();
        let jobs = stream::iter(jobs.into_iter().enumerate());
        let mut outcomes: Vec<(usize, Outcome)> = match pace {
            Pace::Users(users) => {
                let ask = |(index, job)| async move { (index, self.ask(server, job, start, Instant::now()).await) };
                jobs.map(ask).buffer_unordered(users).collect().await
            }
            Pace::Clock => {
                let wait = |(index, job): (usize, Job)| async move {
                    let due = start + job.after;
                    sleep_until(due).await;
                    (index, job, due)
                };
                let ask = |(index, job, due)| async move { (index, self.ask(server, job, start, due).await) };
                jobs.then(wait).map(ask).buffer_unordered(IN_FLIGHT_MAX).collect().await
            }
        };
        outcomes.sort_by_key(|&(index, _)| index);
        let outcomes: Vec<_> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
        let wall = outcomes.iter().map(|outcome| outcome.end).max().unwrap_or_default();
        (outcomes, wall)
    }

    pub(super) async fn ask(&self, server: &Target, job: Job, start: Instant, due: Instant) -> Outcome {
        server.ask(job, self.vocab, start, due, self.limit).await
    }

    /// One short request, so that connections and pages are there; an error here is one of the set-up.
    pub(super) async fn warm_up(&self, server: &Target) -> anyhow::Result<()> {
        let prompt = PromptSource::new(0, WARM_UP_ROUND, 0).unique(WARM_UP_INPUT);
        let job = Job { class: Class::Measured, after: Duration::ZERO, prompt, output: WARM_UP_OUTPUT };
        let now = Instant::now();
        match self.ask(server, job, now, now).await.error {
            Some(error) => bail!("{}: {error}", server.description),
            None => Ok(()),
        }
    }
}
