//! How much longer texts become: learned from those that ended, as a share of what they might have become.
//!
//! It decides how many sequences may share the pool. Too low, and many start that then push each other out, each waiting for the
//! others' ends while its client sees nothing; too high, and blocks lie idle that nobody ends up using.

/// What a new text is expected to use of its `max_tokens` as long as nobody has ended: enough for short answers.
const FIRST_PERMILLE: u32 = 250;
/// Allowances count up to here: who allows more rarely means it.
const ALLOWED_MAX: u32 = 4096;
/// Allowances so small say nothing about others (a canary's, say).
const ALLOWED_MIN: u32 = 8;

/// A fading mean. `Copy`, so that it can be told to those who set blocks aside elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    permille: u32,
}

impl Default for Growth {
    fn default() -> Self {
        Self { permille: FIRST_PERMILLE }
    }
}

impl Growth {
    /// A text ended with `used` of the tokens that it was allowed.
    pub(super) fn observe(&mut self, used: usize, allowed: u32) {
        if allowed >= ALLOWED_MIN {
            let used = u64::try_from(used).unwrap_or(u64::MAX).min(u64::from(allowed));
            let share = (used * 1000 / u64::from(allowed)) as u32;
            self.permille = (7 * self.permille + share).div_ceil(8);
        }
    }

    /// Tokens that a text of `drawn` tokens will probably still become, 1 at least.
    pub fn tokens_left(&self, drawn: usize, allowed: u32) -> u32 {
        let drawn = u32::try_from(drawn).unwrap_or(u32::MAX);
        let expected = allowed.min(ALLOWED_MAX) * self.permille / 1000;
        expected.saturating_sub(drawn).clamp(1, allowed.saturating_sub(drawn).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expectation_follows_those_that_ended() {
        let mut growth = Growth::default();
        assert_eq!(growth.tokens_left(0, 400), 100);
        assert_eq!(growth.tokens_left(100, 400), 1, "longer than expected");
        assert_eq!(growth.tokens_left(0, u32::MAX), 1024);
        (0..40).for_each(|_| growth.observe(400, 400));
        assert_eq!(
            (growth.tokens_left(0, 400), growth.tokens_left(399, 400), growth.tokens_left(400, 400)),
            (400, 1, 1)
        );
        growth.observe(2, 2);
        (0..40).for_each(|_| growth.observe(20, 400));
        assert!((20..60).contains(&growth.tokens_left(0, 400)), "{growth:?}");
    }
}
