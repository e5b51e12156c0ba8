//! One attempt's end of one worker connection: verbs to the worker, events from it.
//!
//! Dropping a [`Link`] cancels the attempt on that worker, unless the worker said that it holds nothing any more.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use proto::control::{self, FailCode, Failed, Generate, Prefill, Reserve, Spec, scheduler_message::Body};
use tokio::task::coop::cooperative;
use tokio::time::Instant;
use types::{InstanceId, Pooling, RequestKey};

use crate::deadline::Deadline;
use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::pairing::Slot;

/// Attempts that a worker is asked about at once; the others follow with the next ping.
const QUIET_MAX: usize = 1024;

/// What a worker says about one attempt.
#[derive(Debug)]
pub(crate) enum Event {
    Reserved(control::Reserved),
    PromptScores(control::PromptScores),
    Embedding(control::Embedding),
    FirstTokens(control::FirstTokens),
    Shipped(control::TransferStats),
    Tokens(control::Tokens),
    Failed(Failed),
}

/// Why an attempt cannot go on, and on whom.
#[derive(Debug, thiserror::Error)]
#[error("{instance}: {cause}")]
pub(crate) struct Failure {
    pub(crate) slot: Slot,
    /// Which process behind the slot.
    pub(crate) generation: u64,
    pub(crate) instance: InstanceId,
    pub(crate) cause: Cause,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error("connection lost")]
    Lost,
    #[error("no word of this attempt for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("does not take messages")]
    NotSent,
    #[error("answered {what}, expected {expected}")]
    Protocol { what: String, expected: &'static str },
    #[error("{} ({message})", code.as_str_name())]
    Answered { code: FailCode, message: String },
}

/// A live connection to one worker, shared by all attempts on it.
pub(crate) struct Connection {
    pub(crate) slot: Slot,
    /// Counts the connections of this slot, so that a worker that came back is another one.
    pub(crate) generation: u64,
    pub(crate) instance: InstanceId,
    /// How long an attempt may go without a message of its own.
    pub(crate) progress: Duration,
    pub(crate) outbox: Outbox,
    /// `None` once the connection is lost.
    routes: Mutex<Option<HashMap<RequestKey, Listener, RandomState>>>,
    late_dropped: AtomicU64,
}

/// An attempt that waits for what the worker says of it.
struct Listener {
    events: Inbox,
    /// When the worker last spoke, or was asked, of the attempt.
    quiet_since: Instant,
}

/// Nothing came in time.
struct Silence;

/// See the module.
pub(crate) struct Link {
    connection: Arc<Connection>,
    key: RequestKey,
    events: Inbox,
    /// Runs from the first time that the worker is waited for.
    silence: Option<Deadline>,
    /// The worker may hold something for the attempt.
    open: bool,
}

impl Connection {
    pub(crate) fn new(slot: Slot, generation: u64, instance: InstanceId, progress: Duration, outbox: Outbox) -> Self {
        let routes = Mutex::new(Some(HashMap::default()));
        Self { slot, generation, instance, progress, outbox, routes, late_dropped: AtomicU64::new(0) }
    }

    /// Opens this worker's end of an attempt.
    pub(crate) fn link(self: &Arc<Self>, key: RequestKey) -> Result<Link, Failure> {
        let events = Inbox::default();
        let listener = Listener { events: events.clone(), quiet_since: Instant::now() };
        match &mut *self.routes.lock() {
            Some(routes) => routes.insert(key.clone(), listener),
            None => return Err(self.failure(Cause::Lost)),
        };
        Ok(Link { connection: self.clone(), key, events, silence: None, open: false })
    }

    /// Hands an event to its attempt. False: the attempt is over (or did not keep up, and is now); the event is dropped and counted.
    pub(crate) fn deliver(&self, key: &RequestKey, event: Event) -> bool {
        let mut routes = self.routes.lock();
        let Some(routes) = routes.as_mut() else { return false };
        let taken = routes.get_mut(key).is_some_and(|listener| listener.take(event));
        if !taken {
            routes.remove(key);
            self.late_dropped.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// Attempts that the worker has not spoken of for `silence`, for it to be asked whether it still holds them: an order or an answer
    /// may have been lost. Each is named once per `silence`.
    pub(crate) fn quiet(&self, silence: Duration) -> Vec<RequestKey> {
        let (now, mut routes) = (Instant::now(), self.routes.lock());
        let quiet = routes.iter_mut().flatten().filter(|(_, listener)| now - listener.quiet_since >= silence);
        let mut quiet: Vec<_> = quiet.collect();
        quiet.sort_unstable_by_key(|(key, _)| *key);
        let asked = quiet.into_iter().take(QUIET_MAX).map(|(key, listener)| {
            listener.quiet_since = now;
            key.clone()
        });
        asked.collect()
    }

    /// Whether no attempt waits for the worker.
    pub(crate) fn is_idle(&self) -> bool {
        self.routes.lock().as_ref().is_none_or(HashMap::is_empty)
    }

    /// Ends every attempt on it. What they already received they still read.
    pub(crate) fn close(&self) {
        self.outbox.close();
        *self.routes.lock() = None;
    }

    pub(crate) fn late_dropped(&self) -> u64 {
        self.late_dropped.load(Ordering::Relaxed)
    }

    fn failure(&self, cause: Cause) -> Failure {
        Failure { slot: self.slot, generation: self.generation, instance: self.instance.clone(), cause }
    }
}

impl Listener {
    fn take(&mut self, event: Event) -> bool {
        self.quiet_since = Instant::now();
        self.events.put(event)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.events.close();
    }
}

impl Link {
    pub(crate) fn reserve(&mut self, spec: Spec) -> Result<(), Failure> {
        let (key, spec) = (Some((&self.key).into()), Some(spec));
        self.send(Body::Reserve(Reserve { key, spec }))
    }

    pub(crate) fn prefill(&mut self, spec: Spec, ticket: Bytes) -> Result<(), Failure> {
        let (key, spec) = (Some((&self.key).into()), Some(spec));
        self.send(Body::Prefill(Prefill { key, spec, ticket }))
    }

    /// Make a vector of the prompt.
    pub(crate) fn embed(&mut self, spec: Spec, pooling: Pooling) -> Result<(), Failure> {
        let (key, spec) = (Some((&self.key).into()), Some(spec));
        self.send(Body::Embed(control::Embed { key, spec, pooling: control::Pooling::from(pooling).into() }))
    }

    /// With `first` tokens: go on from the reservation. Without: compute the prompt there.
    pub(crate) fn generate(&mut self, spec: Spec, first: Vec<control::Token>) -> Result<(), Failure> {
        let (key, spec) = (Some((&self.key).into()), Some(spec));
        self.send(Body::Generate(Generate { key, spec, first }))
    }

    /// One choice is not wanted any more; the others go on.
    pub(crate) fn cancel_choice(&self, choice: u32) {
        self.connection.outbox.cancel(&self.key, vec![choice]);
    }

    /// The worker ended the attempt by itself: nothing is left to cancel.
    pub(crate) fn settle(&mut self) {
        self.open = false;
    }

    /// The next event. Cancel safe.
    ///
    /// # Errors
    /// The worker failed the attempt, fell silent about it, or is gone.
    pub(crate) async fn next(&mut self) -> Result<Event, Failure> {
        let progress = self.connection.progress;
        let due = Instant::now() + progress;
        match cooperative(poll_fn(|cx| self.poll_next(cx, due))).await {
            Ok(Some(Event::Failed(failed))) => {
                self.open = false;
                Err(self.failure(Cause::Answered { code: failed.code(), message: failed.message }))
            }
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(self.failure(Cause::Lost)),
            Err(Silence) => Err(self.failure(Cause::Silent(progress))),
        }
    }

    /// `None`: the connection is lost.
    fn poll_next(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<Result<Option<Event>, Silence>> {
        if let Poll::Ready(event) = self.events.poll_take(cx) {
            return Poll::Ready(Ok(event));
        }
        ready!(self.silence.get_or_insert_with(|| Deadline::new(due)).poll(cx, due));
        Poll::Ready(Err(Silence))
    }

    /// The worker said something that does not belong here.
    pub(crate) fn unexpected(&self, what: impl Into<String>, expected: &'static str) -> Failure {
        self.failure(Cause::Protocol { what: what.into(), expected })
    }

    fn send(&mut self, body: Body) -> Result<(), Failure> {
        self.connection.outbox.send(body).map_err(|_| self.failure(Cause::NotSent))?;
        self.open = true;
        Ok(())
    }

    fn failure(&self, cause: Cause) -> Failure {
        self.connection.failure(cause)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(routes) = self.connection.routes.lock().as_mut() {
            routes.remove(&self.key);
        }
        if self.open {
            self.connection.outbox.cancel(&self.key, Vec::new());
        }
    }
}

impl Event {
    /// For errors: what kind of event this is.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Event::Reserved(_) => "Reserved",
            Event::PromptScores(_) => "PromptScores",
            Event::Embedding(_) => "Embedding",
            Event::FirstTokens(_) => "FirstTokens",
            Event::Shipped(_) => "Shipped",
            Event::Tokens(_) => "Tokens",
            Event::Failed(_) => "Failed",
        }
    }
}
