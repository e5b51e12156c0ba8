//! Workers that come and go, a bad link beside good ones, no prefill instance at all, and thousands of clients that leave. Rows F14,
//! F19, F23 and F25.

use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use rand::Rng;
use rand::seq::IndexedRandom;
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::Drill;
use super::client::End;
use super::cluster::Worker;
use super::faults::LEASE;
use super::proxy::Fault;
use super::verdict::Row;
use crate::bench::stats::percentile;

/// Clients beside what is measured.
const BYSTANDERS: usize = 4;
/// How much longer the 99th of a hundred gaps between tokens may be than without the fault, and what a timer's grain is worth.
const SLOWER_MAX: f64 = 1.2;
const GRAIN: Duration = Duration::from_millis(5);
/// In which a request that cannot be served is refused.
const REFUSED_MAX: Duration = Duration::from_secs(1);
/// Cancels of one moment.
const BURSTS: [usize; 5] = [1, 4, 16, 64, 256];
/// Before decode has surely begun and after, in milliseconds.
const LEAVES_MS: std::ops::Range<u64> = 0..300;

impl Drill<'_> {
    /// Every row of this file.
    pub(super) async fn churn(&mut self) -> anyhow::Result<()> {
        self.joins_and_leaves().await?;
        self.bad_link().await?;
        self.without_prefill().await?;
        self.cancels().await
    }

    async fn bad_link(&mut self) -> anyhow::Result<()> {
        self.say("F14: 50 ms and lost segments on every link of decode-0; how decode-1 fares");
        let lossy = Fault::Lossy { delay: Duration::from_millis(50) };
        let (bad, good) = (self.site.worker("decode-0")?, self.site.worker("decode-1")?);
        let lasting = self.lasting(20.0, 5.0);
        let load = self.load(BYSTANDERS);
        let before = self.gaps_on(good, lasting).await;
        bad.on_control(lossy);
        bad.on_kv(lossy);
        // Time to learn whom to avoid.
        sleep(lasting / 4).await;
        let during = self.gaps_on(good, lasting).await;
        bad.on_control(Fault::None);
        bad.on_kv(Fault::None);
        self.judge("F14", "50 ms and 1 % loss on the links of decode-0", load, None).await;
        let [before, during] = [before, during].map(|gaps| (gaps.len(), percentile(&gaps, 0.99).unwrap_or(f64::NAN)));
        let measured = format!(
            "99 % of {} gaps of decode-1's streams within {:.1} ms, before {} within {:.1} ms",
            during.0, during.1, before.0, before.1
        );
        let (done, criterion) = ("streams of decode-1 meanwhile".to_owned(), "p99 <= 1.2 x that before".to_owned());
        let pass = during.1 <= SLOWER_MAX * before.1 + GRAIN.as_secs_f64() * 1e3;
        self.verdict.row(Row { id: "F14", done, criterion, measured, pass });
        Ok(())
    }

    /// Milliseconds between the tokens of streams that ran on this worker.
    async fn gaps_on(&self, worker: &Worker, lasting: Duration) -> Vec<f64> {
        let until = Instant::now() + lasting;
        let client = async |client: usize| {
            let mut gaps = Vec::new();
            for number in 0.. {
                if Instant::now() >= until {
                    break;
                }
                gaps.extend(self.probe(worker, &format!("probe-{client}-{number}")).await);
            }
            gaps
        };
        futures::future::join_all((0..BYSTANDERS).map(client)).await.concat()
    }

    /// One stream; its gaps if it ran there.
    async fn probe(&self, worker: &Worker, id: &str) -> Vec<f64> {
        let (times, begun) = (Mutex::new(Vec::new()), Notify::new());
        let body = json!({"prompt": id, "max_tokens": 96, "temperature": 0, "ignore_eos": true, "request_id": id});
        let stream = self.site.client.complete(&body, || {
            times.lock().push(Instant::now());
            begun.notify_one();
        });
        let there = async {
            begun.notified().await;
            worker.holds(id).await.unwrap_or(false)
        };
        let (seen, there) = tokio::join!(stream, timeout(Duration::from_secs(10), there));
        if !matches!((seen.end, there), (End::Whole(_), Ok(true))) {
            return Vec::new();
        }
        let times = times.into_inner();
        // The first token is the prefill instance's.
        times.windows(2).skip(1).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3).collect()
    }

    async fn without_prefill(&mut self) -> anyhow::Result<()> {
        self.say("F23: no prefill instance can be reached");
        let body = json!({"prompt": "Go on and on.", "max_tokens": 400, "temperature": 0, "ignore_eos": true});
        let answer = self.answer(&body).await?;
        let (begun, site) = (Notify::new(), self.site);
        let streams = (0..BYSTANDERS).map(|_| site.client.complete(&body, || begun.notify_one()));
        let streams = futures::future::join_all(streams);
        let refusals = async {
            for _ in 0..BYSTANDERS {
                begun.notified().await;
            }
            // Their prompts are handed over soon after their first tokens.
            sleep(Duration::from_millis(300)).await;
            site.prefills().for_each(Worker::cut_off);
            let asked = Instant::now();
            let ask = self.questions.iter().take(8).map(|question| site.client.complete(&question.body, || {}));
            let seen = futures::future::join_all(ask).await;
            (seen.iter().filter(|seen| seen.end == End::Refused).count(), asked.elapsed())
        };
        let (streams, (refused, slowest)) = tokio::join!(streams, refusals);
        self.site.prefills().for_each(|worker| worker.on_control(Fault::None));
        self.site.ready().await?;
        let whole = streams.iter().filter(|seen| seen.end == End::Whole(answer.clone())).count();
        let slowest_s = slowest.as_secs_f64();
        let measured =
            format!("{refused}/8 refused, the slowest after {slowest_s:.2} s; {whole}/{BYSTANDERS} streams whole");
        let (done, criterion) =
            ("prefill instances cut off".to_owned(), "new ones refused within 1 s, running ones whole".to_owned());
        let pass = refused == 8 && slowest <= REFUSED_MAX && whole == BYSTANDERS;
        self.verdict.row(Row { id: "F23", done, criterion, measured, pass });
        Ok(())
    }

    /// Over the same long-lived connections all the time: a scheduler that dropped streams would lose one every thousand cancels.
    async fn cancels(&mut self) -> anyhow::Result<()> {
        let wanted = self.times(10_000.0).max(500);
        self.say(&format!("F25: {wanted} clients leave, up to 256 at a time"));
        let lost = self.site.connections_lost()?;
        let load = self.load(BYSTANDERS);
        let mut left = 0;
        for burst in BURSTS.into_iter().cycle() {
            let burst = burst.min(wanted - left);
            let leaving = (0..burst).map(|number| {
                let patience = Duration::from_millis(self.rng.random_range(LEAVES_MS));
                let question = &self.questions[number % self.questions.len()];
                timeout(patience, self.site.client.complete(&question.body, || {}))
            });
            futures::future::join_all(leaving.collect::<Vec<_>>()).await;
            left += burst;
            if left >= wanted {
                break;
            }
        }
        let lost = self.site.connections_lost()? - lost;
        self.judge("F25", &format!("{wanted} clients leave in bursts of 1 to 256"), load, None).await;
        let (done, criterion) = ("connections to the workers meanwhile".to_owned(), "none lost".to_owned());
        self.verdict.row(Row { id: "F25", done, criterion, measured: format!("{lost} lost"), pass: lost == 0 });
        Ok(())
    }

    async fn joins_and_leaves(&mut self) -> anyhow::Result<()> {
        let lasting = self.lasting(60.0, 12.0);
        self.say(&format!("F19: workers leave and join for {:.0} s, whichever and however", lasting.as_secs_f64()));
        let load = self.load(super::faults::CLIENTS);
        let (started, workers) = (Instant::now(), self.site.names().split_off(1));
        let mut leaves = 0;
        while started.elapsed() < lasting {
            let worker = workers.choose(&mut self.rng).context("there are workers")?;
            let signal = if self.rng.random_bool(0.5) { Signal::KILL } else { Signal::TERM };
            // Many are away at any moment.
            leaves += usize::from(self.site.signal(worker, signal).is_ok());
            sleep(Duration::from_millis(self.rng.random_range(300..900))).await;
        }
        self.site.ready().await?;
        let tally = load.stop().await;
        let settled = self.site.settled(LEASE).await;
        let measured = format!("{leaves} left; {}, {} without an end", tally.describe(), tally.endless);
        let pass = tally.whole > 0 && (tally.changed, tally.endless) == (0, 0) && settled.is_some();
        self.verdict.examples.extend(tally.examples);
        let (done, criterion) = (
            "workers leave and join under load".to_owned(),
            "every request ends, none changed, blocks back".to_owned(),
        );
        self.verdict.row(Row { id: "F19", done, criterion, measured, pass });
        Ok(())
    }
}
