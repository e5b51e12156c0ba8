//! What one HTTP port and one connection on it may cost, whoever is at the other end.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Body;
use hyper::service::Service;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use net::TcpStream;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::{Deadlines, Paced};

types::bounds! {
    /// Bounds of an HTTP port: the scheduler's public one, a worker's control port.
    pub struct PortBounds {
        /// Connections open at once.
        connections: Count = 4096, "closed at once, with 503 where no TLS is spoken";
        /// Bytes of a request's head.
        header_bytes: Bytes = 64 << 10, "431; a longer HTTP/2 header list resets its stream, endless continuations close the connection";
        /// Header lines of a request.
        headers: Count = 100, "431";
        /// Requests of one HTTP/2 connection at once.
        streams: Count = 256, "the stream is refused";
        /// From connecting to the end of the first request's head, TLS handshake included; from the first byte to the last of each later head (HTTP/1).
        header_read: Time = Duration::from_secs(10), "closed";
        /// Between two requests on a connection.
        idle: Time = Duration::from_secs(75), "closed";
        /// A peer that takes no byte of an answer.
        write_progress: Time = Duration::from_secs(30), "the answer is cut and what it held is given back; over HTTP/1 the connection is closed";
        /// Silence after which a peer on HTTP/2 is asked whether it is still there.
        ping: Time = Duration::from_secs(30), "asked";
        /// For the answer to that question.
        pong: Time = Duration::from_secs(10), "closed";
    }
}

impl PortBounds {
    /// HTTP/1 and HTTP/2 within the bounds; the deadlines are [`PortBounds::guard`]'s.
    pub fn http(&self) -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            // A token with its frame is shorter than what the kernel would be told about its parts.
            .writev(false)
            .header_read_timeout(None)
            .max_buf_size(self.header_bytes)
            .max_headers(self.headers);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(u32::try_from(self.streams).unwrap_or(u32::MAX))
            .max_header_list_size(u32::try_from(self.header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(self.ping)
            .keep_alive_timeout(self.pong);
        builder
    }
}

impl PortBounds {
    /// A connection and what answers its requests, with the deadlines of [`crate::Deadlines`] and [`crate::Paced`].
    pub fn guard<S, A>(&self, stream: S, answer: A) -> (Deadlines<S>, Guarded<A>) {
        let activity = Activity::default();
        let stream = Deadlines::new(stream, self, activity.clone());
        (stream, Guarded { answer, activity, write_progress: self.write_progress })
    }
}

/// Tells a peer that came above the bound on connections to come back later.
pub async fn turn_away(mut stream: TcpStream) {
    let answer = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// A service whose requests count as in flight until their answers are sent; see [`PortBounds::guard`].
#[derive(Clone)]
pub struct Guarded<A> {
    answer: A,
    activity: Activity,
    write_progress: Duration,
}

impl<A, I, B> Service<Request<I>> for Guarded<A>
where
    A: Service<Request<I>, Response = Response<B>>,
    A::Future: Send + 'static,
    B: Body + Send + Unpin + 'static,
{
    type Response = Response<Paced<B>>;
    type Error = A::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<I>) -> Self::Future {
        let in_flight = self.activity.begin();
        let limit = (request.version() == Version::HTTP_2).then_some(self.write_progress);
        let answer = self.answer.call(request);
        Box::pin(async move { answer.await.map(|answer| answer.map(|body| Paced::new(body, in_flight, limit))) })
    }
}

/// What happens on one connection. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Mutex<Looked>>);

/// A request that is being answered; dropped when its answer is sent or given up.
#[derive(Debug)]
pub(crate) struct InFlight(Activity);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Looked {
    /// Requests so far.
    pub(crate) begun: u64,
    pub(crate) in_flight: usize,
    pub(crate) idle_since: Instant,
}

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Looked { begun: 0, in_flight: 0, idle_since: Instant::now() })))
    }
}

impl Activity {
    /// A request's head has arrived.
    pub(crate) fn begin(&self) -> InFlight {
        let mut looked = self.0.lock();
        looked.begun += 1;
        looked.in_flight += 1;
        InFlight(self.clone())
    }

    pub(crate) fn look(&self) -> Looked {
        *self.0.lock()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut looked = self.0.0.lock();
        looked.in_flight -= 1;
        looked.idle_since = Instant::now();
    }
}
