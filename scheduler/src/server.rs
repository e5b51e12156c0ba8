//! Accepts connections and speaks HTTP/1 and HTTP/2 on them, bare or inside TLS, within the bounds that `axum::serve` would not let us set.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use edge::{Credentials, PeerStream, ServerTls, turn_away};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use net::{TcpListener, TcpStream};
use parking_lot::Mutex;
use telemetry::Seldom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::bounds::Bounds;
use crate::http::{self, Api, Routes};

/// What all connections share. Cheap to clone.
#[derive(Clone)]
struct Door {
    routes: Routes,
    bounds: Arc<Bounds>,
    tls: Option<ServerTls>,
    refusals: Arc<Mutex<Seldom>>,
}

/// Serves until `stop`, then drains: no new connections, those in flight finish within `drain`.
pub(crate) async fn serve(
    listener: TcpListener,
    api: Arc<Api>,
    tls: Option<ServerTls>,
    drain: Duration,
    stop: CancellationToken,
) {
    let bounds = Arc::new(api.bounds.clone());
    let connections_max = bounds.port.connections;
    let door = Door { routes: Routes::new(api), bounds, tls, refusals: Arc::default() };
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if connections.len() >= connections_max => {
                    door.refused(peer, "too many connections");
                    turn_away(stream).await;
                }
                Ok((stream, peer)) => {
                    connections.spawn(door.clone().connect(stream, peer, graceful.watcher()));
                }
                Err(error) => {
                    // Out of file descriptors, mostly: the connections that end will free some.
                    warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        let (seconds, connections) = (drain.as_secs(), connections.len());
        warn!(seconds, connections, "drain time is over, cutting what is left");
    }
}

impl Door {
    async fn connect(self, stream: TcpStream, peer: SocketAddr, graceful: Watcher) {
        // Tokens are small and each is wanted at once.
        let _ = stream.set_nodelay(true);
        let _ = net::send_buffer(&stream, self.bounds.socket_bytes);
        let bounds = &self.bounds.port;
        let Ok(Some(stream)) = tokio::time::timeout(bounds.header_read, self.admit(stream, peer)).await else { return };
        let routes = self.routes.clone();
        let (stream, service) = bounds.guard(stream, service_fn(move |request| answer(routes.clone(), request)));
        let connection = bounds.http().serve_connection(TokioIo::new(stream), service).into_owned();
        if let Err(error) = graceful.watch(connection).await {
            debug!(%error, "connection ended");
        }
    }

    /// The stream that HTTP is spoken on; `None` when there is none.
    async fn admit(&self, mut stream: TcpStream, peer: SocketAddr) -> Option<PeerStream> {
        let Some(tls) = &self.tls else { return Some(PeerStream::Plain(stream)) };
        let mut first = [0];
        if stream.peek(&mut first).await.ok()? == 1 && !Credentials::is_proof(first[0]) {
            self.refused(peer, "plain HTTP on an HTTPS port");
            // What came is read first: unread bytes would reset the connection and the answer with it.
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(NO_TLS.as_bytes()).await;
            return None;
        }
        tls.accept(stream).await.inspect_err(|error| self.refused(peer, &error.to_string())).ok()
    }

    fn refused(&self, peer: SocketAddr, reason: &str) {
        if self.refusals.lock().due(peer.ip(), Instant::now()) {
            info!(%peer, reason, "connection refused");
        }
    }
}

/// To who speaks plain HTTP where HTTPS is served.
const NO_TLS: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 23\r\nconnection: close\r\n\r\nthis port speaks HTTPS\n";

async fn answer(routes: Routes, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    Ok(http::answer(routes, request.map(Body::new)).await)
}
