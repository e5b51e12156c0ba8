//! A deadline that moves with every event: its timer is set anew when it fires, not each time.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::time::{Instant, Sleep, sleep_until};

pub(crate) struct Deadline {
    timer: Pin<Box<Sleep>>,
    /// Whom the timer will wake.
    waiting: Option<Waker>,
}

impl Deadline {
    pub(crate) fn new(due: Instant) -> Self {
        Self { timer: Box::pin(sleep_until(due)), waiting: None }
    }

    /// Ready from `due` on, which must not be earlier than before.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        // Most polls are of a task that got something else: the timer need not hear of them.
        if !self.timer.is_elapsed() && self.waiting.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.waiting = Some(cx.waker().clone());
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }
}
