//! What a step reports of a row's tokens beside draws.
//!
//! The residual stream of the kept tokens is still in the backends when the draws are done; only the asked ones go through the head,
//! and only so many at a time as their logits are worth in memory.

use std::ops::Range;

use parking_lot::Mutex;
use types::{TokenId, TokenScore};

use crate::engine::Rank;
use crate::plan::StepPlan;
use crate::{Batch, BatchRow, Engine, Error, Probe, Probed};

/// Rows of logits at once: 40 MB with a vocabulary of 150,000.
const ROWS: usize = 64;

impl Engine {
    /// Answers the rows' probes, from what the step just computed.
    pub(crate) fn probe(&mut self, batch: &Batch<'_>, plan: &StepPlan) -> Result<Vec<Probed>, Error> {
        let probes = batch.rows.iter().zip(&plan.probed).enumerate();
        let answer = |(index, (row, first)): (usize, (&BatchRow<'_>, &usize))| match row.probe {
            Probe::None => Ok(Probed::None),
            Probe::Hidden { count, before } => Ok(Probed::Hidden(self.hidden(*first..*first + count, before))),
            Probe::Scores { next, top, .. } => {
                self.scores(*first, next, top).map(Probed::Scores).ok_or(Error::NotANumber { row: index })
            }
        };
        probes.map(answer).collect()
    }

    /// Scores `next[i]` by the logits of the kept token `first + i`. `None` if they are not numbers.
    fn scores(&mut self, first: usize, next: &[TokenId], top: u32) -> Option<Vec<TokenScore>> {
        let mut scores = Vec::with_capacity(next.len());
        for (chunk, ids) in next.chunks(ROWS).enumerate() {
            let start = first + chunk * ROWS;
            self.logits_of(&(start..start + ids.len()).collect::<Vec<_>>());
            let rows: Vec<_> = ids.iter().zip(self.logits.chunks_exact(self.bounds.vocab_size)).collect();
            let found: Vec<_> = rows.iter().map(|_| Mutex::new(None)).collect();
            self.pool.run(rows.len(), |row| {
                let (id, logits) = rows[row];
                *found[row].lock() = self.sampler.score(logits, *id, top);
            });
            scores.extend(found.into_iter().map(Mutex::into_inner).collect::<Option<Vec<_>>>()?);
        }
        Some(scores)
    }

    /// Adds the hidden states of these kept tokens to `before`, one after the other, so that the sum does not depend on the chunks.
    fn hidden(&mut self, tokens: Range<usize>, before: &[f64]) -> Vec<f64> {
        let mut sum = before.to_vec();
        // Every rank holds the whole residual stream.
        let Some(rank) = self.ranks.first_mut() else { return sum };
        let Rank { backend, decoder } = rank.get_mut();
        let states = decoder.hidden(backend, &tokens.clone().collect::<Vec<_>>());
        let width = states.len() / tokens.len().max(1);
        sum.resize(width, 0.0);
        for state in states.chunks_exact(width.max(1)) {
            sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        sum
    }

    /// Puts the logits of these kept tokens into `self.logits`.
    fn logits_of(&mut self, tokens: &[usize]) {
        self.rank_threads.run(self.ranks.len(), |rank| {
            let _member = self.all_reduce.membership();
            let Rank { backend, decoder } = &mut *self.ranks[rank].lock();
            decoder.logits(backend, tokens);
        });
        self.gather_logits(tokens.len());
    }
}
