//! Clients that leave, send nonsense, do not read, or want more than there is; then a while of plain load. Nothing may be left behind.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Drill;
use super::cluster::Held;
use super::faults::{CLIENTS, LEASE};
use super::load::Tally;
use super::mutate::mutate;
use super::verdict::Row;

/// Clients that must not notice what others do.
const BYSTANDERS: usize = 8;
/// Longest time in which nobody gets a token while all want some.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Growth of a process's own memory under steady load, once warm.
const GROWTH_MAX: f64 = 1.0;
/// Growth of the scheduler under mutants and unread streams.
const ABUSE_MIB_MAX: f64 = 64.0;
/// Descriptors that may come and go (a connection being made, a log file).
const DESCRIPTORS_SLACK: i64 = 2;

/// Memory and descriptors of every process.
type Figures = BTreeMap<String, (u64, i64)>;

impl Drill<'_> {
    /// Every row of this file.
    pub(super) async fn soak(&mut self) -> anyhow::Result<()> {
        self.abuse().await?;
        self.exhaustion().await?;
        self.steady().await
    }

    /// Clients that leave, mutants and unread streams, all at once, beside bystanders.
    async fn abuse(&mut self) -> anyhow::Result<()> {
        let (leavers, mutants) = (self.times(500.0).max(50), self.times(10_000.0).max(200));
        self.say(&format!("F8, A1, A8: {leavers} clients leave, {mutants} mutants, 16 streams that nobody reads"));
        let before = self.site.resident("scheduler");
        let load = self.load(BYSTANDERS);
        let unread = self.unread_streams().await?;
        let bodies = self.mutants(mutants);
        let patience: Vec<Duration> =
            (0..leavers).map(|_| Duration::from_millis(self.rng.random_range(0..400))).collect();
        let ((), (answered, bad)) = tokio::join!(self.leave(&patience), self.send_mutants(&bodies));
        drop(unread);
        let tally = load.stop().await;
        self.settle_row("F8", format!("{leavers} clients leave in every phase, 16 never read"), &tally).await;
        let grown =
            before.zip(self.site.resident("scheduler")).map(|((before, _), (_, peak))| peak.saturating_sub(before));
        let grown = grown.map_or(f64::INFINITY, |bytes| bytes as f64 / f64::from(1 << 20));
        let measured = format!(
            "{answered} of {} answered, {bad} of them with 5xx other than 503; scheduler +{grown:.0} MiB",
            bodies.len()
        );
        let done = format!("{} mutated bodies", bodies.len());
        let criterion = format!("all answered, 0 5xx, scheduler +{ABUSE_MIB_MAX} MiB at most");
        let pass = answered == bodies.len() && bad == 0 && grown <= ABUSE_MIB_MAX;
        self.verdict.row(Row { id: "A1", done, criterion, measured, pass });
        Ok(())
    }

    /// Bystanders all right, and everything given back.
    async fn settle_row(&mut self, id: &'static str, done: String, tally: &Tally) {
        let settled = self.site.settled(LEASE + Duration::from_secs(1)).await;
        let reclaimed = settled.map_or("blocks still held".to_owned(), |took| {
            self.verdict.seconds("longest reclaim after a phase, s", took);
            format!("all blocks back after {:.2} s", took.as_secs_f64())
        });
        let measured = format!("bystanders: {}; {reclaimed}", tally.describe());
        let pass = tally.is_clean() && settled.is_some();
        self.verdict.examples.extend(tally.examples.clone());
        let criterion = "bystanders 100 %, blocks back in 11 s".to_owned();
        self.verdict.row(Row { id, done, criterion, measured, pass });
    }

    /// Sixteen requests whose answers are never read, on connections of their own.
    async fn unread_streams(&self) -> anyhow::Result<Vec<TcpStream>> {
        let authority = self.site.client.authority();
        let body = self.site.client.body(&json!({"prompt": "Go on.", "max_tokens": 400, "ignore_eos": true}));
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut streams = Vec::new();
        for _ in 0..16 {
            let mut stream = TcpStream::connect(authority).await.context("the scheduler takes no connection")?;
            stream.write_all(format!("{head}{body}").as_bytes()).await?;
            streams.push(stream);
        }
        Ok(streams)
    }

    /// Each client goes after its patience, wherever its request is then; 32 at a time.
    async fn leave(&self, patience: &[Duration]) {
        for burst in patience.chunks(32) {
            let leaving = burst.iter().enumerate().map(|(number, patience)| {
                let question = &self.questions[number % self.questions.len()];
                timeout(*patience, self.site.client.complete(&question.body, || {}))
            });
            futures::future::join_all(leaving).await;
        }
    }

    /// Bodies of real requests with bytes changed, cut out or doubled.
    fn mutants(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut bodies = Vec::with_capacity(count);
        for _ in 0..count {
            let mut body =
                self.questions.choose(&mut self.rng).map_or_else(Default::default, |asked| asked.body.clone());
            // Many a mutant is a valid request.
            body["max_tokens"] = json!(4);
            bodies.push(mutate(&mut self.rng, self.site.client.body(&body).into_bytes()));
        }
        bodies
    }

    /// How many were answered, and how many of those with an error of ours.
    async fn send_mutants(&self, bodies: &[Vec<u8>]) -> (usize, usize) {
        let (mut answered, mut bad) = (0, 0);
        for burst in bodies.chunks(16) {
            let sent = burst.iter().map(|body| self.site.client.post(body.clone()));
            for status in futures::future::join_all(sent).await.into_iter().flatten() {
                answered += 1;
                bad += usize::from(status >= 500 && status != 503);
            }
        }
        (answered, bad)
    }

    /// Far more than the pools hold, all at once.
    async fn exhaustion(&mut self) -> anyhow::Result<()> {
        let requests = self.times(120.0).max(40);
        self.say(&format!("F20: {requests} requests of 300 tokens at once"));
        let bodies: Vec<_> = (0..4)
            .map(|number| json!({"prompt": format!("Story {number}:"), "max_tokens": 300, "temperature": 1, "seed": number, "ignore_eos": true}))
            .collect();
        let mut questions = Vec::new();
        for body in bodies {
            questions.push(super::Question { answer: self.answer(&body).await?, body });
        }
        let preempted = self.site.count("pdserve_preemptions_total").await?;
        let tally = std::sync::Arc::new(parking_lot::Mutex::new(Tally::default()));
        let mut running = JoinSet::new();
        for number in 0..requests {
            let (client, question, tally) =
                (self.site.client.clone(), questions[number % questions.len()].clone(), tally.clone());
            running.spawn(async move {
                let seen = client.complete(&question.body, || tally.lock().heard()).await;
                tally.lock().add(&question, seen);
            });
        }
        while running.join_next().await.is_some() {}
        let tally = tally.lock().clone();
        let preempted = self.site.count("pdserve_preemptions_total").await? - preempted;
        let settled = self.site.settled(LEASE).await;
        let measured = format!(
            "{}, {preempted} preemptions, longest silence {:.2} s, blocks back: {}",
            tally.describe(),
            tally.silence.as_secs_f64(),
            settled.is_some()
        );
        let pass = tally.whole > 0
            && (tally.changed, tally.failed) == (0, 0)
            && tally.silence < SILENCE_MAX
            && settled.is_some();
        self.verdict.examples.extend(tally.examples);
        let done = format!("{requests} requests of 300 tokens at once");
        let criterion = "right or refused with Retry-After, no 5 s of silence".to_owned();
        self.verdict.row(Row { id: "F20", done, criterion, measured, pass });
        Ok(())
    }

    /// Plain load, and what it leaves behind.
    async fn steady(&mut self) -> anyhow::Result<()> {
        let lasting = self.lasting(60.0, 6.0);
        self.say(&format!("soak: {CLIENTS} clients for {:.0} s", lasting.as_secs_f64()));
        let idle_before = self.figures();
        let load = self.load(CLIENTS);
        sleep(lasting / 3).await;
        let mut samples = Vec::new();
        let started = Instant::now();
        while started.elapsed() < lasting * 2 / 3 {
            samples.push((started.elapsed(), self.figures()));
            sleep(Duration::from_millis(250)).await;
        }
        let tally = load.stop().await;
        self.settle_row("soak", "steady load".to_owned(), &tally).await;
        self.growth_row(&samples);
        // Connections of the clients' pools end by themselves.
        sleep(self.lasting(5.0, 2.0)).await;
        self.left_behind_row(&idle_before).await
    }

    fn figures(&self) -> Figures {
        let of = |role: &String| {
            let descriptors = i64::try_from(self.site.descriptors(role)?).ok()?;
            Some((role.clone(), (self.site.own_bytes(role)?, descriptors)))
        };
        self.site.names().iter().filter_map(of).collect()
    }

    /// The line through each process's memory over time.
    fn growth_row(&mut self, samples: &[(Duration, Figures)]) {
        let mut worst = (f64::NEG_INFINITY, String::new());
        for role in self.site.names() {
            let points: Vec<(f64, f64)> = samples
                .iter()
                .filter_map(|(at, figures)| {
                    Some((at.as_secs_f64() / 60.0, figures.get(&role)?.0 as f64 / f64::from(1 << 20)))
                })
                .collect();
            let slope = slope(&points);
            if slope > worst.0 {
                worst = (slope, role);
            }
        }
        self.verdict.figure("memory growth under steady load, MiB/min", worst.0);
        let measured = format!("{:+.2} MiB/min at most ({})", worst.0, worst.1);
        let (done, criterion) = ("own memory of every process".to_owned(), format!("< {GROWTH_MAX} MiB/min"));
        self.verdict.row(Row { id: "soak", done, criterion, measured, pass: worst.0 < GROWTH_MAX });
    }

    async fn left_behind_row(&mut self, before: &Figures) -> anyhow::Result<()> {
        let held = self.site.held().await?;
        let now = self.figures();
        let more = |(role, (_, descriptors)): (&String, &(u64, i64))| {
            let (_, before) = before.get(role)?;
            Some((descriptors - before, role.clone()))
        };
        let (more, role) = now.iter().filter_map(more).max().unwrap_or_default();
        let measured = format!(
            "{} blocks leased, {} running, {} waiting; descriptors {more:+} at most ({role})",
            held.leased, held.running, held.waiting
        );
        let (done, criterion) = ("idle afterwards".to_owned(), "all 0, descriptors +-2".to_owned());
        let pass = held == Held::default() && more <= DESCRIPTORS_SLACK;
        self.verdict.row(Row { id: "idle", done, criterion, measured, pass });
        Ok(())
    }
}

/// Of the straight line that fits the points best; 0 where there is none.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let together: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    if spread > 0.0 { together / spread } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_that_of_the_best_line() {
        assert!((slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) - 2.0).abs() < 1e-9);
        assert_eq!((slope(&[]), slope(&[(1.0, 1.0)])), (0.0, 0.0));
    }
}
