//! Bounds how much load retries may add: every request earns a fifth of a retry, every retry spends one.

/// Retries that may always happen in a burst.
const BURST: f64 = 32.0;
/// Retries per request in the long run.
const SHARE: f64 = 0.2;

/// Spent only on retries after an instance answered with a failure; moving away from a lost instance is always allowed.
#[derive(Clone, Debug)]
pub(super) struct RetryBudget {
    saved: f64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { saved: BURST }
    }
}

impl RetryBudget {
    pub(super) fn earn(&mut self) {
        self.saved = (self.saved + SHARE).min(BURST);
    }

    pub(super) fn spend(&mut self) -> bool {
        let allowed = self.saved >= 1.0;
        if allowed {
            self.saved -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_stay_a_fifth_of_requests() {
        let mut budget = RetryBudget::default();
        let retries = (0..1000)
            .filter(|_| {
                budget.earn();
                budget.spend()
            })
            .count();
        assert!((200..=200 + BURST as usize).contains(&retries), "{retries}");
    }
}
