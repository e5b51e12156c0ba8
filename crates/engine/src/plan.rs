//! A batch, checked and laid out for the backends: what every rank reads during a step.

use std::ops::Range;

pub(crate) use kernels::KvRow;
use kernels::KvRows;
use types::TokenId;

use crate::{Batch, BatchRow, Error, Probe};

/// The tokens of all rows one after the other. Kept from step to step, so that a warm step allocates nothing for it.
#[derive(Debug, Default)]
pub(crate) struct StepPlan {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) rows: Vec<KvRow>,
    /// The kept tokens as rows, counted from 0: what is left to compute once the last layer's KV is written.
    pub(crate) ends: Vec<KvRow>,
    /// Blocks of all rows.
    blocks: Vec<u32>,
    /// `[token][head_dim / 2]`
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
    /// Tokens that are computed to the end, in row order: those of which something is wanted beside KV.
    pub(crate) kept: Vec<usize>,
    /// Where among the kept the last token of each row stands that samples, in row order.
    pub(crate) sampled: Vec<usize>,
    /// Where among the kept each row's first probed token stands.
    pub(crate) probed: Vec<usize>,
}

/// What a batch must keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) vocab_size: usize,
    pub(crate) max_model_len: usize,
    pub(crate) block_size: usize,
    pub(crate) blocks: u32,
    pub(crate) max_rows: usize,
    pub(crate) max_tokens: usize,
}

impl StepPlan {
    /// Makes this the plan of another batch. `inverse_frequencies` are the rotation's, one per pair of a head.
    pub(crate) fn fill(
        &mut self,
        batch: &Batch<'_>,
        bounds: &Bounds,
        inverse_frequencies: &[f32],
    ) -> Result<(), Error> {
        check_size(batch, bounds)?;
        let plan = self;
        plan.clear();
        for (index, row) in batch.rows.iter().enumerate() {
            let (first, count, start) = (plan.tokens.len(), row.tokens.len(), row.start as usize);
            check_row(row, bounds).map_err(|reason| Error::Batch { row: index, reason })?;
            plan.tokens.extend_from_slice(row.tokens);
            for position in start..start + count {
                plan.push_angles(position, inverse_frequencies);
            }
            let held = row.blocks.iter().take((start + count).div_ceil(bounds.block_size));
            let before = plan.blocks.len();
            plan.blocks.extend(held.map(|block| block.0));
            let blocks = before..plan.blocks.len();
            plan.keep(row, first, blocks.clone());
            plan.rows.push(KvRow { first, count, start, blocks });
        }
        Ok(())
    }

    fn clear(&mut self) {
        let Self { tokens, rows, ends, blocks, cos, sin, kept, sampled, probed } = self;
        tokens.clear();
        [rows, ends].into_iter().for_each(Vec::clear);
        blocks.clear();
        [cos, sin].into_iter().for_each(Vec::clear);
        [kept, sampled, probed].into_iter().for_each(Vec::clear);
    }

    /// Notes what of a row, which begins at token `first` of the plan, is computed to the end.
    fn keep(&mut self, row: &BatchRow<'_>, first: usize, blocks: Range<usize>) {
        let last = if row.samples.is_empty() {
            row.tokens.len()..row.tokens.len()
        } else {
            row.tokens.len() - 1..row.tokens.len()
        };
        let probed = match row.probe {
            Probe::Scores { skip, next, .. } if !next.is_empty() => skip..skip + next.len(),
            Probe::Hidden { count, .. } if count > 0 => row.tokens.len() - count..row.tokens.len(),
            Probe::Scores { .. } | Probe::Hidden { .. } | Probe::None => last.clone(),
        };
        let kept = probed.start.min(last.start)..if last.is_empty() { probed.end } else { last.end };
        self.probed.push(self.kept.len() + probed.start - kept.start);
        if kept.is_empty() {
            return;
        }
        let start = row.start as usize + kept.start;
        self.ends.push(KvRow { first: self.kept.len(), count: kept.len(), start, blocks });
        self.kept.extend(kept.map(|token| first + token));
        if !last.is_empty() {
            self.sampled.push(self.kept.len() - 1);
        }
    }

    /// Some of this plan's rows as kernels take them.
    pub(crate) fn kv_rows<'a>(&'a self, rows: &'a [KvRow]) -> KvRows<'a> {
        KvRows { rows, blocks: &self.blocks }
    }

    /// In f32 up to the angle, as the models were trained.
    fn push_angles(&mut self, position: usize, inverse_frequencies: &[f32]) {
        for frequency in inverse_frequencies {
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            self.cos.push(cos as f32);
            self.sin.push(sin as f32);
        }
    }
}

fn check_size(batch: &Batch<'_>, bounds: &Bounds) -> Result<(), Error> {
    let refuse = |row, reason| Err(Error::Batch { row, reason });
    if batch.rows.is_empty() {
        return refuse(0, "the batch has no rows".to_owned());
    }
    if batch.rows.len() > bounds.max_rows {
        let reason = format!("{} rows, max_num_seqs is {}", batch.rows.len(), bounds.max_rows);
        return refuse(bounds.max_rows, reason);
    }
    let mut tokens = 0usize;
    for (index, row) in batch.rows.iter().enumerate() {
        tokens = tokens.saturating_add(row.tokens.len());
        if tokens > bounds.max_tokens {
            return refuse(
                index,
                format!("more than max_num_batched_tokens ({}) tokens in the batch", bounds.max_tokens),
            );
        }
    }
    Ok(())
}

fn check_row(row: &BatchRow<'_>, bounds: &Bounds) -> Result<(), String> {
    if row.tokens.is_empty() {
        return Err("no tokens".to_owned());
    }
    let end = row.start as usize + row.tokens.len();
    if end > bounds.max_model_len {
        return Err(format!("ends at position {end}, max_model_len is {}", bounds.max_model_len));
    }
    if let Some(token) = row.tokens.iter().find(|token| **token as usize >= bounds.vocab_size) {
        return Err(format!("token {token} of a vocabulary of {}", bounds.vocab_size));
    }
    let needed = end.div_ceil(bounds.block_size);
    if row.blocks.len() < needed {
        return Err(format!("{} blocks of {} tokens for {end} positions", row.blocks.len(), bounds.block_size));
    }
    check_probe(&row.probe, row.tokens.len(), bounds)?;
    match row.blocks.iter().take(needed).find(|block| block.0 >= bounds.blocks) {
        Some(block) => Err(format!("block {} of {}", block.0, bounds.blocks)),
        None => Ok(()),
    }
}

fn check_probe(probe: &Probe<'_>, tokens: usize, bounds: &Bounds) -> Result<(), String> {
    match probe {
        Probe::None => Ok(()),
        Probe::Scores { skip, next, .. } if skip.saturating_add(next.len()) > tokens => {
            Err(format!("{} scores after token {skip} of {tokens}", next.len()))
        }
        Probe::Hidden { count, .. } if *count > tokens => Err(format!("hidden states of {count} tokens of {tokens}")),
        Probe::Hidden { .. } => Ok(()),
        Probe::Scores { next, .. } => match next.iter().find(|token| **token as usize >= bounds.vocab_size) {
            Some(token) => Err(format!("scored token {token} of a vocabulary of {}", bounds.vocab_size)),
            None => Ok(()),
        },
    }
}
