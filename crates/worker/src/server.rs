//! The instance's one port: control plane and, on D, KV over gRPC beside plain HTTP for people and probes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use edge::{Admitted, AuthError, Credentials, PeerStream, Port, PortBounds};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use net::{TcpListener, TcpStream};
use parking_lot::Mutex;
use proto::control::worker_server::WorkerServer;
use telemetry::{KvPlane, Seldom};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use transfer::{Counters, Refusal};
use types::{InstanceId, Role};

use crate::control::{Control, RoleService};
use crate::{Config, EngineHandle, control, ledger};

/// Time for open connections to send what is left when the instance stops.
const FLUSH: Duration = Duration::from_secs(2);
/// After a failed accept (no descriptors left) there is no use in trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often changed certificates are looked for.
const CERTIFICATES_LOOK: Duration = Duration::from_secs(5);

/// Bounds of an instance's port: peers are few, and one that answers no HTTP/2 ping is gone, whatever its TCP connection says.
pub fn port_bounds() -> PortBounds {
    let (ping, pong) = (Duration::from_secs(2), Duration::from_secs(5));
    PortBounds { connections: 1024, ping, pong, ..PortBounds::default() }
}

/// Who may use the port for what. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Door {
    credentials: Credentials,
    bounds: PortBounds,
    instance: InstanceId,
    /// For anyone: health, metrics and who holds blocks; nothing that changes anything.
    public: Router,
    /// For schedulers, in addition.
    control: Router,
    /// For prefill instances, in addition.
    kv: Router,
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
        let (health, counted, metrics) = (control.clone(), control.clone(), engine.clone());
        let (holding, instance, pool) = (control.clone(), config.instance.clone(), engine.pool().clone());
        // How long work goes on without a sign of the scheduler.
        let vouched = config.port.ping + config.port.pong;
        let kv_ledger = move || {
            let report = ledger::report(&instance, &pool, &holding.leases(), vouched);
            std::future::ready(Json(report))
        };
        let common = Router::new()
            .route("/health", get(move || std::future::ready(answer_health(&health))))
            .route("/metrics", get(move || std::future::ready(answer_metrics(&counted, &metrics))))
            .route("/kv", get(kv_ledger));
        Self {
            credentials: config.credentials.clone(),
            bounds: config.port.clone(),
            instance: config.instance.clone(),
            public: common,
            control: Router::new().route_service("/pdserve.control.v1.Worker/{*method}", worker),
            kv: kv.unwrap_or_default(),
            refusals: Arc::default(),
        }
    }

    /// The connection and what it may use; `None` when it ends here. A peer that proves itself begins with a byte that HTTP never does.
    async fn admit(&self, stream: TcpStream, peer: SocketAddr) -> Option<(PeerStream, Router)> {
        let mut first = [0];
        let peeked = tokio::time::timeout(self.bounds.header_read, stream.peek(&mut first)).await.ok()?.ok()?;
        let proves = peeked == 1 && Credentials::is_proof(first[0]);
        let refused = match (self.credentials.any(), proves) {
            (false, false) => return Some((PeerStream::Plain(stream), self.routes(true, true, peer))),
            (true, false) => return Some((PeerStream::Plain(stream), self.routes(false, false, peer))),
            (false, true) => "the peer proves who it is and this worker has neither secret nor certificate".to_owned(),
            (true, true) => match self.credentials.accept(stream, Port::Worker, self.instance.as_str()).await {
                Ok(Admitted { stream, role }) => {
                    let is = |wanted| role.is_none_or(|role| role == wanted);
                    return Some((stream, self.routes(is(Role::Scheduler), is(Role::Prefill), peer)));
                }
                Err(error) => error.to_string(),
            },
        };
        self.log_refusal(peer, &refused);
        None
    }

    fn log_refusal(&self, peer: SocketAddr, reason: &str) {
        if self.refusals.lock().due(peer.ip(), Instant::now()) {
            tracing::warn!(%peer, reason, "connection refused");
        }
    }

    fn routes(&self, control: bool, kv: bool, peer: SocketAddr) -> Router {
        let mut routes = self.public.clone();
        for (of_peer, allowed) in [(&self.control, control), (&self.kv, kv)] {
            if allowed {
                routes = routes.merge(of_peer.clone());
            }
        }
        let door = self.clone();
        routes.fallback(move || {
            std::future::ready(if control { StatusCode::NOT_FOUND.into_response() } else { door.answer_stranger(peer) })
        })
    }

    /// To control and KV requests on a connection that has proven nothing; the request is not read.
    fn answer_stranger(&self, peer: SocketAddr) -> Response {
        let reason = AuthError::NoMark.to_string();
        self.log_refusal(peer, &reason);
        Status::unauthenticated(reason).into_http::<Body>()
    }
}

fn answer_health<R: control::RoleService>(control: &Control<R>) -> impl IntoResponse + use<R> {
    match control.not_ready() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

/// Blocks are counted now: they are given back by dropping, which no step sees. The KV plane keeps its own counts.
fn answer_metrics<R: RoleService>(control: &Control<R>, engine: &EngineHandle) -> impl IntoResponse + use<R> {
    let (pool, metrics) = (engine.pool().stats(), engine.metrics());
    metrics.set_blocks(pool.free, pool.cached, pool.leased, pool.total);
    metrics.set_block_references(&ledger::phases(&pool.references));
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
    let mut certificates = JoinSet::new();
    certificates.spawn(door.credentials.clone().keep_fresh(CERTIFICATES_LOOK));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if connections.len() >= door.bounds.connections => {
                // A new connection takes so few bytes at once.
                edge::turn_away(stream).await;
            }
            Ok((stream, peer)) => {
                connections.spawn(connect(stream, peer, door.clone(), graceful.watcher()));
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

async fn connect(stream: TcpStream, peer: SocketAddr, door: Door, graceful: Watcher) {
    // Tokens are small messages that must not wait for company.
    let _ = stream.set_nodelay(true);
    let Some((stream, routes)) = door.admit(stream, peer).await else { return };
    let mut builder = door.bounds.http();
    builder
        .http2()
        .initial_stream_window_size(transfer::GRPC_WINDOW_BYTES)
        .initial_connection_window_size(transfer::GRPC_WINDOW_BYTES)
        .max_frame_size(transfer::GRPC_FRAME_BYTES);
    let (stream, service) = door.bounds.guard(stream, TowerToHyperService::new(routes));
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    if let Err(error) = graceful.watch(connection).await {
        tracing::debug!(%error, "connection ended");
    }
}
