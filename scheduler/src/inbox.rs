//! What a worker has said of one attempt and its request has not read yet. One reader; cheap to clone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::link::Event;

/// Events that may wait. A request only ever waits for these, so more means a flood.
const EVENTS_MAX: usize = 4096;

#[derive(Clone, Default)]
pub(crate) struct Inbox(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    events: VecDeque<Event>,
    reader: Option<Waker>,
    closed: bool,
}

impl Inbox {
    /// False: full.
    pub(crate) fn put(&self, event: Event) -> bool {
        let reader = {
            let mut waiting = self.0.lock();
            if waiting.events.len() >= EVENTS_MAX {
                return false;
            }
            waiting.events.push_back(event);
            waiting.reader.take()
        };
        reader.into_iter().for_each(Waker::wake);
        true
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) {
        let reader = {
            let mut waiting = self.0.lock();
            waiting.closed = true;
            waiting.reader.take()
        };
        reader.into_iter().for_each(Waker::wake);
    }

    /// The next event; `None` when it is closed and empty.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut waiting = self.0.lock();
        if let Some(event) = waiting.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        if waiting.closed {
            return Poll::Ready(None);
        }
        match &mut waiting.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt;
    use proto::control::TransferStats;

    use super::*;

    fn next(inbox: &Inbox) -> Option<Option<Event>> {
        poll_fn(|cx| inbox.poll_take(cx)).now_or_never()
    }

    fn event() -> Event {
        Event::Shipped(TransferStats::default())
    }

    #[test]
    fn what_came_before_the_end_is_read() {
        let inbox = Inbox::default();
        assert!(next(&inbox).is_none());
        assert!(inbox.put(event()));
        inbox.close();
        assert!(matches!(next(&inbox), Some(Some(Event::Shipped(_)))));
        assert!(matches!(next(&inbox), Some(None)));
    }

    #[test]
    fn a_flood_is_refused() {
        let inbox = Inbox::default();
        assert!((0..EVENTS_MAX).all(|_| inbox.put(event())));
        assert!(!inbox.put(event()));
    }

    #[tokio::test]
    async fn the_reader_is_woken() {
        let inbox = Inbox::default();
        let (reading, closing) = (inbox.clone(), inbox.clone());
        let reader = tokio::spawn(async move { while poll_fn(|cx| reading.poll_take(cx)).await.is_some() {} });
        for _ in 0..3 {
            tokio::task::yield_now().await;
            assert!(inbox.put(event()));
        }
        tokio::task::yield_now().await;
        closing.close();
        reader.await.unwrap();
    }
}
