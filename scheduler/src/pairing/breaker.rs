//! Keeps requests away from what fails: closed -> open after consecutive failures -> one probe -> closed or open for longer.

use std::time::Duration;

use tokio::time::Instant;

const OPEN_FIRST: Duration = Duration::from_secs(1);
const OPEN_MAX: Duration = Duration::from_secs(30);

/// For one instance or one pair. What the client did wrong is never counted.
#[derive(Clone, Debug)]
pub(super) struct Breaker {
    /// Consecutive failures that open it.
    threshold: u32,
    failures: u32,
    /// Seldom there, so out of the way.
    open: Option<Box<Open>>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    until: Instant,
    pause: Duration,
}

impl Breaker {
    pub(super) fn new(threshold: u32) -> Self {
        Self { threshold, failures: 0, open: None }
    }

    /// Whether a request may go there now.
    pub(super) fn allows(&self, now: Instant) -> bool {
        self.open.as_ref().is_none_or(|open| now >= open.until)
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// A request goes there. With an open breaker it is the probe: until it succeeds, the next one waits twice as long. (A probe that
    /// never reports, because its client left, closes the door for that long and not for ever.)
    pub(super) fn tried(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            let pause = (open.pause * 2).min(OPEN_MAX);
            **open = Open { until: now + pause, pause };
        }
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::new(self.threshold);
    }

    pub(super) fn failed(&mut self, now: Instant) {
        self.failures += 1;
        if self.failures >= self.threshold && self.open.is_none() {
            self.open = Some(Box::new(Open { until: now + OPEN_FIRST, pause: OPEN_FIRST }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_the_threshold_and_probes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::new(2);
        breaker.failed(start);
        assert!(breaker.allows(start), "one failure");
        breaker.failed(start);
        assert!(!breaker.allows(start), "two failures");
        assert!(breaker.allows(at(1)), "probe after the pause");
        breaker.tried(at(1));
        assert!(!breaker.allows(at(2)), "only one probe");
        breaker.failed(at(2));
        assert!(!breaker.allows(at(2)), "the probe failed: twice the pause");
        assert!(breaker.allows(at(3)), "next probe");
        breaker.succeeded();
        assert!(breaker.allows(at(3)) && !breaker.is_open(), "closed");
    }

    #[test]
    fn a_success_forgets_failures() {
        let now = Instant::now();
        let mut breaker = Breaker::new(2);
        for _ in 0..5 {
            breaker.failed(now);
            breaker.succeeded();
        }
        assert!(breaker.allows(now));
    }
}
