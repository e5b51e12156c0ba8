//! One open stream of one scheduler: orders are handed to their attempts, and all of them end with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proto::WireError;
use proto::control::{
    Cancel, FailCode, Failed, Key, Pong, SchedulerMessage, WorkerMessage, scheduler_message as inbound,
    worker_message::Body,
};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use types::{Epoch, RequestId, RequestKey};

use super::attempt::{Attempt, Cancelled, Order, Replies};
use super::{Control, RoleService, load};
use crate::Failure;

/// Time for a scheduler to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Orders that an attempt may have unread: it gets at most a Reserve and a Generate.
const ORDERS_MAX: usize = 2;

pub(super) struct Connection<R> {
    control: Control<R>,
    replies: Replies,
    live: Live,
}

/// Attempts of this connection, by request: only the newest epoch of each lives.
type Live = Arc<Mutex<BTreeMap<RequestId, LiveAttempt>>>;

struct LiveAttempt {
    epoch: Epoch,
    orders: mpsc::Sender<Order>,
    cancelled: Cancelled,
    task: AbortHandle,
}

impl<R: RoleService> Connection<R> {
    pub(super) fn new(control: Control<R>, outbound: mpsc::Sender<Result<WorkerMessage, Status>>) -> Self {
        let replies = Replies { outbound, closed: CancellationToken::new() };
        Self { control, replies, live: Live::default() }
    }

    /// From Hello to the end of the stream.
    pub(super) async fn run(self, mut stream: Streaming<SchedulerMessage>) {
        if let Err(refusal) = self.greet(&mut stream).await {
            tracing::warn!(%refusal, "scheduler refused");
            self.replies.send_now(self.control.welcome(refusal));
            return;
        }
        tracing::info!("scheduler connected");
        let report = tokio::spawn(load::report(self.control.clone(), self.replies.clone()));
        self.receive(&mut stream).await;
        report.abort();
        self.end();
        tracing::info!("scheduler disconnected");
    }

    async fn greet(&self, stream: &mut Streaming<SchedulerMessage>) -> Result<(), String> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, stream.message()).await;
        let body = first.ok().and_then(Result::ok).flatten().and_then(|message| message.body);
        let Some(inbound::Body::Hello(hello)) = body else {
            return Err(format!("hello: expected as the first message within {} s", HELLO_TIMEOUT.as_secs()));
        };
        self.control.admit(&hello, &self.replies.closed)?;
        self.replies.send_now(self.control.welcome(String::new()));
        Ok(())
    }

    async fn receive(&self, stream: &mut Streaming<SchedulerMessage>) {
        loop {
            let message = tokio::select! {
                biased;
                () = self.replies.closed.cancelled() => return,
                () = self.replies.outbound.closed() => return,
                message = stream.message() => message,
            };
            let Ok(Some(SchedulerMessage { body: Some(body) })) = message else { return };
            self.on(body);
        }
    }

    fn on(&self, body: inbound::Body) {
        match body {
            // A second Hello changes nothing.
            inbound::Body::Hello(_) => {}
            inbound::Body::Ping(ping) => {
                self.disown(ping.quiet);
                self.replies.send_now(Body::Pong(Pong { nonce: ping.nonce }));
            }
            inbound::Body::Cancel(cancel) => self.cancel(cancel),
            inbound::Body::Reserve(order) => {
                self.order(order.key, proto::generate_spec(order.spec).map(Order::Reserve));
            }
            inbound::Body::Prefill(order) => {
                let spec = proto::generate_spec(order.spec);
                self.order(order.key, spec.map(|spec| Order::Prefill { spec, ticket: order.ticket }));
            }
            inbound::Body::Embed(order) => {
                let (pooling, spec) = (order.pooling().into(), proto::generate_spec(order.spec));
                self.order(order.key, spec.map(|spec| Order::Embed { spec, pooling }));
            }
            inbound::Body::Generate(order) => {
                let first = order.first.into_iter().map(Into::into).collect();
                let spec = proto::generate_spec(order.spec);
                self.order(order.key, spec.map(|spec| Order::Generate { spec, first }));
            }
        }
    }

    /// Hands an order to its attempt, beginning it if there is none.
    fn order(&self, key: Option<Key>, order: Result<Order, WireError>) {
        let Ok(key) = proto::request_key(key) else { return };
        let order = match order {
            Ok(order) => order,
            Err(error) => return self.refuse(&key, &Failure::new(FailCode::FailBadRequest, error.to_string())),
        };
        let mut live = self.live.lock();
        match live.get(&key.request) {
            Some(current) if current.epoch > key.epoch => self.control.note_stale(),
            Some(current) if current.epoch == key.epoch => {
                if current.orders.try_send(order).is_err() {
                    drop(live);
                    self.refuse(&key, &Failure::new(FailCode::FailBadRequest, "an order too many for this attempt"));
                }
            }
            older => {
                if let Some(older) = older {
                    older.task.abort();
                }
                if self.control.is_draining() {
                    live.remove(&key.request);
                    return self.refuse(&key, &Failure::new(FailCode::FailDraining, "this instance is stopping"));
                }
                live.insert(key.request.clone(), self.begin(key, order));
            }
        }
    }

    fn begin(&self, key: RequestKey, order: Order) -> LiveAttempt {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        // The channel is new and has room.
        let _ = sender.try_send(order);
        let cancelled = Cancelled::default();
        let epoch = key.epoch;
        let attempt = Attempt {
            key: key.clone(),
            orders,
            replies: self.replies.clone(),
            engine: self.control.0.engine.clone(),
            grammars: self.control.0.grammars.clone(),
            cancelled: cancelled.clone(),
        };
        let guard = Registered {
            live: self.live.clone(),
            key,
            cancelled: cancelled.clone(),
            _count: Counted::new(&self.control.0.attempts),
        };
        let task = tokio::spawn(live_attempt(self.control.clone(), attempt, guard)).abort_handle();
        LiveAttempt { epoch, orders: sender, cancelled, task }
    }

    fn cancel(&self, cancel: Cancel) {
        let Ok(key) = proto::request_key(cancel.key) else { return };
        let mut live = self.live.lock();
        let Some(current) = live.get(&key.request) else { return };
        if current.epoch != key.epoch {
            return self.control.note_stale();
        }
        if cancel.choices.is_empty() {
            current.task.abort();
            live.remove(&key.request);
        } else {
            current.cancelled.lock().extend(&cancel.choices);
            self.control.0.engine.cancel_choices(&key, &cancel.choices);
        }
    }

    /// Tells the scheduler which of these attempts it waits for in vain: nothing is held for them here.
    fn disown(&self, quiet: Vec<Key>) {
        for key in quiet.into_iter().filter_map(|key| proto::request_key(Some(key)).ok()) {
            let held = self.live.lock().get(&key.request).is_some_and(|current| current.epoch == key.epoch);
            if !held {
                self.refuse(&key, &Failure::new(FailCode::FailStale, "this instance holds nothing of the attempt"));
            }
        }
    }

    fn refuse(&self, key: &RequestKey, failure: &Failure) {
        self.replies.send_now(failed(key, failure));
    }

    /// Ends every attempt; what they hold comes back as their tasks are dropped.
    fn end(&self) {
        self.replies.closed.cancel();
        std::mem::take(&mut *self.live.lock()).values().for_each(|attempt| attempt.task.abort());
    }
}

async fn live_attempt<R: RoleService>(control: Control<R>, attempt: Attempt, guard: Registered) {
    let replies = attempt.replies.clone();
    let key = guard.key.clone();
    let result = control.0.role.serve(attempt).await;
    // From here on nothing is held for the key, so the scheduler may be told.
    drop(guard);
    if let Err(failure) = result {
        tracing::debug!(%key, code = failure.code.as_str_name(), %failure, "attempt failed");
        let _ = replies.send(failed(&key, &failure)).await;
    }
}

fn failed(key: &RequestKey, failure: &Failure) -> Body {
    Body::Failed(Failed { key: Some(key.into()), code: failure.code.into(), message: failure.message.clone() })
}

/// An attempt's place in the registry; dropping it makes room for another.
struct Registered {
    live: Live,
    key: RequestKey,
    /// Tells this attempt from another one under the same key.
    cancelled: Cancelled,
    _count: Counted,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut live = self.live.lock();
        if live.get(&self.key.request).is_some_and(|current| Arc::ptr_eq(&current.cancelled, &self.cancelled)) {
            live.remove(&self.key.request);
        }
    }
}

/// Counts one attempt while it lives.
struct Counted(tokio::sync::watch::Sender<usize>);

impl Counted {
    fn new(count: &tokio::sync::watch::Sender<usize>) -> Self {
        count.send_modify(|attempts| *attempts += 1);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|attempts| *attempts -= 1);
    }
}
