//! A plan's rows as the engine's batch.

use std::ops::Range;
use std::sync::Arc;

use engine::{Batch, BatchRow, SampleRequest, StepObserver, StepOutput};
use proto::control::StepCost;

use super::sequence::Sequence;
use super::{KvWatcher, Plan, Runner, SeqId, Stepper};

/// A running sequence in a step.
pub(super) struct Row {
    pub(super) id: SeqId,
    pub(super) tokens: usize,
    /// These are the last of its pending tokens.
    pub(super) draws: bool,
}

impl Runner {
    /// The plan's rows as far as there are blocks and budget for them.
    pub(super) fn rows(&mut self, plan: &Plan) -> Vec<Row> {
        let mut budget = self.config.max_num_batched_tokens.max(1) as usize;
        let mut rows = Vec::with_capacity(plan.rows.len());
        for &(id, tokens) in &plan.rows {
            let Some(sequence) = self.running.get_mut(&id) else { continue };
            let pending = sequence.pending();
            let tokens = pending.min(tokens as usize).min(budget);
            if tokens > 0 && sequence.grow(&self.pool, sequence.computed + tokens).is_ok() {
                budget -= tokens;
                rows.push(Row { id, tokens, draws: tokens == pending });
            }
        }
        rows
    }

    pub(super) fn compute(&self, rows: &[Row], stepper: &mut dyn Stepper) -> Result<StepOutput, engine::Error> {
        let mut batch = Batch { rows: Vec::with_capacity(rows.len()) };
        let mut watched = Watched(Vec::new());
        for row in rows {
            let Some(sequence) = self.running.get(&row.id) else { continue };
            batch.rows.push(batch_row(sequence, row));
            if let Some(watcher) = &sequence.watcher {
                let start = sequence.computed as u32;
                watched.0.push((watcher.clone(), start..start + row.tokens as u32));
            }
        }
        stepper.step(&batch, &watched)
    }

    pub(super) fn cost(&self, rows: &[Row], micros: u64) -> StepCost {
        let mut cost = StepCost { micros, ..StepCost::default() };
        for row in rows {
            let computed = self.running.get(&row.id).map_or(0, |sequence| sequence.computed);
            cost.context_tokens += (computed + row.tokens) as u32;
            match row.tokens {
                1 => cost.decode_rows += 1,
                chunk => cost.prefill_tokens += chunk as u32,
            }
        }
        cost
    }
}

/// Passes finished layers on to the watchers of the rows, each with its row's tokens.
struct Watched(Vec<(Arc<dyn KvWatcher>, Range<u32>)>);

impl StepObserver for Watched {
    fn layer_done(&self, layer: u32, heads: Range<u32>) {
        for (watcher, tokens) in &self.0 {
            watcher.layer_done(layer, heads.clone(), tokens.clone());
        }
    }
}

fn batch_row<'a>(sequence: &'a Sequence, row: &Row) -> BatchRow<'a> {
    let draw = |&choice| SampleRequest {
        params: &sequence.sampling,
        choice,
        prompt: &sequence.tokens[..sequence.prompt_len],
        output: sequence.output(),
        constraint: sequence.constraint.as_ref().map(|constraint| constraint as &dyn engine::Constraint),
    };
    BatchRow {
        tokens: &sequence.tokens[sequence.computed..][..row.tokens],
        start: sequence.computed as u32,
        blocks: sequence.table.ids(),
        probe: sequence.probe(row.tokens),
        samples: if row.draws && sequence.pooled.is_none() {
            sequence.choices.iter().map(draw).collect()
        } else {
            Vec::new()
        },
    }
}
