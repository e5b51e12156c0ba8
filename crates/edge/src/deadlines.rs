//! A socket with the deadlines that HTTP cannot see: requests must come, and what is written must be taken.
//!
//! hyper's own timers do not cover the detection of the HTTP version, nor idle HTTP/2 connections, nor a peer that stops reading.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::port::{Activity, PortBounds};

/// What an HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// See the module. A deadline that runs out is an error of the read or write that waits.
pub struct Deadlines<S> {
    stream: S,
    activity: Activity,
    header_read: Duration,
    idle: Duration,
    write_progress: Duration,
    opened: Instant,
    /// Bytes that were those of the preface, so far.
    preface: usize,
    is_http2: bool,
    /// HTTP/1: the number of requests before the one whose head is arriving, and when its first byte came.
    head: Option<(u64, Instant)>,
    /// Runs while a read waits.
    read: Pin<Box<Sleep>>,
    /// Runs while a write waits.
    write: Option<Pin<Box<Sleep>>>,
}

impl<S> Deadlines<S> {
    /// `activity` is told of the requests on this connection.
    pub(crate) fn new(stream: S, bounds: &PortBounds, activity: Activity) -> Self {
        let PortBounds { header_read, idle, write_progress, .. } = *bounds;
        let opened = Instant::now();
        let read = Box::pin(tokio::time::sleep(header_read));
        let (preface, is_http2, head, write) = (0, true, None, None);
        Self { stream, activity, header_read, idle, write_progress, opened, preface, is_http2, head, read, write }
    }

    /// When the peer must have sent something, if nothing else happens.
    fn read_deadline(&self) -> Instant {
        let activity = self.activity.look();
        match self.head {
            _ if activity.begun == 0 => self.opened + self.header_read,
            _ if activity.in_flight > 0 => Instant::now() + self.idle,
            Some((before, since)) if before == activity.begun && !self.is_http2 => since + self.header_read,
            _ => activity.idle_since + self.idle,
        }
    }

    fn on_bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let expected = PREFACE.get(self.preface..).unwrap_or_default();
        self.is_http2 &= bytes.iter().zip(expected).all(|(found, expected)| found == expected);
        self.preface = (self.preface + bytes.len()).min(PREFACE.len());
        let activity = self.activity.look();
        let known = self.head.is_some_and(|(before, _)| before == activity.begun);
        if activity.in_flight == 0 && !known {
            self.head = Some((activity.begun, Instant::now()));
            if activity.begun > 0 {
                // Sooner than what the timer was set to while the connection was idle.
                let deadline = self.read_deadline();
                self.read.as_mut().reset(deadline);
            }
        }
    }

    /// Notes whether a write went on; an error when it has been waiting for too long.
    fn progress<T>(&mut self, poll: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.write = None;
            return poll;
        }
        let progress = self.write_progress;
        let deadline = self.write.get_or_insert_with(|| Box::pin(tokio::time::sleep(progress)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes no bytes")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Deadlines<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
        if poll.is_ready() {
            self.on_bytes(buf.filled().get(before..).unwrap_or_default());
            return poll;
        }
        // The deadline moves while the timer runs; looked at anew whenever it fires.
        loop {
            ready!(self.read.as_mut().poll(cx));
            let deadline = self.read_deadline();
            if deadline <= Instant::now() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no request came")));
            }
            self.read.as_mut().reset(deadline);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Deadlines<S> {
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
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.progress(poll, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.progress(poll, cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const BOUNDS: fn() -> PortBounds = PortBounds::default;

    fn pair() -> (Deadlines<DuplexStream>, DuplexStream, Activity) {
        let (near, far) = tokio::io::duplex(64);
        let activity = Activity::default();
        (Deadlines::new(near, &BOUNDS(), activity.clone()), far, activity)
    }

    /// Reads until the deadline; after how many seconds it ran out.
    async fn cut_after(stream: &mut Deadlines<DuplexStream>, since: Instant) -> u64 {
        let mut bytes = [0; 64];
        loop {
            if let Err(error) = stream.read(&mut bytes).await {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                return since.elapsed().as_secs();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_request_must_come_soon_however_slowly_it_drips() {
        for first in [&b""[..], b"G", PREFACE] {
            let (mut stream, mut far, _activity) = pair();
            let start = Instant::now();
            far.write_all(first).await.unwrap();
            let drip = tokio::spawn(async move {
                while far.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
            assert_eq!(cut_after(&mut stream, start).await, BOUNDS().header_read.as_secs());
            drip.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn later_requests_may_wait_until_the_connection_is_idle_for_too_long() {
        let (mut stream, mut far, activity) = pair();
        let start = Instant::now();
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut head = [0; 18];
        stream.read_exact(&mut head).await.unwrap();
        let request = activity.begin();
        let ended = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(100)).await;
            drop(request);
        });
        assert_eq!(cut_after(&mut stream, start).await, 100 + BOUNDS().idle.as_secs());
        ended.await.unwrap();
        // A second head that has begun must end soon.
        let (mut stream, mut far, activity) = pair();
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        stream.read_exact(&mut head).await.unwrap();
        drop(activity.begin());
        far.write_all(b"GET").await.unwrap();
        let start = Instant::now();
        assert_eq!(cut_after(&mut stream, start).await, BOUNDS().header_read.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_must_be_taken() {
        let (mut stream, _far, _activity) = pair();
        let start = Instant::now();
        let error = stream.write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), BOUNDS().write_progress);
    }
}
