//! The body of an answer whose reader must go on taking: what is not taken for too long is dropped, and with it all that it held.
//!
//! Over HTTP/2 a peer that grants no window stops one stream without ever blocking the socket, and the server then does not ask the body
//! for more: no deadline inside the body could fire. So a task beside it watches. Over HTTP/1 the socket blocks, and its own deadline is
//! enough.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::port::InFlight;

/// See the module.
pub struct Paced<B>(Way<B>);

enum Way<B> {
    /// The socket's deadline is enough. The request is in flight until the answer is dropped.
    Plain {
        body: B,
        _request: InFlight,
    },
    Watched(Watched<B>),
}

/// A body with a task beside it.
struct Watched<B> {
    held: Arc<Mutex<Held<B>>>,
    watch: AbortHandle,
}

struct Held<B> {
    /// `None` once it has been cut.
    body: Option<(B, InFlight)>,
    /// Since when the server has something of ours and has not asked for more.
    untaken: Option<Instant>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The reader took nothing for too long.
#[derive(Debug, thiserror::Error)]
#[error("the peer takes no bytes")]
struct Untaken;

impl<B: Body + Send + Unpin + 'static> Paced<B> {
    /// `body` answers `request`, which is in flight until then. It is cut when it is left untaken for `limit`.
    pub(crate) fn new(body: B, request: InFlight, limit: Option<Duration>) -> Self {
        let Some(limit) = limit else { return Self(Way::Plain { body, _request: request }) };
        let held = Arc::new(Mutex::new(Held { body: Some((body, request)), untaken: Some(Instant::now()) }));
        let watch = tokio::spawn(watch(held.clone(), limit)).abort_handle();
        Self(Way::Watched(Watched { held, watch }))
    }
}

/// Cuts the body once it was left untaken for `limit`.
async fn watch<B>(held: Arc<Mutex<Held<B>>>, limit: Duration) {
    loop {
        let untaken = held.lock().untaken;
        let deadline = untaken.unwrap_or_else(Instant::now) + limit;
        tokio::time::sleep_until(deadline).await;
        let mut held = held.lock();
        if held.untaken.is_some_and(|since| since + limit <= Instant::now()) {
            held.body = None;
            return;
        }
    }
}

impl<B> Drop for Watched<B> {
    fn drop(&mut self) {
        self.watch.abort();
        // The task ends a little later, and must not hold anything until then.
        self.held.lock().body = None;
    }
}

impl<B: Body + Unpin> Body for Paced<B>
where
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        match &mut self.get_mut().0 {
            Way::Plain { body, .. } => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Way::Watched(watched) => watched.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Way::Plain { body, .. } => body.is_end_stream(),
            Way::Watched(watched) => watched.held.lock().body.as_ref().is_some_and(|(body, _)| body.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let of = |held: &Held<B>| held.body.as_ref().map_or_else(SizeHint::default, |(body, _)| body.size_hint());
        match &self.0 {
            Way::Plain { body, .. } => body.size_hint(),
            Way::Watched(watched) => of(&watched.held.lock()),
        }
    }
}

impl<B: Body + Unpin> Watched<B>
where
    B::Error: Into<BoxError>,
{
    fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut held = self.held.lock();
        let Some((body, _)) = &mut held.body else { return Poll::Ready(Some(Err(Untaken.into()))) };
        let poll = Pin::new(body).poll_frame(cx);
        held.untaken = poll.is_ready().then(Instant::now);
        poll.map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use hyper::body::Bytes;

    use super::*;
    use crate::port::Activity;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Always has more to say, or never says anything.
    struct Test {
        talks: bool,
    }

    impl Body for Test {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            if self.talks { Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x"))))) } else { Poll::Pending }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_taken_is_given_back() {
        let activity = Activity::default();
        let mut body = Paced::new(Test { talks: true }, activity.begin(), Some(LIMIT));
        for _ in 0..5 {
            body.frame().await.unwrap().unwrap();
            tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
        }
        assert_eq!(activity.look().in_flight, 1, "slow, but it goes on");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(activity.look().in_flight, 0);
        assert!(body.frame().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_not_the_reader_s_fault() {
        let activity = Activity::default();
        let mut body = Paced::new(Test { talks: false }, activity.begin(), Some(LIMIT));
        assert!(tokio::time::timeout(10 * LIMIT, body.frame()).await.is_err());
        assert_eq!(activity.look().in_flight, 1);
        drop(body);
        assert_eq!(activity.look().in_flight, 0);
    }
}
