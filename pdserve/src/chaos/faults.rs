//! Workers that die, freeze, are cut off, get damaged bytes, are stopped; and a scheduler that dies. Rows F1 to F17 but F14, and F24.

use std::time::Duration;

use anyhow::Context;
use rand::Rng;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Drill;
use super::client::End;
use super::load::{Load, Tally};
use super::proxy::Fault;
use super::verdict::Row;

/// Clients of the closed loop.
pub(super) const CLIENTS: usize = 16;
/// After which nothing may be held for work that is gone.
pub(super) const LEASE: Duration = Duration::from_secs(10);
/// Time in which a worker connects to a new scheduler, and one second to serve.
const RECONNECT: Duration = Duration::from_secs(6);
/// Longest a fault may show in one stream when a worker is killed: noticing takes no time, computing again does.
const KILL_GAP: Duration = Duration::from_secs(4);
/// A worker that fails everything is left alone before it costs more than this.
const RETRIES_PER_REQUEST_MAX: f64 = 0.2;
/// The scheduler takes a worker for dead after 5 s of silence.
const STALL_GAP: Duration = Duration::from_secs(7);

impl Drill<'_> {
    /// Every row of this file.
    pub(super) async fn worker_faults(&mut self) -> anyhow::Result<()> {
        self.killed_decode().await?;
        self.killed_prefill().await?;
        self.frozen_decode().await?;
        self.cut_off_from_scheduler().await?;
        self.cut_off_from_prefill().await?;
        self.damaged_pieces().await?;
        self.failing_decode().await?;
        self.rolling_restart().await?;
        self.killed_scheduler().await
    }

    pub(super) fn load(&self, clients: usize) -> Load {
        Load::start(&self.site.client, &self.questions, clients)
    }

    /// A moment between two faults, a little different with each seed.
    async fn moment(&mut self, planned: f64, least: f64) {
        let part = self.rng.random_range(0.7..1.3);
        sleep(self.lasting(planned, least).mul_f64(part)).await;
    }

    /// Stops the load, waits until nothing is held, and judges both.
    pub(super) async fn judge(&mut self, id: &'static str, done: &str, load: Load, gap_max: Option<Duration>) -> Tally {
        let tally = load.stop().await;
        let settled = self.site.settled(LEASE).await;
        let slow = gap_max.is_some_and(|max| tally.worst_gap > max);
        let mut criterion = "0 changed, 0 failed".to_owned();
        if let Some(max) = gap_max {
            criterion += &format!(", gap < {} s", max.as_secs());
        }
        let reclaimed = settled.map_or("blocks still held after 10 s".to_owned(), |took| {
            self.verdict.seconds("longest reclaim after a phase, s", took);
            format!("all blocks back after {:.2} s", took.as_secs_f64())
        });
        let pass = tally.is_clean() && settled.is_some() && !slow;
        let measured = format!("{}, {reclaimed}", tally.describe());
        self.verdict.examples.extend(tally.examples.clone());
        self.verdict.row(Row { id, done: done.to_owned(), criterion: criterion + ", blocks back", measured, pass });
        tally
    }

    async fn killed_decode(&mut self) -> anyhow::Result<()> {
        self.say("F1: 16 clients; SIGKILL decode-0, then decode-1");
        let load = self.load(CLIENTS);
        for victim in ["decode-0", "decode-1"] {
            self.moment(8.0, 1.0).await;
            let old = self.site.signal(victim, Signal::KILL)?;
            self.site.restarted(victim, old).await?;
        }
        self.moment(8.0, 1.0).await;
        let tally = self.judge("F1", "SIGKILL both decode instances, one after the other", load, Some(KILL_GAP)).await;
        self.verdict.seconds("worst gap after SIGKILL, s", tally.worst_gap);
        Ok(())
    }

    async fn killed_prefill(&mut self) -> anyhow::Result<()> {
        self.say("F6: SIGKILL prefill-0 three times while it pushes");
        let load = self.load(CLIENTS);
        for _ in 0..3 {
            self.moment(6.0, 0.7).await;
            let old = self.site.signal("prefill-0", Signal::KILL)?;
            self.site.restarted("prefill-0", old).await?;
        }
        self.moment(4.0, 0.7).await;
        self.judge("F6", "SIGKILL prefill-0 three times", load, Some(KILL_GAP)).await;
        Ok(())
    }

    async fn frozen_decode(&mut self) -> anyhow::Result<()> {
        let frozen = self.lasting(15.0, 8.0);
        self.say(&format!("F2: SIGSTOP decode-0 for {:.0} s, then SIGCONT", frozen.as_secs_f64()));
        let load = self.load(CLIENTS);
        self.moment(4.0, 1.0).await;
        self.site.signal("decode-0", Signal::STOP)?;
        sleep(frozen).await;
        self.site.signal("decode-0", Signal::CONT)?;
        self.site.ready().await?;
        self.moment(4.0, 1.0).await;
        let tally = self.judge("F2", "SIGSTOP decode-0, later SIGCONT", load, Some(STALL_GAP)).await;
        self.verdict.seconds("worst gap after SIGSTOP, s", tally.worst_gap);
        Ok(())
    }

    async fn cut_off_from_scheduler(&mut self) -> anyhow::Result<()> {
        self.say("F12: scheduler and decode-1 cannot reach each other for a while");
        let load = self.load(CLIENTS);
        self.moment(4.0, 1.0).await;
        let worker = self.site.worker("decode-1")?;
        worker.on_control(Fault::Hold);
        let cut = Instant::now();
        // Its work is nobody's any more: it has to give it up by itself.
        while worker.held().await?.leased > 0.0 && cut.elapsed() < LEASE {
            sleep(Duration::from_millis(50)).await;
        }
        let gave_up = cut.elapsed();
        sleep(self.lasting(10.0, 8.0).saturating_sub(gave_up)).await;
        worker.on_control(Fault::None);
        self.site.ready().await?;
        self.moment(3.0, 1.0).await;
        self.verdict.seconds("cut-off worker gave its blocks back after, s", gave_up);
        self.judge("F12", "partition scheduler - decode-1, healed", load, Some(STALL_GAP)).await;
        Ok(())
    }

    async fn cut_off_from_prefill(&mut self) -> anyhow::Result<()> {
        self.say("F13: no KV reaches decode-0 for a while");
        let load = self.load(CLIENTS);
        self.moment(3.0, 1.0).await;
        self.site.worker("decode-0")?.on_kv(Fault::Hold);
        sleep(self.lasting(12.0, 8.0)).await;
        self.site.worker("decode-0")?.on_kv(Fault::None);
        self.moment(3.0, 1.0).await;
        self.judge("F13", "partition prefill - decode-0, healed", load, Some(STALL_GAP)).await;
        Ok(())
    }

    async fn damaged_pieces(&mut self) -> anyhow::Result<()> {
        self.say("F9: bits flipped in KV on its way, then KV connections cut");
        let load = self.load(CLIENTS);
        let before = self.refusals().await?;
        self.every_kv_link(Fault::FlipEvery(512 << 10));
        self.moment(10.0, 3.0).await;
        self.until_damaged(0).await;
        self.every_kv_link(Fault::None);
        let flipped = self.damaged();
        let detected = self.refusals().await? - before;
        self.every_kv_link(Fault::CutEvery(2 << 20));
        self.moment(10.0, 3.0).await;
        self.until_damaged(flipped).await;
        self.every_kv_link(Fault::None);
        let cut = self.damaged() - flipped;
        self.judge("F9", "damaged and cut KV connections", load, Some(KILL_GAP)).await;
        let measured = format!("{flipped} bits flipped, {detected} times refused; {cut} connections cut");
        let pass = flipped > 0 && cut > 0 && detected >= flipped as f64;
        let (done, criterion) = ("each flipped bit is noticed".to_owned(), "refused >= flipped".to_owned());
        self.verdict.row(Row { id: "F9", done, criterion, measured, pass });
        Ok(())
    }

    async fn failing_decode(&mut self) -> anyhow::Result<()> {
        self.say("F24: every hand-over to decode-0 fails for a while");
        let load = self.load(CLIENTS);
        self.moment(4.0, 1.0).await;
        let before = self.site.retries().await?;
        let worker = self.site.worker("decode-0")?;
        worker.on_kv(Fault::CutEvery(1));
        sleep(self.lasting(12.0, 8.0)).await;
        let retries = self.site.retries().await? - before;
        worker.on_kv(Fault::None);
        let (healed, mut used) = (Instant::now(), false);
        while !used && healed.elapsed() < LEASE {
            sleep(Duration::from_millis(50)).await;
            used = worker.held().await?.running > 0.0;
        }
        let tally = self.judge("F24", "each hand-over to decode-0 fails, then none", load, Some(KILL_GAP)).await;
        let measured = format!("{retries} retries at {} requests; used again: {used}", tally.whole);
        let pass = used && retries > 0.0 && retries <= RETRIES_PER_REQUEST_MAX * tally.whole as f64;
        let (done, criterion) = ("work done twice meanwhile".to_owned(), "retries <= 20 % of requests".to_owned());
        self.verdict.row(Row { id: "F24", done, criterion, measured, pass });
        Ok(())
    }

    fn every_kv_link(&self, fault: Fault) {
        self.site.decodes().for_each(|worker| worker.on_kv(fault));
    }

    /// Waits, not for ever, until more than `before` was damaged: how soon enough KV passes depends on the machine.
    async fn until_damaged(&self, before: u64) {
        for _ in 0..100 {
            if self.damaged() > before {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn damaged(&self) -> u64 {
        self.site.decodes().map(super::cluster::Worker::damaged).sum()
    }

    /// Pieces that were not believed, and connections that ended over bytes that made no sense.
    async fn refusals(&self) -> anyhow::Result<f64> {
        Ok(self.site.count("pdserve_refused_pieces_total").await?
            + self.site.count("pdserve_kv_connections_lost_total").await?)
    }

    async fn rolling_restart(&mut self) -> anyhow::Result<()> {
        self.say("F15, F17: 64 clients; SIGTERM each worker in turn");
        let load = self.load(64);
        let full = self.tokens_per_second(&load, self.lasting(5.0, 2.0)).await;
        let (mut slowest, mut bad_exits) = (f64::INFINITY, 0);
        for role in self.site.names().split_off(1) {
            let (started, before) = (Instant::now(), load.tokens());
            let bad = self.site.bad_exits(&role);
            let old = self.site.signal(&role, Signal::TERM)?;
            self.site.restarted(&role, old).await?;
            // A step that was over at once says nothing about throughput.
            sleep(Duration::from_secs(2).saturating_sub(started.elapsed())).await;
            slowest = slowest.min((load.tokens() - before) as f64 / started.elapsed().as_secs_f64());
            bad_exits += self.site.bad_exits(&role) - bad;
        }
        self.judge("F17", "SIGTERM all four workers in turn, 64 clients", load, None).await;
        let share = 100.0 * slowest / full.max(1.0);
        let measured =
            format!("{bad_exits} of 4 ended with another code than 0; slowest step {share:.0} % of full speed");
        let (done, criterion) = ("drained workers exit 0".to_owned(), "all 0, speed >= 60 %".to_owned());
        self.verdict.row(Row { id: "F15", done, criterion, measured, pass: bad_exits == 0 && share >= 60.0 });
        Ok(())
    }

    async fn tokens_per_second(&self, load: &Load, during: Duration) -> f64 {
        sleep(Duration::from_secs(1)).await;
        let before = load.tokens();
        sleep(during).await;
        (load.tokens() - before) as f64 / during.as_secs_f64()
    }

    async fn killed_scheduler(&mut self) -> anyhow::Result<()> {
        self.say("F16: SIGKILL the scheduler under 16 streams");
        let body = json!({"prompt": "Tell me everything.", "max_tokens": 800, "temperature": 0, "ignore_eos": true});
        let streams: Vec<_> = (0..16)
            .map(|_| {
                let (client, body) = (self.site.client.clone(), body.clone());
                tokio::spawn(async move { client.complete(&body, || {}).await.end })
            })
            .collect();
        sleep(Duration::from_millis(700)).await;
        let old = self.site.signal("scheduler", Signal::KILL)?;
        let killed = Instant::now();
        let mut cut = 0;
        for stream in streams {
            cut += usize::from(matches!(stream.await.context("a stream's task ended")?, End::Failed(_)));
        }
        let question = &self.questions[0];
        let served = loop {
            let seen = self.site.client.complete(&question.body, || {}).await;
            if seen.end == End::Whole(question.answer.clone()) || killed.elapsed() > 4 * RECONNECT {
                break killed.elapsed();
            }
            sleep(Duration::from_millis(20)).await;
        };
        self.site.restarted("scheduler", old).await?;
        let settled = self.site.settled(LEASE).await;
        self.verdict.seconds("served again after the scheduler's SIGKILL, s", served);
        let measured = format!(
            "{cut}/16 streams ended as cut, none as whole; served after {:.2} s; blocks back: {}",
            served.as_secs_f64(),
            settled.is_some()
        );
        let (done, criterion) = ("SIGKILL the scheduler".to_owned(), "16/16 cut, served < 6 s, blocks back".to_owned());
        let pass = cut == 16 && served < RECONNECT && settled.is_some();
        self.verdict.row(Row { id: "F16", done, criterion, measured, pass });
        Ok(())
    }
}
