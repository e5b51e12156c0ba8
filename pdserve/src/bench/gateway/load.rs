//! Users that send one request after the other, and what a stretch of time in the middle of it came to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::prompts::{Bodies, Kind};
use super::server::{Processor, Server};
use crate::bench::stats::percentile;
use crate::web::{self, Web};

/// Before measuring begins, so that connections and caches are there.
const SETTLE: Duration = Duration::from_millis(300);
/// For one request; longer is an error.
const REQUEST_MAX: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: usize = 1 << 20;
const ERROR_CHARS_MAX: usize = 300;
/// Tokens of every answer: the fewest for which P and D are both needed.
pub(super) const ANSWER_TOKENS: u32 = 2;
/// Between two requests of a probe.
const PROBE_PAUSE: Duration = Duration::from_millis(10);

/// What happened between two moments of a run.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) requests: f64,
    pub(super) seconds: f64,
    /// Of the server.
    pub(super) processor: Processor,
    /// Of the requests that ended in it.
    pub(super) latencies_ms: Vec<f64>,
}

impl Window {
    /// Requests per second of the scheduler's processor time.
    pub(super) fn per_core(&self) -> Option<f64> {
        self.processor.per_second(self.requests)
    }

    pub(super) fn per_second(&self) -> f64 {
        self.requests / self.seconds
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "requests": self.requests, "seconds": self.seconds, "processor": self.processor.json(),
            "ms_p50": self.latency(0.5), "ms_p99": self.latency(0.99),
        })
    }

    pub(super) fn latency(&self, p: f64) -> Option<f64> {
        percentile(&self.latencies_ms, p)
    }
}

/// Requests of one kind, numbered over the whole run so that no prompt comes twice.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) bodies: Arc<Bodies>,
    pub(super) numbers: Arc<AtomicU64>,
}

/// The users of one run; dropping them ends them.
struct Users {
    tasks: JoinSet<anyhow::Result<Vec<(Instant, f64)>>>,
    ended: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// One request.
    pub(super) async fn once(&self, url: &str) -> anyhow::Result<()> {
        self.next(&web::client(None)?, url).await
    }

    /// Measures `users` for some time.
    pub(super) async fn run(&self, server: &Server, users: usize, time: Duration) -> anyhow::Result<Window> {
        Ok(self.run_beside(server, users, time, &[]).await?.0)
    }

    /// The same, with a probe of each of `others` beside it: one user that pauses between requests. Returns their latencies.
    pub(super) async fn run_beside(
        &self,
        server: &Server,
        users: usize,
        time: Duration,
        others: &[Load],
    ) -> anyhow::Result<(Window, Vec<Vec<f64>>)> {
        let mut main = self.users(server, users, None)?;
        let mut probes =
            others.iter().map(|load| load.users(server, 1, Some(PROBE_PAUSE))).collect::<Result<Vec<_>, _>>()?;
        main.settle().await?;
        let (from, requests, processor) = (Instant::now(), main.ended(), server.processor()?);
        sleep(time).await;
        let (until, requests_then) = (Instant::now(), main.ended());
        let processor = server.processor()?.since(processor);
        let latencies_ms = main.finish(from, until).await?;
        let mut probed = Vec::new();
        for probe in &mut probes {
            probed.push(probe.finish(from, until).await?);
        }
        let seconds = (until - from).as_secs_f64();
        let requests = (requests_then - requests) as f64;
        Ok((Window { requests, seconds, processor, latencies_ms }, probed))
    }

    fn users(&self, server: &Server, count: usize, pause: Option<Duration>) -> anyhow::Result<Users> {
        let (ended, stop): (Arc<AtomicU64>, Arc<AtomicBool>) = Default::default();
        let (web, mut tasks) = (web::client(None)?, JoinSet::new());
        for _ in 0..count {
            let (load, web, url) = (self.clone(), web.clone(), server.url.clone());
            tasks.spawn(load.user(web, url, ended.clone(), stop.clone(), pause));
        }
        Ok(Users { tasks, ended, stop })
    }

    /// Sends until told to stop. Returns when each request ended and the milliseconds that it took.
    async fn user(
        self,
        web: Web,
        url: String,
        ended: Arc<AtomicU64>,
        stop: Arc<AtomicBool>,
        pause: Option<Duration>,
    ) -> anyhow::Result<Vec<(Instant, f64)>> {
        let mut done = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            self.next(&web, &url).await?;
            done.push((Instant::now(), start.elapsed().as_secs_f64() * 1e3));
            ended.fetch_add(1, Ordering::Relaxed);
            if let Some(pause) = pause {
                sleep(pause).await;
            }
        }
        Ok(done)
    }

    /// Sends the request whose turn it is.
    async fn next(&self, web: &Web, url: &str) -> anyhow::Result<()> {
        let request = request(&self.bodies, url, self.numbers.fetch_add(1, Ordering::Relaxed))?;
        let asked = timeout(REQUEST_MAX, ask(web, request, self.bodies.kind)).await;
        asked.with_context(|| format!("no answer within {} s", REQUEST_MAX.as_secs()))?
    }
}

fn request(bodies: &Bodies, url: &str, number: u64) -> anyhow::Result<Request<Full<Bytes>>> {
    let uri = format!("{url}{}", bodies.kind.path());
    Ok(match bodies.kind {
        Kind::Health => Request::get(uri).body(Full::default())?,
        _ => Request::post(uri).header("content-type", "application/json").body(Full::from(bodies.body(number)))?,
    })
}

/// Sends a request and checks that its answer has all its tokens.
async fn ask(web: &Web, request: Request<Full<Bytes>>, kind: Kind) -> anyhow::Result<()> {
    let answer = web.request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    let whole = kind == Kind::Health || text.contains(&format!("\"completion_tokens\":{ANSWER_TOKENS}"));
    let shown = || text.chars().take(ERROR_CHARS_MAX).collect::<String>();
    ensure!(status.is_success() && whole, "{} answered {status}: {}", kind.path(), shown());
    Ok(())
}

impl Users {
    fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    /// Until every user has an answer, and a little longer.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + REQUEST_MAX;
        while self.ended() < self.tasks.len() as u64 && Instant::now() < until {
            if let Some(ended) = self.tasks.try_join_next() {
                ended??;
            }
            sleep(Duration::from_millis(5)).await;
        }
        sleep(SETTLE).await;
        Ok(())
    }

    /// Lets every user finish its request. Returns the milliseconds of those that ended in this time.
    async fn finish(&mut self, from: Instant, until: Instant) -> anyhow::Result<Vec<f64>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut latencies = Vec::new();
        while let Some(done) = self.tasks.join_next().await {
            let within = done??.into_iter().filter(|(at, _)| (from..until).contains(at));
            latencies.extend(within.map(|(_, ms)| ms));
        }
        Ok(latencies)
    }
}
