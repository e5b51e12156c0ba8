//! Accepts connections and speaks HTTP/1 and HTTP/2 on them, within the bounds that `axum::serve` would not let us set.
//!
//! A connection that sends no request line, no header or takes no byte for too long is closed, and with it everything it asked for.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use net::{TcpListener, TcpStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::config::{Bounds, Timings};
use crate::http::{self, Api};

/// Streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// Serves until `stop`, then drains: no new connections, those in flight finish within `Timings::drain`.
pub(crate) async fn serve(
    listener: TcpListener,
    api: Arc<Api>,
    bounds: Bounds,
    timings: Timings,
    stop: CancellationToken,
) {
    let builder = Arc::new(builder(&bounds, &timings));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let io = TokioIo::new(Deadlines::new(stream, &timings));
                    let api = api.clone();
                    let service = hyper::service::service_fn(move |request| answer(api.clone(), request));
                    let connection = builder.serve_connection(io, service).into_owned();
                    let connection = graceful.watch(connection);
                    connections.spawn(async move {
                        if let Err(error) = connection.await {
                            debug!(%error, "connection ended");
                        }
                    });
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
    if tokio::time::timeout(timings.drain, graceful.shutdown()).await.is_err() {
        warn!(
            seconds = timings.drain.as_secs(),
            connections = connections.len(),
            "drain time is over, cutting what is left"
        );
    }
}

async fn answer(api: Arc<Api>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    Ok(http::answer(api, request.map(Body::new)).await)
}

fn builder(bounds: &Bounds, timings: &Timings) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(timings.header_read)
        .max_buf_size(bounds.header_bytes)
        .max_headers(bounds.headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(bounds.header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(timings.write_progress)
        .keep_alive_timeout(timings.header_read);
    builder
}

/// A socket with two deadlines that HTTP cannot see: the first bytes must come, and what is written must be taken.
struct Deadlines {
    stream: TcpStream,
    /// Until it is known which HTTP is spoken: the detection itself has no timer.
    first_bytes: Option<Pin<Box<Sleep>>>,
    read: usize,
    /// Runs while a write waits for the peer.
    write: Option<Pin<Box<Sleep>>>,
    write_progress: Duration,
}

/// Bytes after which the kind of HTTP is known: the length of HTTP/2's preface.
const PREFACE: usize = 24;

impl Deadlines {
    fn new(stream: TcpStream, timings: &Timings) -> Self {
        // Tokens are small and each is wanted at once.
        let _ = stream.set_nodelay(true);
        let first_bytes = Some(Box::pin(tokio::time::sleep(timings.header_read)));
        Self { stream, first_bytes, read: 0, write: None, write_progress: timings.write_progress }
    }

    /// Notes whether a write went on; an error when it has been waiting for too long.
    fn progress<T>(&mut self, poll: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            (self.write, self.first_bytes) = (None, None);
            return poll;
        }
        let progress = self.write_progress;
        let deadline = self.write.get_or_insert_with(|| Box::pin(tokio::time::sleep(progress)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes no bytes")))
    }
}

impl AsyncRead for Deadlines {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.read = self.read.saturating_add(buf.filled().len() - before);
        if self.read >= PREFACE {
            self.first_bytes = None;
        }
        if poll.is_ready() {
            return poll;
        }
        let Some(deadline) = self.first_bytes.as_mut() else { return Poll::Pending };
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no request came")))
    }
}

impl AsyncWrite for Deadlines {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.progress(poll, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.progress(poll, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
