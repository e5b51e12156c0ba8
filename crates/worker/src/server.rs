//! The instance's one port: control plane and, on D, KV over gRPC beside plain HTTP for people and probes.

use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use proto::control::worker_server::WorkerServer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::control::{Control, RoleService};
use crate::{EngineHandle, control};

/// A peer that answers no HTTP/2 ping for this long is gone, whatever its TCP connection says.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// Streams a connection may have open: one control stream, a few KV streams, probes.
const STREAMS_MAX: u32 = 256;
/// Time for the headers of an HTTP/1 request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for open connections to send what is left when the instance stops.
const FLUSH: Duration = Duration::from_secs(2);
/// After a failed accept (no descriptors left) there is no use in trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Everything that this port answers. `kv` is D's KV service.
pub(crate) fn routes<R: RoleService>(control: &Control<R>, engine: &EngineHandle, kv: Option<Router>) -> Router {
    let worker = WorkerServer::new(control.clone()).max_decoding_message_size(proto::CONTROL_MESSAGE_BYTES_MAX);
    let (health, metrics) = (control.clone(), engine.clone());
    Router::new()
        .route("/health", get(move || std::future::ready(answer_health(&health))))
        .route("/metrics", get(move || std::future::ready(answer_metrics(&metrics))))
        .route_service("/pdserve.control.v1.Worker/{*method}", worker)
        .merge(kv.unwrap_or_default())
}

fn answer_health<R: control::RoleService>(control: &Control<R>) -> impl IntoResponse + use<R> {
    match control.is_draining() {
        false => (StatusCode::OK, "ok\n"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

fn answer_metrics(engine: &EngineHandle) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, telemetry::CONTENT_TYPE)], engine.metrics().render())
}

/// Accepts until `stop`; then open connections may send what is left. Dropping the future ends them all at once.
pub(crate) async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => connect(stream, routes.clone(), &graceful, &mut connections),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(FLUSH, graceful.shutdown()).await;
}

fn connect(stream: TcpStream, routes: Router, graceful: &GracefulShutdown, connections: &mut JoinSet<()>) {
    // Tokens are small messages that must not wait for company.
    let _ = stream.set_nodelay(true);
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
    let connection = graceful.watch(connection);
    connections.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
    });
}
