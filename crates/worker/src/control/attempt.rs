//! One attempt at one request as a role sees it: orders come in, replies go out, the engine does the work.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proto::control::{Embedding, FailCode, PromptScores, WorkerMessage, worker_message::Body};
use text::{GrammarError, Grammars, Matcher};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use types::{GenerateSpec, Pooling, RequestKey, SampledToken, SamplingParams, TokenScore};

use crate::engine_thread::RunningJob;
use crate::{EngineHandle, Failure, Goal, Happening, Job};

/// Scores in one message: 150 kB with the most alternatives that a request may ask for, far below the bound on messages.
const SCORES_PER_MESSAGE: usize = 512;

/// What the scheduler asks of an attempt, already checked.
#[derive(Debug)]
pub enum Order {
    Reserve(GenerateSpec),
    Prefill { spec: GenerateSpec, ticket: Bytes },
    Generate { spec: GenerateSpec, first: Vec<SampledToken> },
    Embed { spec: GenerateSpec, pooling: Pooling },
}

impl Order {
    pub fn name(&self) -> &'static str {
        match self {
            Order::Reserve(_) => "Reserve",
            Order::Prefill { .. } => "Prefill",
            Order::Generate { .. } => "Generate",
            Order::Embed { .. } => "Embed",
        }
    }

    /// The failure of an order that makes no sense to this role or at this moment.
    pub fn unexpected(&self, expected: &str) -> Failure {
        Failure::new(FailCode::FailBadRequest, format!("found {}, expected {expected}", self.name()))
    }
}

/// See the module's head. Owned by the task that lives the attempt.
pub struct Attempt {
    pub key: RequestKey,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) replies: Replies,
    pub(super) engine: EngineHandle,
    pub(super) grammars: Grammars,
    pub(super) cancelled: Cancelled,
}

/// Choices that the scheduler cancelled, before or after they were submitted.
pub(super) type Cancelled = Arc<Mutex<Vec<u32>>>;

impl Attempt {
    /// The next order. Waits for ever if none comes: bound it by a lease.
    pub async fn order(&mut self) -> Result<Order, Failure> {
        let gone = || Failure::new(FailCode::FailStale, "the attempt was given up");
        self.orders.recv().await.ok_or_else(gone)
    }

    /// Sends a message to the scheduler, waiting while it is slow. Fails only when the connection is over.
    pub async fn reply(&self, body: Body) -> Result<(), Failure> {
        self.replies.send(body).await
    }

    /// Tells the scores of the prompt's tokens from position `first` on.
    pub async fn reply_scores(&self, first: u32, scores: &[TokenScore]) -> Result<(), Failure> {
        for (part, scores) in scores.chunks(SCORES_PER_MESSAGE).enumerate() {
            let first = first + (part * SCORES_PER_MESSAGE) as u32;
            let scores = scores.iter().map(Into::into).collect();
            self.reply(Body::PromptScores(PromptScores { key: Some((&self.key).into()), first, scores })).await?;
        }
        Ok(())
    }

    /// Lives an attempt that asks for a vector: the same on P and D.
    pub async fn embed(&self, spec: GenerateSpec, pooling: Pooling) -> Result<(), Failure> {
        let mut job = self.submit(Job { key: self.key.clone(), spec, goal: Goal::Embed { pooling }, matcher: None })?;
        loop {
            match job.next().await? {
                Happening::Embedded { values, prompt } => {
                    let (key, stats) = (Some((&self.key).into()), prompt.map(Into::into));
                    self.reply(Body::Embedding(Embedding { key, values, stats })).await?;
                }
                Happening::Finished => return Ok(()),
                Happening::Failed(failure) => return Err(failure),
                Happening::Sampled { .. } | Happening::Scored { .. } => {}
            }
        }
    }

    /// Starts to compile the grammar of `sampling`, beside whatever the attempt waits for.
    pub fn compile(&self, sampling: &SamplingParams) -> Compiling {
        let Some(grammar) = sampling.grammar.clone() else { return Compiling::Nothing };
        if let Some(known) = self.grammars.known(&grammar) {
            return Compiling::Known(Box::new(known));
        }
        let grammars = self.grammars.clone();
        Compiling::Running(tokio::task::spawn_blocking(move || grammars.compile(&grammar)))
    }

    /// Starts `spec`'s work on the engine; choices cancelled so far or later are left out.
    pub fn submit(&self, job: Job) -> Result<AttemptJob, Failure> {
        let job = self.engine.submit(job)?;
        self.engine.cancel_choices(&self.key, &self.cancelled.lock());
        Ok(AttemptJob { job, closed: self.replies.closed.clone() })
    }
}

/// A grammar on its way to being a matcher.
pub enum Compiling {
    /// The request has none.
    Nothing,
    /// It was compiled before.
    Known(Box<Result<Matcher, GrammarError>>),
    Running(JoinHandle<Result<Matcher, GrammarError>>),
}

impl Compiling {
    /// Waits for the matcher. A grammar that does not compile is an error: nothing is generated without it.
    pub async fn matcher(self) -> Result<Option<Matcher>, Failure> {
        let internal = |error: String| Failure::new(FailCode::FailInternal, error);
        let compiled = match self {
            Self::Nothing => return Ok(None),
            Self::Known(compiled) => *compiled,
            Self::Running(compiling) => compiling.await.map_err(|error| internal(error.to_string()))?,
        };
        compiled.map(Some).map_err(|error| match error {
            GrammarError::Invalid(_) | GrammarError::Slow => Failure::new(FailCode::FailBadRequest, error.to_string()),
            GrammarError::Busy => Failure::new(FailCode::FailQueueFull, error.to_string()),
            GrammarError::Unavailable(_) => internal(error.to_string()),
        })
    }
}

/// A job of this attempt on the engine; dropping it cancels it.
pub struct AttemptJob {
    job: RunningJob,
    closed: CancellationToken,
}

impl AttemptJob {
    /// The next event, `Failed` as an error. None after the job's end.
    ///
    /// A job that was lost because its events were not fetched means that the scheduler stands still: its connection ends.
    pub async fn next(&mut self) -> Result<Happening, Failure> {
        match self.job.next().await {
            Some(Happening::Failed(failure)) => Err(failure),
            Some(happening) => Ok(happening),
            None => {
                self.closed.cancel();
                Err(Failure::new(FailCode::FailInternal, "the engine stopped, or its events were not fetched"))
            }
        }
    }
}

/// The way to the scheduler.
#[derive(Clone)]
pub(super) struct Replies {
    pub(super) outbound: mpsc::Sender<Result<WorkerMessage, Status>>,
    pub(super) closed: CancellationToken,
}

impl Replies {
    pub(super) async fn send(&self, body: Body) -> Result<(), Failure> {
        let sent = self.outbound.send(Ok(WorkerMessage { body: Some(body) })).await;
        sent.map_err(|_| Failure::new(FailCode::FailStale, "the scheduler's connection is over"))
    }

    /// Sends without waiting; a scheduler that does not read loses its connection.
    pub(super) fn send_now(&self, body: Body) {
        if self.outbound.try_send(Ok(WorkerMessage { body: Some(body) })).is_err() {
            self.closed.cancel();
        }
    }
}
