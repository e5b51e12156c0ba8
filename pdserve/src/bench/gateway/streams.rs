//! Open streams: users that read token after token, and what relaying a token costs the scheduler.
//!
//! The workers send a stream's next token when its reader has got the last one (or so many ahead), so the load is as high as the
//! machine bears and nothing piles up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::mock::{self, Streams};
use super::process::Gateway;
use super::server::Processor;
use super::sockets::Sockets;
use super::{Bench, Found};
use crate::bench::report::Table;
use crate::bench::serve::Chunk;
use crate::bench::stats::median;
use crate::sse::Events;
use crate::web::{self, Web};

/// Tokens of a stream: more than it gets in any window.
const TOKENS: u32 = 1 << 18;
const OPEN_MAX: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_millis(300);
/// Streams that are opened at once; many more would fill the queue to the one prefill instance.
const OPENING: usize = 128;
/// A stream without a token for so long is an error.
const SILENCE_MAX: Duration = Duration::from_secs(20);

const COLUMNS: [&str; 7] = ["tok/s per core", "us/tok", "kernel %", "of best", "tok/s", "of best", "tokens/event"];
/// A reader that keeps up, one that lags, and the limit.
const SENDERS: [Sender; 3] = [Sender::Scheduler { ahead: 1 }, Sender::Scheduler { ahead: 8 }, Sender::Sockets];

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    /// The scheduler, when so many tokens of each stream may be under way.
    Scheduler { ahead: u32 },
    /// A thread that knows nothing but sockets: the machine's limit.
    Sockets,
}

/// How many streams, and what is at their other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    streams: usize,
    sender: Sender,
}

/// What came through in some time.
#[derive(Clone, Copy, Debug)]
struct Relayed {
    tokens: f64,
    events: f64,
    seconds: f64,
    /// Of the scheduler.
    processor: Processor,
}

#[derive(Debug, Default)]
struct Counts {
    opened: AtomicU64,
    tokens: AtomicU64,
    events: AtomicU64,
}

/// Every number of streams once per round.
pub(super) async fn measure(bench: &Bench) -> anyhow::Result<Found> {
    let numbers = bench.args.streams.iter().copied().map(usize::from);
    let shapes = SENDERS.into_iter().flat_map(|sender| numbers.clone().map(move |streams| Shape { streams, sender }));
    let mut rows: Vec<(Shape, Vec<Relayed>)> = shapes.map(|shape| (shape, Vec::new())).collect();
    for _ in bench.rounds("streams") {
        for (shape, rounds) in &mut rows {
            rounds.push(shape.run(&bench.gateway, bench.time()).await?);
        }
    }
    let title = format!("streams: tokens relayed to open streams, medians of {} round(s)", bench.args.rounds);
    let mut table = Table::new(title, COLUMNS);
    for (shape, rounds) in &rows {
        let rivals: Vec<_> = rows.iter().filter(|(rival, _)| rival.sender == shape.sender).collect();
        let rivals: Vec<_> = rivals.iter().map(|(_, rounds)| &rounds[..]).collect();
        table.row(shape.name(), values(rounds, &rivals));
    }
    let details = rows.iter().map(|(shape, rounds)| (shape.name(), rounds.iter().map(Relayed::json).collect()));
    Ok(Found { name: "streams", tables: vec![table], notes: Vec::new(), rounds: Value::Object(details.collect()) })
}

/// Medians; shares are of the best of `rivals` in the same round.
fn values(rounds: &[Relayed], rivals: &[&[Relayed]]) -> Vec<Option<f64>> {
    let over = |of: &dyn Fn(&Relayed) -> Option<f64>| median(&rounds.iter().filter_map(of).collect::<Vec<_>>());
    let share = |of: &dyn Fn(&Relayed) -> Option<f64>| {
        let shares = rounds.iter().enumerate().filter_map(|(round, own)| {
            let best = rivals.iter().filter_map(|rival| of(rival.get(round)?)).reduce(f64::max)?;
            Some(of(own)? / best)
        });
        median(&shares.collect::<Vec<_>>())
    };
    vec![
        over(&Relayed::per_core),
        over(&|relayed| Some(1e6 / relayed.per_core()?)),
        over(&|relayed| relayed.processor.kernel_percent()),
        share(&Relayed::per_core),
        over(&Relayed::per_second),
        share(&Relayed::per_second),
        over(&|relayed| (relayed.events > 0.0).then(|| relayed.tokens / relayed.events)),
    ]
}

impl Shape {
    fn name(self) -> String {
        match self.sender {
            Sender::Scheduler { ahead: 1 } => format!("{} streams", self.streams),
            Sender::Scheduler { ahead } => format!("{} streams, {ahead} ahead", self.streams),
            Sender::Sockets => format!("{} streams, sockets alone", self.streams),
        }
    }

    async fn run(self, gateway: &Gateway, time: Duration) -> anyhow::Result<Relayed> {
        match self.sender {
            Sender::Scheduler { ahead } => run(gateway, self.streams, ahead, time).await,
            Sender::Sockets => run_sockets(self.streams, time).await,
        }
    }
}

impl Relayed {
    fn per_core(&self) -> Option<f64> {
        self.processor.per_second(self.tokens)
    }

    fn per_second(&self) -> Option<f64> {
        Some(self.tokens / self.seconds)
    }

    fn json(&self) -> Value {
        json!({
            "tokens": self.tokens, "events": self.events, "seconds": self.seconds, "processor": self.processor.json(),
        })
    }
}

/// The same with nothing between sockets.
async fn run_sockets(streams: usize, time: Duration) -> anyhow::Result<Relayed> {
    let sockets = Sockets::open(streams).await?;
    sleep(SETTLE).await;
    let (from, before) = (Instant::now(), sockets.look()?);
    sleep(time).await;
    let (until, after) = (Instant::now(), sockets.look()?);
    let events = (after.0 - before.0) as f64;
    ensure!(events > 0.0, "nothing came over {streams} bare sockets");
    Ok(Relayed { tokens: events, events, seconds: (until - from).as_secs_f64(), processor: after.1.since(before.1) })
}

/// Opens the streams, measures for some time, closes them.
async fn run(gateway: &Gateway, count: usize, ahead: u32, time: Duration) -> anyhow::Result<Relayed> {
    let (counts, web, mut readers) = (Arc::new(Counts::default()), web::client(None)?, JoinSet::new());
    let opening = Arc::new(Semaphore::new(OPENING));
    for number in 0..count {
        let opening = opening.clone().acquire_owned().await?;
        let reader = Reader { number, ahead, counts: counts.clone(), streams: gateway.streams.clone() };
        readers.spawn(reader.read(web.clone(), gateway.server.url.clone(), opening));
    }
    opened(&mut readers, &counts, count as u64).await?;
    let before = (Instant::now(), counts.look(), gateway.server.processor()?);
    sleep(time).await;
    let (until, (tokens, events)) = (Instant::now(), counts.look());
    let relayed = Relayed {
        tokens: (tokens - before.1.0) as f64,
        events: (events - before.1.1) as f64,
        seconds: (until - before.0).as_secs_f64(),
        processor: gateway.server.processor()?.since(before.2),
    };
    if let Some(ended) = readers.try_join_next() {
        ended??;
        bail!("a stream ended while it was measured");
    }
    readers.shutdown().await;
    // The next streams need the places of these.
    sleep(SETTLE).await;
    Ok(relayed)
}

/// Until every stream has a token, and a little longer.
async fn opened(readers: &mut JoinSet<anyhow::Result<()>>, counts: &Counts, streams: u64) -> anyhow::Result<()> {
    let until = Instant::now() + OPEN_MAX;
    while counts.opened.load(Ordering::Relaxed) < streams {
        if let Some(ended) = readers.try_join_next() {
            ended?.context("opening a stream")?;
        }
        ensure!(Instant::now() < until, "{streams} streams were not open within {} s", OPEN_MAX.as_secs());
        sleep(Duration::from_millis(5)).await;
    }
    sleep(SETTLE).await;
    Ok(())
}

impl Counts {
    fn look(&self) -> (u64, u64) {
        (self.tokens.load(Ordering::Relaxed), self.events.load(Ordering::Relaxed))
    }
}

struct Reader {
    number: usize,
    ahead: u32,
    counts: Arc<Counts>,
    streams: Streams,
}

impl Reader {
    /// Until it is dropped. Gives `opening` back with the first token.
    async fn read(self, web: Web, url: String, opening: OwnedSemaphorePermit) -> anyhow::Result<()> {
        let fields = json!({ "prompt": "Go on.", "max_tokens": TOKENS, "ignore_eos": true, "stream": true });
        let request = Request::post(format!("{url}/v1/completions"))
            .header("content-type", "application/json")
            .header("x-request-id", mock::stream_id(self.number, self.ahead))
            .body(Full::<Bytes>::from(fields.to_string()))?;
        let answer = web.request(request).await?;
        ensure!(answer.status().is_success(), "a stream was answered {}", answer.status());
        let (mut body, mut events, mut received, mut opening) =
            (answer.into_body(), Events::default(), 0, Some(opening));
        loop {
            let (tokens, chunks) = next(&mut body, &mut events).await?;
            // The first token is P's, and D sends by itself what may be under way.
            let first = u64::from(received == 0 && tokens > 0);
            received += tokens;
            opening = opening.filter(|_| received == 0);
            self.counts.opened.fetch_add(first, Ordering::Relaxed);
            self.counts.tokens.fetch_add(tokens, Ordering::Relaxed);
            self.counts.events.fetch_add(chunks, Ordering::Relaxed);
            self.streams.send(self.number, (tokens - first) as u32);
        }
    }
}

/// Tokens and events that came next. Every token is one character.
async fn next(body: &mut Incoming, events: &mut Events) -> anyhow::Result<(u64, u64)> {
    let frame = timeout(SILENCE_MAX, body.frame()).await.context("a stream fell silent")?;
    let frame = frame.context("a stream ended")??;
    let (mut tokens, mut chunks) = (0, 0);
    if let Ok(bytes) = frame.into_data() {
        events.push(&bytes, |data| {
            if data == "[DONE]" {
                bail!("a stream had no more tokens");
            }
            let chunk: Chunk = serde_json::from_str(data).with_context(|| format!("in a stream: {data}"))?;
            if let Some(error) = &chunk.error {
                bail!("in a stream: {error}");
            }
            tokens += chunk.text().map(|text| text.chars().count() as u64).sum::<u64>();
            chunks += 1;
            Ok(())
        })?;
    }
    Ok((tokens, chunks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_best_in_the_same_round() {
        let processor = Processor { seconds: 0.5, kernel: 0.25 };
        let relayed = |tokens: f64| Relayed { tokens, events: tokens, seconds: 1.0, processor };
        let (few, many) = ([relayed(10.0), relayed(100.0)], [relayed(8.0), relayed(50.0)]);
        let values = values(&many, &[&few, &many]);
        assert_eq!(values, [58.0, 36250.0, 50.0, 0.65, 29.0, 0.65, 1.0].map(Some));
    }
}
