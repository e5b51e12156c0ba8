//! The scores of one prompt's tokens, as attempts tell them.
//!
//! They are collected once: an attempt that begins anew repeats what is known, and when all are known no further attempt is asked.

use parking_lot::Mutex;
use proto::control;
use types::TokenScore;

pub(super) struct Scores {
    /// Of the prompt's tokens but the first; none where the client did not ask.
    wanted: usize,
    known: Mutex<Vec<TokenScore>>,
}

/// Scores that leave out some before them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("scores from position {found} on after {known} positions")]
pub(super) struct Gap {
    found: u32,
    known: usize,
}

impl Scores {
    pub(super) fn new(wanted: usize) -> Self {
        Self { wanted, known: Mutex::default() }
    }

    pub(super) fn are_complete(&self) -> bool {
        self.known.lock().len() >= self.wanted
    }

    /// Takes what is new. Returns all of them when that was the last.
    pub(super) fn add(&self, message: control::PromptScores) -> Result<Option<Vec<TokenScore>>, Gap> {
        let mut known = self.known.lock();
        // The prompt's first token has no score.
        let next = known.len() + 1;
        let repeated = next.checked_sub(message.first as usize);
        let repeated = repeated.ok_or(Gap { found: message.first, known: next })?;
        let missing = self.wanted.saturating_sub(known.len());
        let new = message.scores.into_iter().skip(repeated).take(missing).map(TokenScore::from);
        let before = known.len();
        known.extend(new);
        Ok((before < self.wanted && known.len() == self.wanted).then(|| known.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_collected_once_and_in_order() {
        let message = |first: u32, count: u32| {
            let score = |rank| control::TokenScore { logprob: -1.0, rank, top: Vec::new() };
            control::PromptScores { key: None, first, scores: (first..first + count).map(score).collect() }
        };
        let scores = Scores::new(5);
        assert_eq!(scores.add(message(1, 2)), Ok(None));
        assert_eq!(scores.add(message(4, 1)), Err(Gap { found: 4, known: 3 }));
        // Another attempt tells all of them again, and one too many.
        assert_eq!(scores.add(message(1, 3)), Ok(None));
        assert!(!scores.are_complete());
        let all = scores.add(message(4, 3)).unwrap().unwrap();
        assert_eq!(all.iter().map(|score| score.rank).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(scores.are_complete() && Scores::new(0).are_complete());
        assert_eq!(scores.add(message(1, 5)), Ok(None));
    }
}
