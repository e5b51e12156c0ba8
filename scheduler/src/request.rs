//! The life of a request, told from top to bottom: admitted, routed, reserved, prefilling, transferring, decoding, finished.
//!
//! The request lives here, not on a worker: an attempt that fails at any stage is followed by another one elsewhere, which goes on
//! from the tokens that the client already has. Every attempt has its own epoch; whatever an attempt holds on a worker is a guard.

mod error;
mod routing;
mod scores;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use proto::control;
use telemetry::SchedulerMetrics;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use types::{Pooling, RequestId, RequestKey, SampledToken, SamplingParams, Stage, TokenId};

use crate::admission::Admission;
use crate::answer::{Answer, Style};
use crate::cluster::{Booked, Cluster};
use crate::leg::Leg;
use crate::link::{Connection, Event, Failure, Link};
use crate::output::Writer;
use crate::pairing::Route;
use error::{Broken, Taken, at};
use scores::Scores;

pub(crate) use error::RequestError;

/// One prompt and its choices, validated.
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) prompt: Arc<[TokenId]>,
    pub(crate) choices: u32,
    /// Number of its first choice in the client's answer.
    pub(crate) first_index: u32,
    pub(crate) sampling: SamplingParams,
    /// Hashed; empty = shared.
    pub(crate) cache_salt: Vec<u8>,
    pub(crate) style: Style,
    /// Make a vector of the prompt instead of generating.
    pub(crate) embed: Option<Pooling>,
    pub(crate) arrived: Instant,
    /// Attempts in all.
    pub(crate) attempts: u32,
    /// Go this way and no other (canaries).
    pub(crate) via: Option<Route>,
}

impl Request {
    /// Which prompt of the client's request this is.
    pub(crate) fn number(&self) -> u32 {
        self.first_index / self.choices.max(1)
    }
}

/// Serves one request to its end; dropping the future cancels it on every worker.
pub(crate) async fn serve(
    cluster: &Arc<Cluster>,
    admission: &Admission,
    metrics: &SchedulerMetrics,
    request: &Request,
    writer: &Writer,
) -> Result<(), RequestError> {
    let (epochs, model, first_token) = (AtomicU32::new(0), OnceLock::new(), OnceLock::new());
    let scored = if request.sampling.prompt_logprobs.is_some() { request.prompt.len() } else { 0 };
    let scores = Scores::new(scored.saturating_sub(1));
    let packed = proto::pack(&request.prompt);
    let story = Story { cluster, admission, metrics, request, packed, writer, epochs, model, first_token, scores };
    story.tell().await
}

struct Story<'a> {
    cluster: &'a Arc<Cluster>,
    admission: &'a Admission,
    metrics: &'a SchedulerMetrics,
    request: &'a Request,
    /// The prompt as every message to a worker has it.
    packed: Bytes,
    writer: &'a Writer,
    epochs: AtomicU32,
    /// Digest of the model that the first attempt ran on; no other may continue its text.
    model: OnceLock<String>,
    first_token: OnceLock<Instant>,
    scores: Scores,
}

/// The way of one attempt. Dropping it gives its share of the instances back.
struct Path {
    booked: Booked,
    prefill: Option<Arc<Connection>>,
    decode: Arc<Connection>,
    key: RequestKey,
}

impl Story<'_> {
    async fn tell(&self) -> Result<(), RequestError> {
        let Request { id, prompt, choices, .. } = self.request;
        debug!(request_id = %id, stage = %Stage::Admitted, prompt_tokens = prompt.len(), choices, "admitted");
        self.cluster.admitted();
        let mut legs = vec![Leg::new(self.answers())];
        let mut tokens = 0;
        // One attempt after the other, until the choices go on by themselves.
        while legs.len() == 1
            && let Some(leg) = legs.pop()
        {
            let (leg, outcome) = self.attempt(leg).await;
            tokens += leg.finished_tokens();
            if let Err(broken) = outcome {
                legs = self.again(leg, broken)?;
            }
        }
        tokens += self.side_by_side(legs).await?;
        let seconds = self.request.arrived.elapsed().as_secs_f64();
        let since_first = self.first_token.get().map_or(Duration::ZERO, Instant::elapsed);
        self.metrics.finished(tokens as u64, self.request.arrived.elapsed(), since_first);
        info!(request_id = %id, stage = %Stage::Finished, prompt_tokens = prompt.len(), output_tokens = tokens, seconds, "finished");
        Ok(())
    }

    /// Choices that go on by themselves. Returns the tokens of those that ended well.
    async fn side_by_side(&self, legs: Vec<Leg>) -> Result<usize, RequestError> {
        if legs.is_empty() {
            return Ok(0);
        }
        let mut tokens = 0;
        let mut attempts: FuturesUnordered<_> = legs.into_iter().map(|leg| self.attempt(leg)).collect();
        while let Some((leg, outcome)) = attempts.next().await {
            tokens += leg.finished_tokens();
            if let Err(broken) = outcome {
                attempts.extend(self.again(leg, broken)?.into_iter().map(|leg| self.attempt(leg)));
            }
        }
        Ok(tokens)
    }

    fn answers(&self) -> Vec<Answer> {
        let answer = |choice| Answer::new(choice, self.request.first_index + choice, self.request.style.clone());
        (0..self.request.choices).map(answer).collect()
    }

    /// The work of an attempt; what earlier ones told of the prompt is not asked again.
    fn spec(&self, leg: &Leg) -> control::Spec {
        let mut spec = leg.spec(self.request);
        if self.scores.are_complete() {
            spec.sampling.prompt_logprobs = None;
        }
        proto::spec_of(&spec, self.packed.clone())
    }

    /// What follows a failed attempt.
    fn again(&self, mut leg: Leg, broken: Broken) -> Result<Vec<Leg>, RequestError> {
        let (stage, failure) = match broken {
            Broken::Attempt(stage, failure) => (stage, failure),
            Broken::Request(error) => return Err(error),
        };
        warn!(request_id = %self.request.id, epoch = leg.epoch, %stage, %failure, "attempt failed");
        leg.blame(&failure, self.cluster)?;
        self.metrics.retried(stage);
        let attempts = leg.failures;
        let legs = leg.split();
        if attempts >= self.request.attempts && !legs.is_empty() {
            return Err(RequestError::Attempts { attempts });
        }
        Ok(legs)
    }

    async fn attempt(&self, mut leg: Leg) -> (Leg, Result<(), Broken>) {
        leg.epoch = self.epochs.fetch_add(1, Ordering::Relaxed);
        leg.found.clear();
        let outcome = self.stages(&mut leg).await;
        (leg, outcome)
    }

    async fn stages(&self, leg: &mut Leg) -> Result<(), Broken> {
        let mut path = self.routed(leg).await?;
        let _running = self.metrics.running();
        if let Some(pooling) = self.request.embed {
            return self.embedding(leg, &mut path, pooling).await;
        }
        let Some(prefill) = path.prefill.clone() else {
            return self.computing_locally(leg, &mut path).await;
        };
        let (mut decode, ticket) = self.reserved(leg, &path).await.map_err(at(Stage::Reserved))?;
        let (prefill, first) = self.prefilling(leg, &mut path, &prefill, &mut decode, ticket).await?;
        if leg.is_finished() {
            self.cluster.succeeded(path.booked.route());
            return Ok(());
        }
        self.transferring(leg, &mut decode, first).map_err(at(Stage::Transferring))?;
        self.decoding(leg, &mut path, &mut decode, Some(prefill)).await
    }

    // ---- 2 Routed: see `routing`
    // ---- 3 Reserved

    /// D sets blocks aside; its ticket tells P where to send what D lacks.
    async fn reserved(&self, leg: &Leg, path: &Path) -> Result<(Link, Bytes), Failure> {
        let mut decode = path.decode.link(path.key.clone())?;
        decode.reserve(self.spec(leg))?;
        match decode.next().await? {
            Event::Reserved(reserved) => {
                debug!(request_id = %path.key.request, stage = %Stage::Reserved, cached_tokens = reserved.cached_tokens, lease_ms = reserved.lease_ms, "reserved");
                Ok((decode, reserved.ticket))
            }
            other => Err(decode.unexpected(other.name(), "Reserved")),
        }
    }

    // ---- 4 Prefilling

    /// P computes the prompt; its first tokens go to the client at once, and to D in the next stage.
    async fn prefilling(
        &self,
        leg: &mut Leg,
        path: &mut Path,
        connection: &Arc<Connection>,
        decode: &mut Link,
        ticket: Bytes,
    ) -> Result<(Link, Vec<control::Token>), Broken> {
        let failed = at(Stage::Prefilling);
        let mut prefill = connection.link(path.key.clone()).map_err(&failed)?;
        prefill.prefill(self.spec(leg), ticket).map_err(&failed)?;
        let first = loop {
            match next_of_pair(&mut prefill, decode).await.map_err(&failed)? {
                Event::PromptScores(scores) => self.scored(&prefill, scores).map_err(&failed)?,
                Event::FirstTokens(first) if first.tokens.len() == leg.first_tokens(self.request) => break first,
                Event::FirstTokens(first) => {
                    let what = format!("FirstTokens with {} tokens", first.tokens.len());
                    return Err(failed(prefill.unexpected(what, "one token per choice")));
                }
                other => return Err(failed(prefill.unexpected(other.name(), "FirstTokens"))),
            }
        };
        path.booked.computed();
        self.computed(leg, path, &first.stats.unwrap_or_default());
        if self.request.sampling.beam.is_none() {
            self.take(leg, &prefill, &first.tokens).map_err(|broken| broken.during(Stage::Prefilling))?;
        }
        Ok((prefill, first.tokens))
    }

    /// Tells the client, once they are complete, how likely the prompt's tokens are.
    fn scored(&self, from: &Link, message: control::PromptScores) -> Result<(), Failure> {
        let gap = |gap: scores::Gap| from.unexpected(gap.to_string(), "the next score");
        if let Some(scores) = self.scores.add(message).map_err(gap)? {
            self.writer.scored(self.request.number(), scores);
        }
        Ok(())
    }

    /// Learns from what computing the prompt took, wherever that was.
    fn computed(&self, leg: &Leg, path: &Path, stats: &control::PrefillStats) {
        let (queued, computed) = (Duration::from_micros(stats.queue_us), Duration::from_micros(stats.compute_us));
        debug!(request_id = %path.key.request, stage = %Stage::Prefilling, cached_tokens = stats.cached_tokens, ?queued, ?computed, "prompt computed");
        if !leg.has_output() {
            let (prompt, cached) = (self.request.prompt.len() as u64, u64::from(stats.cached_tokens));
            self.metrics.prefilled(prompt, cached.min(prompt), queued, computed);
            self.writer.add_cached_tokens(stats.cached_tokens);
        }
    }

    /// A prompt of which only a vector is wanted ends here, on P or, without one, on D.
    async fn embedding(&self, leg: &Leg, path: &mut Path, pooling: Pooling) -> Result<(), Broken> {
        let failed = at(Stage::Prefilling);
        let connection = path.prefill.clone().unwrap_or_else(|| path.decode.clone());
        let mut link = connection.link(path.key.clone()).map_err(&failed)?;
        link.embed(self.spec(leg), pooling).map_err(&failed)?;
        let embedding = match link.next().await.map_err(&failed)? {
            Event::Embedding(embedding) => embedding,
            other => return Err(failed(link.unexpected(other.name(), "Embedding"))),
        };
        link.settle();
        path.booked.computed();
        self.computed(leg, path, &embedding.stats.unwrap_or_default());
        self.writer.embedded(self.request.number(), embedding.values);
        Ok(())
    }

    // ---- 5 Transferring

    /// D may go on as soon as the KV has landed. A choice that ended with its first token stays out.
    fn transferring(&self, leg: &Leg, decode: &mut Link, first: Vec<control::Token>) -> Result<(), Failure> {
        let unfinished = |token: &control::Token| {
            leg.answers.iter().any(|answer| answer.choice == token.choice && !answer.is_finished())
        };
        let first: Vec<control::Token> = first.into_iter().filter(unfinished).collect();
        // The spec is that of the reservation: without the first tokens, which stand beside it.
        let mut spec = self.spec(leg);
        spec.output.truncate(first.first().map_or(0, |token| token.position as usize));
        decode.generate(spec, first)
    }

    /// No hand-over: D computes the prompt itself.
    async fn computing_locally(&self, leg: &mut Leg, path: &mut Path) -> Result<(), Broken> {
        let failed = at(Stage::Prefilling);
        let mut decode = path.decode.link(path.key.clone()).map_err(&failed)?;
        decode.generate(self.spec(leg), Vec::new()).map_err(&failed)?;
        self.decoding(leg, path, &mut decode, None).await
    }

    // ---- 6 Decoding

    /// Tokens flow from D until every choice has ended. `prefill` is P as long as it has not said that D has everything.
    async fn decoding(
        &self,
        leg: &mut Leg,
        path: &mut Path,
        decode: &mut Link,
        mut prefill: Option<Link>,
    ) -> Result<(), Broken> {
        let mut landed = false;
        while !leg.is_finished() {
            let shipped = async {
                match prefill.as_mut() {
                    Some(prefill) => prefill.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = decode.next() => {
                    let stage = if landed || path.prefill.is_none() { Stage::Decoding } else { Stage::Transferring };
                    let tokens = match event.map_err(at(stage))? {
                        Event::Tokens(tokens) => tokens,
                        Event::PromptScores(scores) => {
                            self.scored(decode, scores).map_err(at(stage))?;
                            continue;
                        }
                        other => return Err(at(stage)(decode.unexpected(other.name(), "Tokens"))),
                    };
                    if !landed {
                        landed = true;
                        self.landed(leg, path, tokens.prefill.as_ref());
                    }
                    let tokens = match self.request.sampling.beam {
                        Some(_) => self.found(leg, decode, tokens.tokens).map_err(at(Stage::Decoding))?,
                        None => tokens.tokens,
                    };
                    self.take(leg, decode, &tokens).map_err(|broken| broken.during(Stage::Decoding))?;
                    cut(leg, decode, &tokens);
                }
                event = shipped => match event {
                    Ok(Event::Shipped(stats)) => {
                        self.shipped(path, &stats);
                        prefill.take().iter_mut().for_each(Link::settle);
                    }
                    Ok(_) => {}
                    // Once D decodes it has everything, and P is not needed any more.
                    Err(_) if landed => prefill = None,
                    Err(failure) => return Err(at(Stage::Transferring)(failure)),
                },
            }
        }
        if leg.answers.iter().all(|answer| answer.ended_by_worker()) {
            decode.settle();
        }
        Ok(())
    }

    /// D's first tokens of this attempt: it holds the prompt.
    fn landed(&self, leg: &Leg, path: &mut Path, stats: Option<&control::PrefillStats>) {
        debug!(request_id = %path.key.request, stage = %Stage::Decoding, decode = %path.decode.instance, "decoding");
        self.cluster.succeeded(path.booked.route());
        if path.prefill.is_none() {
            path.booked.computed();
            self.computed(leg, path, stats.unwrap_or(&control::PrefillStats::default()));
        }
    }

    fn shipped(&self, path: &Path, stats: &control::TransferStats) {
        let Route::Pair { prefill, decode } = path.booked.route() else { return };
        let exposed = Duration::from_micros(stats.exposed_us);
        self.cluster.handed_over(prefill, decode, exposed);
        // D may have had everything already.
        if stats.pieces > 0 {
            self.metrics.handed_over(&telemetry::HandOver {
                transport: &stats.transport,
                bytes: stats.bytes,
                pieces: u64::from(stats.pieces),
                retried_pieces: u64::from(stats.retried_pieces),
                exposed,
            });
        }
        debug!(request_id = %path.key.request, stage = %Stage::Transferring, transport = stats.transport, bytes = stats.bytes,
            blocks_skipped = stats.blocks_skipped, exposed_us = stats.exposed_us, "handed over");
    }

    /// Turns tokens into text for the client.
    fn take(&self, leg: &mut Leg, from: &Link, tokens: &[control::Token]) -> Result<(), Taken> {
        if !self.scores.are_complete() && !tokens.is_empty() {
            return Err(Taken::Unexpected(from.unexpected("a token", "the scores of the prompt before it")));
        }
        for token in tokens {
            let token = SampledToken::from(token.clone());
            let Some(answer) = leg.answers.iter_mut().find(|answer| answer.choice == token.choice) else {
                let what = format!("a token of choice {}", token.choice);
                return Err(Taken::Unexpected(from.unexpected(what, "choices of this attempt")));
            };
            let taken = answer.take(&token, &self.request.sampling);
            let taken =
                taken.map_err(|gap| Taken::Unexpected(from.unexpected(gap.to_string(), "the next position")))?;
            let Some(piece) = taken else { continue };
            self.count(answer);
            self.writer.push(piece).map_err(Taken::Request)?;
        }
        Ok(())
    }

    /// The texts that a beam search found, once all are here; nothing before.
    fn found(&self, leg: &mut Leg, from: &Link, tokens: Vec<control::Token>) -> Result<Vec<control::Token>, Failure> {
        leg.found.extend(tokens);
        let most = leg.answers.len().saturating_mul(self.request.sampling.max_tokens as usize);
        if leg.found.len() > most {
            return Err(from.unexpected("more tokens than were asked for", "the texts that were found"));
        }
        let ended = leg.found.iter().filter(|token| token.finish() != control::Finish::None).count();
        if ended < leg.answers.len() { Ok(Vec::new()) } else { Ok(std::mem::take(&mut leg.found)) }
    }

    fn count(&self, answer: &mut Answer) {
        let now = Instant::now();
        match answer.last_at.replace(now) {
            None => {
                self.first_token.get_or_init(|| now);
                self.metrics.first_token(now - self.request.arrived);
            }
            Some(before) => self.metrics.next_token(now - before),
        }
        if let Some(finish) = answer.finish() {
            self.metrics.choice_finished(finish.reason());
        }
    }
}

/// What P says next; D has nothing to say before Generate, except that it cannot go on.
async fn next_of_pair(prefill: &mut Link, decode: &mut Link) -> Result<Event, Failure> {
    tokio::select! {
        biased;
        event = prefill.next() => event,
        event = decode.next() => match event {
            Ok(other) => Err(decode.unexpected(other.name(), "nothing before Generate")),
            Err(failure) => Err(failure),
        },
    }
}

/// Ends on D what a stop string ended here, while the other choices go on.
fn cut(leg: &Leg, decode: &Link, tokens: &[control::Token]) {
    let cut_here = |answer: &&Answer| answer.is_finished() && !answer.ended_by_worker();
    for answer in leg.answers.iter().filter(cut_here).filter(|_| !leg.is_finished()) {
        if tokens.iter().any(|token| token.choice == answer.choice) {
            decode.cancel_choice(answer.choice);
        }
    }
}
