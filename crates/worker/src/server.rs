//! The instance's one port: control plane and, on D, KV over gRPC beside plain HTTP for people and probes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use net::{TcpListener, TcpStream};
use parking_lot::Mutex;
use proto::control::worker_server::WorkerServer;
use proto::{AuthError, ClusterSecret, MARK_START, Port};
use telemetry::{KvPlane, Seldom};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use transfer::{Counters, Refusal};
use types::InstanceId;

use crate::control::{Control, RoleService};
use crate::{Config, EngineHandle, control, ledger};

/// A peer that answers no HTTP/2 ping for this long is gone, whatever its TCP connection says.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// Streams a connection may have open: one control stream, a few KV streams, probes.
const STREAMS_MAX: u32 = 256;
/// Connections open at once; what comes above is closed unread.
const CONNECTIONS_MAX: usize = 1024;
/// Time for the headers of an HTTP/1 request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for open connections to send what is left when the instance stops.
const FLUSH: Duration = Duration::from_secs(2);
/// After a failed accept (no descriptors left) there is no use in trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who may use the port for what. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Door {
    secret: Option<ClusterSecret>,
    instance: InstanceId,
    /// For anyone: health, metrics and who holds blocks; nothing that changes anything.
    public: Router,
    /// For peers that have proven the secret, or for all when there is none (loopback only).
    trusted: Router,
    refusals: Arc<Mutex<Seldom>>,
}

impl Door {
    /// `kv` is D's KV service.
    pub(crate) fn new<R: RoleService>(
        config: &Config,
        control: &Control<R>,
        engine: &EngineHandle,
        kv: Option<Router>,
    ) -> Self {
        let worker = WorkerServer::new(control.clone()).max_decoding_message_size(proto::CONTROL_MESSAGE_BYTES_MAX);
        let (health, counted, metrics, pool) =
            (control.clone(), control.clone(), engine.clone(), engine.pool().clone());
        let instance = config.instance.clone();
        let common = Router::new()
            .route("/health", get(move || std::future::ready(answer_health(&health))))
            .route("/metrics", get(move || std::future::ready(answer_metrics(&counted, &metrics))))
            .route("/kv", get(move || std::future::ready(Json(ledger::report(&instance, &pool)))));
        Self {
            secret: config.secret.clone(),
            instance: config.instance.clone(),
            public: common.clone().fallback(|| std::future::ready(answer_stranger())),
            trusted: common.route_service("/pdserve.control.v1.Worker/{*method}", worker).merge(kv.unwrap_or_default()),
            refusals: Arc::default(),
        }
    }

    /// What this connection may use; `None` when it ends here. A peer that proves itself begins with a byte that HTTP never does.
    async fn admit(&self, stream: &mut TcpStream) -> Option<Router> {
        let mut first = [0];
        let peeked = tokio::time::timeout(HEADER_TIMEOUT, stream.peek(&mut first)).await.ok()?.ok()?;
        let marked = peeked == 1 && first[0] == MARK_START;
        let refused = match (&self.secret, marked) {
            (None, false) => return Some(self.trusted.clone()),
            (Some(_), false) => return Some(self.public.clone()),
            (None, true) => "the peer proves a cluster secret and this worker has none".to_owned(),
            (Some(secret), true) => match secret.accept(stream, Port::Worker, self.instance.as_str()).await {
                Ok(_) => return Some(self.trusted.clone()),
                Err(error) => error.to_string(),
            },
        };
        let peer = stream.peer_addr().ok()?;
        if self.refusals.lock().due(peer.ip(), Instant::now()) {
            tracing::warn!(%peer, reason = refused, "connection refused");
        }
        None
    }
}

/// To control and KV requests on a connection that has proven nothing; the request is not read.
fn answer_stranger() -> Response {
    Status::unauthenticated(AuthError::NoMark.to_string()).into_http::<Body>()
}

fn answer_health<R: control::RoleService>(control: &Control<R>) -> impl IntoResponse + use<R> {
    match control.is_draining() {
        false => (StatusCode::OK, "ok\n"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

/// Blocks are counted now: they are given back by dropping, which no step sees. The KV plane keeps its own counts.
fn answer_metrics<R: RoleService>(control: &Control<R>, engine: &EngineHandle) -> impl IntoResponse + use<R> {
    let (pool, metrics) = (engine.pool().stats(), engine.metrics());
    metrics.set_blocks(pool.free, pool.cached, pool.leased, pool.total);
    metrics.set_kv_plane(&kv_plane(control.kv_counters()));
    ([(header::CONTENT_TYPE, telemetry::CONTENT_TYPE)], metrics.render())
}

fn kv_plane(counters: &Counters) -> KvPlane {
    KvPlane {
        refused: Refusal::ALL.iter().map(|&reason| (reason.as_str(), counters.refused(reason))).collect(),
        retried: counters.retried(),
        duplicates: counters.duplicates(),
        connections_lost: counters.connections_lost(),
        unauthenticated: counters.unauthenticated(),
    }
}

/// Accepts until `stop`; then open connections may send what is left. Dropping the future ends them all at once.
pub(crate) async fn serve(listener: TcpListener, door: Door, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if connections.len() >= CONNECTIONS_MAX => {}
            Ok((stream, _)) => {
                connections.spawn(connect(stream, door.clone(), graceful.watcher()));
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(FLUSH, graceful.shutdown()).await;
}

async fn connect(mut stream: TcpStream, door: Door, graceful: Watcher) {
    // Tokens are small messages that must not wait for company.
    let _ = stream.set_nodelay(true);
    let Some(routes) = door.admit(&mut stream).await else { return };
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .initial_stream_window_size(transfer::GRPC_WINDOW_BYTES)
        .initial_connection_window_size(transfer::GRPC_WINDOW_BYTES)
        .max_frame_size(transfer::GRPC_FRAME_BYTES)
        .max_concurrent_streams(STREAMS_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)).into_owned();
    if let Err(error) = graceful.watch(connection).await {
        tracing::debug!(%error, "connection ended");
    }
}
