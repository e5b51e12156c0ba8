//! The oracle: one process, one sequence at a time, no cluster and no prefix cache.

use kv::{BlockPool, BlockTable, Owner, Phase};
use types::{GenerateSpec, Pooling, RequestKey, SampledToken, TokenId, TokenScore};

use crate::{Batch, BatchRow, Engine, Error, NoObserver, Probe, Probed, SampleRequest};

/// Generates every choice of `spec`, computing the prompt in steps of `chunk` tokens. One inner list per choice, in order.
///
/// The choices draw from the same logits of the prompt, then each goes on alone with a copy of the last, partial block.
pub fn generate(
    engine: &mut Engine,
    pool: &BlockPool,
    spec: &GenerateSpec,
    chunk: usize,
) -> Result<Vec<Vec<SampledToken>>, Error> {
    if spec.choices.is_empty() {
        return Ok(Vec::new());
    }
    let context: Vec<TokenId> = spec.prompt.iter().chain(&spec.output).copied().collect();
    let mut table = BlockTable::new(pool.block_size());
    table.extend(pool.allocate(table.blocks_needed(context.len()), owner(Phase::Computing))?);
    let first = prefill(engine, &table, spec, &context, chunk.max(1))?;
    first.into_iter().map(|token| continue_choice(engine, pool, spec, &table, context.len(), token)).collect()
}

/// How likely the model finds each token of `prompt` but the first, with the `top` most probable; computed in steps of `chunk` tokens.
pub fn prompt_scores(
    engine: &mut Engine,
    pool: &BlockPool,
    prompt: &[TokenId],
    top: u32,
    chunk: usize,
) -> Result<Vec<TokenScore>, Error> {
    let mut table = BlockTable::new(pool.block_size());
    table.extend(pool.allocate(table.blocks_needed(prompt.len()), owner(Phase::Computing))?);
    let chunk = chunk.clamp(1, engine.limits().max_num_batched_tokens as usize);
    let mut scores = Vec::with_capacity(prompt.len());
    for (number, tokens) in prompt.chunks(chunk).enumerate() {
        let start = number * chunk;
        let next = &prompt[start + 1..prompt.len().min(start + 1 + tokens.len())];
        let probe = Probe::Scores { skip: 0, next, top };
        let row = BatchRow { tokens, start: start as u32, blocks: table.ids(), samples: Vec::new(), probe };
        let mut output = engine.step(&Batch { rows: vec![row] }, &NoObserver)?;
        if let Some(Probed::Scores(found)) = output.probed.pop() {
            scores.extend(found);
        }
    }
    Ok(scores)
}

/// The text's vector as the model gives it, not brought to any length; computed in steps of `chunk` tokens.
pub fn embed(
    engine: &mut Engine,
    pool: &BlockPool,
    prompt: &[TokenId],
    pooling: Pooling,
    chunk: usize,
) -> Result<Vec<f32>, Error> {
    let mut table = BlockTable::new(pool.block_size());
    table.extend(pool.allocate(table.blocks_needed(prompt.len()), owner(Phase::Computing))?);
    let chunk = chunk.clamp(1, engine.limits().max_num_batched_tokens as usize);
    let mut sum = Vec::new();
    for (number, tokens) in prompt.chunks(chunk).enumerate() {
        let start = number * chunk;
        let ends = start + tokens.len() == prompt.len();
        let probe = match pooling {
            Pooling::Mean => Probe::Hidden { count: tokens.len(), before: &sum },
            Pooling::Last => Probe::Hidden { count: usize::from(ends), before: &[] },
        };
        let row = BatchRow { tokens, start: start as u32, blocks: table.ids(), samples: Vec::new(), probe };
        if let Some(Probed::Hidden(found)) = engine.step(&Batch { rows: vec![row] }, &NoObserver)?.probed.pop() {
            sum = found;
        }
    }
    let count = if pooling == Pooling::Mean { prompt.len() as f64 } else { 1.0 };
    Ok(sum.into_iter().map(|sum| (sum / count) as f32).collect())
}

fn owner(phase: Phase) -> Owner {
    Owner { key: RequestKey { request: "generate".into(), epoch: 0 }, phase }
}

/// Computes the context and draws each choice's first token.
fn prefill(
    engine: &mut Engine,
    table: &BlockTable,
    spec: &GenerateSpec,
    context: &[TokenId],
    chunk: usize,
) -> Result<Vec<SampledToken>, Error> {
    let chunk = chunk.min(engine.limits().max_num_batched_tokens as usize);
    let draws = |choice| SampleRequest {
        params: &spec.sampling,
        choice,
        prompt: &spec.prompt,
        output: &spec.output,
        constraint: None,
    };
    let mut start = 0;
    loop {
        let end = context.len().min(start + chunk);
        let samples = if end == context.len() { spec.choices.clone().map(draws).collect() } else { Vec::new() };
        let row = BatchRow {
            tokens: &context[start..end],
            start: start as u32,
            blocks: table.ids(),
            samples,
            probe: Probe::None,
        };
        let mut output = engine.step(&Batch { rows: vec![row] }, &NoObserver)?;
        if end == context.len() {
            return Ok(output.rows.swap_remove(0));
        }
        start = end;
    }
}

fn continue_choice(
    engine: &mut Engine,
    pool: &BlockPool,
    spec: &GenerateSpec,
    prefix: &BlockTable,
    context_len: usize,
    first: SampledToken,
) -> Result<Vec<SampledToken>, Error> {
    let mut table = prefix.fork();
    if !context_len.is_multiple_of(pool.block_size() as usize) {
        own_last_block(engine, pool, &mut table)?;
    }
    let mut output = spec.output.clone();
    let mut tokens = vec![first];
    while let Some(last) = tokens.last().filter(|token| token.finish.is_none()) {
        let (choice, id) = (last.choice, last.id);
        output.push(id);
        let position = context_len + tokens.len() - 1;
        table.extend(pool.allocate(table.blocks_needed(position + 1), owner(Phase::Decoding))?);
        let sample =
            SampleRequest { params: &spec.sampling, choice, prompt: &spec.prompt, output: &output, constraint: None };
        let row = BatchRow {
            tokens: &[id],
            start: position as u32,
            blocks: table.ids(),
            samples: vec![sample],
            probe: Probe::None,
        };
        let mut step = engine.step(&Batch { rows: vec![row] }, &NoObserver)?;
        tokens.append(&mut step.rows[0]);
    }
    Ok(tokens)
}

/// Replaces the last block by a copy that nobody else writes.
fn own_last_block(engine: &Engine, pool: &BlockPool, table: &mut BlockTable) -> Result<(), Error> {
    let (Some(shared), Some(own)) = (table.ids().last().copied(), pool.allocate(1, owner(Phase::Decoding))?.pop())
    else {
        return Ok(());
    };
    engine.copy_block(shared, own.id());
    table.truncate(table.len() - 1);
    table.push(own);
    Ok(())
}
