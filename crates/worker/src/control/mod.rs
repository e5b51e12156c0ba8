//! The scheduler's stream: who may open it, what it carries, and what ends with it.
//!
//! One scheduler at a time: the latest to connect ends all work of the one before, and so does the end of the stream. Cancel is a
//! message that never waits. What a scheduler does not read in time ends its connection, never the engine's work for others.

mod attempt;
mod connection;
mod load;
#[cfg(test)]
mod strangers;
#[cfg(test)]
mod tests;
pub(crate) mod watchdog;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use proto::control::worker_server::Worker;
use proto::control::{Hello, SchedulerMessage, Welcome, WorkerMessage, worker_message::Body};
use text::Grammars;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use transfer::Counters;
use types::{InstanceId, Limits, ModelIdentity, RequestKey, Role};

pub use attempt::{Attempt, AttemptJob, Compiling, Order};
use connection::Connection;

use crate::config::ConfigError;
use crate::{EngineHandle, Failure, Tables};

/// Messages to the scheduler that may wait for its reading.
const OUTBOUND_MAX: usize = 1024;

/// What a role does with an attempt.
pub trait RoleService: Send + Sync + 'static {
    /// Lives one attempt from its first order to its end. When the future is dropped (cancel, end of the connection) everything
    /// that it holds must be given back by dropping. An error is told to the scheduler as `Failed`.
    fn serve(&self, attempt: Attempt) -> impl Future<Output = Result<(), Failure>> + Send;

    /// What its end of the KV plane has counted.
    fn kv_counters(&self) -> &Counters;

    /// Attempts with a lease of their own, and what is left of it.
    fn leases(&self) -> Vec<(RequestKey, Duration)> {
        Vec::new()
    }
}

/// What this worker says of itself in its Welcome.
#[derive(Clone, Debug)]
pub struct Introduction {
    pub role: Role,
    pub instance: InstanceId,
    pub table_hash: String,
    pub model: ModelIdentity,
    pub limits: Limits,
    /// Changes whenever the process does.
    pub incarnation: u64,
}

/// The control service of one instance. Cheap to clone.
pub(crate) struct Control<R>(Arc<Inner<R>>);

struct Inner<R> {
    me: Mutex<Introduction>,
    tables: Option<Tables>,
    role: R,
    engine: EngineHandle,
    grammars: Grammars,
    current: Mutex<Option<Current>>,
    draining: AtomicBool,
    /// The engine stands still in a step.
    stuck: AtomicBool,
    stale: AtomicU64,
    /// Attempts that run; drain waits for none.
    attempts: watch::Sender<usize>,
}

/// The scheduler that is being served.
struct Current {
    incarnation: u64,
    closed: CancellationToken,
}

impl<R> Clone for Control<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R: RoleService> Control<R> {
    pub(crate) fn new(
        me: Introduction,
        tables: Option<Tables>,
        role: R,
        engine: EngineHandle,
        grammars: Grammars,
    ) -> Self {
        Self(Arc::new(Inner {
            me: Mutex::new(me),
            tables,
            role,
            engine,
            grammars,
            current: Mutex::new(None),
            draining: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            stale: AtomicU64::new(0),
            attempts: watch::channel(0).0,
        }))
    }

    /// From now on new attempts are refused; those that run go on.
    pub(crate) fn start_draining(&self) {
        self.0.draining.store(true, Relaxed);
    }

    /// What the role's end of the KV plane has counted.
    pub(crate) fn kv_counters(&self) -> &Counters {
        self.0.role.kv_counters()
    }

    /// See [`RoleService::leases`].
    pub(crate) fn leases(&self) -> Vec<(RequestKey, Duration)> {
        self.0.role.leases()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.load(Relaxed)
    }

    /// Why this instance takes no work now.
    pub(crate) fn not_ready(&self) -> Option<&'static str> {
        match (self.is_draining(), self.0.stuck.load(Relaxed)) {
            (true, _) => Some("draining"),
            (false, true) => Some("stuck: the engine's step stands still"),
            (false, false) => None,
        }
    }

    /// Waits until no attempt runs.
    pub(crate) async fn drained(&self) {
        // The sender lives in self.
        let _ = self.0.attempts.subscribe().wait_for(|attempts| *attempts == 0).await;
    }

    /// Ends the scheduler's connection and all its work.
    pub(crate) fn close(&self) {
        if let Some(current) = self.0.current.lock().take() {
            current.closed.cancel();
        }
    }

    /// Checks who calls; the refusal names the field with both values. Replaces (and ends) the connection before.
    fn admit(&self, hello: &Hello, closed: &CancellationToken) -> Result<(), String> {
        let moved = self.reread(&hello.table_hash);
        let me = self.0.me.lock();
        if hello.protocol < proto::PROTOCOL_MIN {
            return Err(format!(
                "protocol: ours is {} (at least {}), theirs is {}",
                proto::PROTOCOL,
                proto::PROTOCOL_MIN,
                hello.protocol
            ));
        }
        if hello.table_hash != me.table_hash {
            let (ours, theirs) = (&me.table_hash, &hello.table_hash);
            let why = moved.err().map(|error| format!(" ({error})")).unwrap_or_default();
            return Err(format!(
                "table_hash: ours is {ours}, theirs is {theirs}; give all roles the same global rank table{why}"
            ));
        }
        if hello.instance != me.instance.as_str() {
            return Err(format!("instance: ours is {}, theirs is {}; check NODE_PORTS", me.instance, hello.instance));
        }
        if self.0.stuck.load(Relaxed) {
            return Err("engine: its step stands still; this instance takes work again when it goes on".to_owned());
        }
        let current = Current { incarnation: hello.scheduler_incarnation, closed: closed.clone() };
        if let Some(before) = self.0.current.lock().replace(current)
            && !before.closed.is_cancelled()
        {
            let now = hello.scheduler_incarnation;
            tracing::warn!(
                before = before.incarnation,
                now,
                "another scheduler took over, the work of the one before is dropped"
            );
            before.closed.cancel();
        }
        Ok(())
    }

    /// A scheduler of another table: perhaps this instance's files have changed, too. Small files, read once per Hello.
    fn reread(&self, theirs: &str) -> Result<(), ConfigError> {
        let Some(tables) = self.0.tables.as_ref().filter(|_| self.0.me.lock().table_hash != theirs) else {
            return Ok(());
        };
        let place = tables.find()?;
        let mut me = self.0.me.lock();
        if me.table_hash != place.table_hash {
            tracing::info!(instance = %place.instance, hash = place.table_hash, "rank table changed");
            (me.instance, me.table_hash) = (place.instance, place.table_hash);
        }
        Ok(())
    }

    fn welcome(&self, refusal: String) -> Body {
        let me = self.0.me.lock();
        Body::Welcome(Welcome {
            protocol: proto::PROTOCOL,
            table_hash: me.table_hash.clone(),
            instance: me.instance.to_string(),
            role: me.role.to_string(),
            model: Some((&me.model).into()),
            limits: Some((&me.limits).into()),
            incarnation: me.incarnation,
            refusal,
        })
    }

    fn note_stale(&self) {
        self.0.stale.fetch_add(1, Relaxed);
        self.0.engine.metrics().stale_dropped(1);
    }
}

#[tonic::async_trait]
impl<R: RoleService> Worker for Control<R> {
    type ControlStream = ReceiverStream<Result<WorkerMessage, Status>>;

    async fn control(
        &self,
        request: Request<Streaming<SchedulerMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
        tokio::spawn(Connection::new(self.clone(), outbound).run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}
