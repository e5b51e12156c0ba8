//! What is on its way to one worker: a bounded queue whose producers never wait.
//!
//! Work is refused when the queue is full, so that a worker that stopped reading blocks nobody. A cancel is always taken: it first
//! removes what is still queued for its attempt, so cancels are at most as many as attempts that the worker has really been sent.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::Stream;
use parking_lot::Mutex;
use proto::control::{self, Cancel, SchedulerMessage, scheduler_message::Body};
use types::RequestKey;

/// Messages that may wait for the worker to read: some seconds of work for a busy instance.
const MESSAGES_MAX: usize = 1024;

/// Cheap to clone; all clones are one queue.
#[derive(Clone, Default)]
pub(crate) struct Outbox(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    messages: VecDeque<Body>,
    reader: Option<Waker>,
    closed: bool,
}

/// The worker does not read (or is gone).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotSent;

impl Outbox {
    pub(crate) fn send(&self, body: Body) -> Result<(), NotSent> {
        let mut queue = self.0.lock();
        if queue.closed || queue.messages.len() >= MESSAGES_MAX {
            return Err(NotSent);
        }
        queue.push(body);
        Ok(())
    }

    /// Forgets these choices of an attempt (none = all of it) on the worker.
    pub(crate) fn cancel(&self, key: &RequestKey, choices: Vec<u32>) {
        let mut queue = self.0.lock();
        if queue.closed {
            return;
        }
        let wire = control::Key::from(key);
        if choices.is_empty() {
            queue.messages.retain(|body| key_of(body) != Some(&wire));
        }
        queue.push(Body::Cancel(Cancel { key: Some(wire), choices }));
    }

    /// Nothing more is taken, and the stream ends.
    pub(crate) fn close(&self) {
        let mut queue = self.0.lock();
        queue.closed = true;
        queue.messages.clear();
        queue.wake();
    }

    /// The worker's end of the queue. There is one reader at a time.
    pub(crate) fn stream(&self) -> impl Stream<Item = SchedulerMessage> + Send + 'static {
        OutboxStream(self.clone())
    }
}

impl Queue {
    fn push(&mut self, body: Body) {
        self.messages.push_back(body);
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

fn key_of(body: &Body) -> Option<&control::Key> {
    match body {
        Body::Reserve(message) => message.key.as_ref(),
        Body::Prefill(message) => message.key.as_ref(),
        Body::Generate(message) => message.key.as_ref(),
        Body::Embed(message) => message.key.as_ref(),
        Body::Cancel(message) => message.key.as_ref(),
        Body::Hello(_) | Body::Ping(_) => None,
    }
}

struct OutboxStream(Outbox);

impl Stream for OutboxStream {
    type Item = SchedulerMessage;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = self.0.0.lock();
        if let Some(body) = queue.messages.pop_front() {
            return Poll::Ready(Some(SchedulerMessage { body: Some(body) }));
        }
        if queue.closed {
            return Poll::Ready(None);
        }
        queue.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, StreamExt};
    use proto::control::{Ping, Reserve};

    fn key(epoch: u32) -> RequestKey {
        RequestKey { request: "r".into(), epoch }
    }

    fn reserve(epoch: u32) -> Body {
        Body::Reserve(Reserve { key: Some((&key(epoch)).into()), spec: None })
    }

    fn drain(outbox: &Outbox) -> Vec<Body> {
        let mut stream = Box::pin(outbox.stream());
        std::iter::from_fn(|| stream.next().now_or_never().flatten()).filter_map(|message| message.body).collect()
    }

    #[test]
    fn a_full_queue_refuses_work_but_takes_cancels() {
        let outbox = Outbox::default();
        for epoch in 0..MESSAGES_MAX as u32 {
            assert_eq!(outbox.send(reserve(epoch)), Ok(()));
        }
        assert_eq!(outbox.send(Body::Ping(Ping::default())), Err(NotSent));
        for epoch in 0..MESSAGES_MAX as u32 {
            outbox.cancel(&key(epoch), vec![]);
        }
        let sent = drain(&outbox);
        assert_eq!(sent.len(), MESSAGES_MAX, "each cancel took the place of its own message");
        assert!(sent.iter().all(|body| matches!(body, Body::Cancel(_))));
    }

    #[test]
    fn cancelling_a_choice_keeps_the_attempt() {
        let outbox = Outbox::default();
        outbox.send(reserve(1)).unwrap();
        outbox.cancel(&key(1), vec![0]);
        assert_eq!(drain(&outbox).len(), 2);
    }

    #[test]
    fn a_closed_queue_ends_its_stream() {
        let outbox = Outbox::default();
        outbox.send(reserve(1)).unwrap();
        outbox.close();
        assert_eq!(outbox.send(reserve(2)), Err(NotSent));
        assert!(Box::pin(outbox.stream()).next().now_or_never().unwrap().is_none());
    }
}
