//! One row of future batches: a context that grows by drawn tokens.
//!
//! `tokens` is prompt + output. KV of the first `computed` is in `table`; when all but none is missing the next token is drawn.
//! A sequence has several choices only until its first token is drawn; then it splits. Until then it may owe scores of its prompt:
//! whatever comes after the last score that was told is computed, even where the prefix cache has it.

use std::sync::Arc;

use engine::Probe;
use kv::{BlockHash, BlockPool, BlockTable, ChainRoot, Owner, Phase};
use types::{GenerateSpec, Pooling, RequestKey, SampledToken, SamplingParams, TokenId};

use super::constraint::Constraint;
use super::growth::Growth;
use super::job::{Goal, Job, KvWatcher};
use super::plan::{SeqId, SeqView};

pub(super) struct Sequence {
    pub(super) id: SeqId,
    pub(super) key: RequestKey,
    /// Never empty.
    pub(super) choices: Vec<u32>,
    pub(super) sampling: Arc<SamplingParams>,
    pub(super) tokens: Vec<TokenId>,
    pub(super) prompt_len: usize,
    pub(super) computed: usize,
    pub(super) table: BlockTable,
    /// Tokens drawn elsewhere that are not yet part of `tokens`; the sequence splits on them when it is admitted.
    pub(super) seeds: Vec<SampledToken>,
    /// Follows the output.
    pub(super) constraint: Option<Constraint>,
    /// Only on P; ends after its first tokens.
    pub(super) watcher: Option<Arc<dyn KvWatcher>>,
    /// Tokens of the prompt that were scored, the first included. All of them where nobody asked.
    pub(super) scored: usize,
    /// Makes a vector and draws nothing.
    pub(super) pooled: Option<Pooled>,
    pub(super) passed_over: u32,
    root: ChainRoot,
    /// Names of the full blocks of `tokens`, as far as they were needed.
    chain: Vec<BlockHash>,
    /// Leading blocks that the prefix cache knows.
    published: usize,
}

/// The hidden states that a vector is made of, as far as they are computed.
pub(super) struct Pooled {
    pooling: Pooling,
    pub(super) sum: Vec<f64>,
}

impl Pooled {
    pub(super) fn vector(&self, tokens: usize) -> Vec<f32> {
        let count = if self.pooling == Pooling::Mean { tokens as f64 } else { 1.0 };
        self.sum.iter().map(|sum| (sum / count) as f32).collect()
    }
}

impl Sequence {
    /// `root` is where the cache chain of this job's tenant starts.
    pub(super) fn new(job: Job, arrival: u64, root: ChainRoot, block_size: u32) -> Self {
        let Job { key, spec, goal, matcher } = job;
        let GenerateSpec { prompt, output, choices, sampling, .. } = spec;
        let mut tokens = prompt.to_vec();
        tokens.extend(output);
        let scored = if sampling.prompt_logprobs.is_some() { 1 } else { prompt.len() };
        let mut sequence = Self {
            id: SeqId { priority: sampling.priority, arrival, choice: choices.start },
            key,
            // A search has one root; its answers are numbered at its end.
            choices: if sampling.beam.is_some() { vec![choices.start] } else { choices.collect() },
            sampling: Arc::new(sampling),
            computed: 0,
            table: BlockTable::new(block_size),
            seeds: Vec::new(),
            constraint: matcher.map(Constraint::new),
            watcher: None,
            scored,
            pooled: None,
            passed_over: 0,
            root,
            chain: Vec::new(),
            published: 0,
            prompt_len: prompt.len(),
            tokens,
        };
        match goal {
            Goal::FirstTokens { watcher } => sequence.watcher = Some(watcher),
            Goal::Embed { pooling } => sequence.pooled = Some(Pooled { pooling, sum: Vec::new() }),
            Goal::Complete => {}
            Goal::Continue { table, first } => {
                sequence.computed = sequence.tokens.len();
                sequence.scored = sequence.prompt_len;
                sequence.table = table;
                sequence.choices = first.iter().map(|token| token.choice).collect();
                sequence.seeds = first;
            }
        }
        sequence
    }

    pub(super) fn owner(&self) -> Owner {
        let phase = if self.pending() > 1 { Phase::Computing } else { Phase::Decoding };
        Owner { key: self.key.clone(), phase }
    }

    /// Tokens to compute before the next draw. A landed sequence counts the seed that each of its choices will append.
    pub(super) fn pending(&self) -> usize {
        (self.tokens.len() - self.computed).max(1)
    }

    pub(super) fn output(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len..]
    }

    /// What the next `tokens` to be computed have to tell beside draws.
    pub(super) fn probe(&self, tokens: usize) -> Probe<'_> {
        let (start, end) = (self.computed, self.computed + tokens);
        match &self.pooled {
            Some(Pooled { pooling: Pooling::Mean, sum }) => return Probe::Hidden { count: tokens, before: sum },
            Some(Pooled { pooling: Pooling::Last, .. }) if end == self.tokens.len() => {
                return Probe::Hidden { count: 1, before: &[] };
            }
            _ => {}
        }
        let next = self.scored.max(start + 1)..self.prompt_len.min(end + 1);
        match self.sampling.prompt_logprobs {
            Some(top) if !next.is_empty() => {
                Probe::Scores { skip: next.start - 1 - start, next: &self.tokens[next], top }
            }
            _ => Probe::None,
        }
    }

    /// Rows that it takes while it runs.
    fn slots(&self) -> u32 {
        match self.sampling.beam {
            _ if self.watcher.is_some() => 1,
            Some(beam) if self.output().is_empty() => beam.width,
            _ => self.choices.len() as u32,
        }
    }

    /// Blocks that it will probably ask for beyond those of its present tokens.
    pub(super) fn growth(&self, expected: Growth, block_size: u32) -> u32 {
        if self.watcher.is_some() || self.pooled.is_some() {
            return 0;
        }
        let tokens = expected.tokens_left(self.output().len(), self.sampling.max_tokens);
        tokens.div_ceil(block_size.max(1)).saturating_mul(self.slots())
    }

    pub(super) fn view(&self, pool: &BlockPool, expected: Growth, cached: usize) -> SeqView {
        SeqView {
            id: self.id,
            pending: self.pending() as u32,
            cached: cached as u32,
            slots: self.slots(),
            growth: self.growth(expected, pool.block_size()),
            blocks_held: self.table.len() as u32,
            blocks_cached: (cached / pool.block_size() as usize) as u32,
            blocks_missing: self.blocks_missing(pool.block_size() as usize, cached) as u32,
            passed_over: self.passed_over,
        }
    }

    fn blocks_missing(&self, block_size: usize, cached: usize) -> usize {
        if self.seeds.is_empty() {
            return self.table.blocks_needed(self.tokens.len()).saturating_sub(cached / block_size);
        }
        // Each choice appends its seed: in the first one's own last block, in a copy of it, or in a new block.
        let partial = !self.tokens.len().is_multiple_of(block_size);
        self.seeds.len() - usize::from(partial)
    }

    /// Tokens that the prefix cache would give. The last token is always computed, since the draw needs its logits.
    pub(super) fn cached_len(&mut self, pool: &BlockPool) -> usize {
        self.name_blocks(pool.block_size() as usize);
        pool.cached_len(self.reusable(pool), &self.tokens)
    }

    /// Sets the blocks of the whole context aside, those that the prefix cache has included. All or nothing.
    pub(super) fn lease(&mut self, pool: &BlockPool) -> Result<(), kv::PoolFull> {
        self.name_blocks(pool.block_size() as usize);
        self.table.extend(pool.lookup(self.reusable(pool), &self.tokens, self.owner()));
        let found = self.table.len();
        self.grow(pool, self.tokens.len()).inspect_err(|_| self.forget_kv())?;
        self.computed = found * pool.block_size() as usize;
        self.published = found;
        Ok(())
    }

    /// Extends the table to hold `tokens` tokens.
    pub(super) fn grow(&mut self, pool: &BlockPool, tokens: usize) -> Result<(), kv::PoolFull> {
        let needed = self.table.blocks_needed(tokens);
        if needed > 0 {
            self.table.extend(pool.allocate(needed, self.owner())?);
        }
        Ok(())
    }

    /// Makes every full, computed block findable.
    pub(super) fn publish(&mut self, pool: &BlockPool) {
        let block_size = pool.block_size() as usize;
        let full = self.computed / block_size;
        if self.published >= full {
            return;
        }
        self.name_blocks(block_size);
        let blocks = self.table.blocks().iter().zip(&self.chain).zip(self.tokens.chunks_exact(block_size));
        let mut parent = self.published.checked_sub(1).and_then(|before| self.chain.get(before).copied());
        for ((block, hash), tokens) in blocks.take(full).skip(self.published) {
            pool.publish(block, *hash, parent, tokens);
            parent = Some(*hash);
        }
        self.published = full;
    }

    /// Gives all blocks back; everything is computed again later.
    pub(super) fn forget_kv(&mut self) {
        self.table.clear();
        self.pooled.iter_mut().for_each(|pooled| pooled.sum.clear());
        self.computed = 0;
        self.published = 0;
    }

    /// One sequence per unfinished token of `first`, each with that token appended and all blocks shared.
    pub(super) fn split(self, first: &[SampledToken]) -> Vec<Sequence> {
        let unfinished = first.iter().filter(|token| token.finish.is_none() && self.choices.contains(&token.choice));
        unfinished.map(|token| self.child(token)).collect()
    }

    fn child(&self, token: &SampledToken) -> Sequence {
        let mut tokens = Vec::with_capacity(self.tokens.len() + 1);
        tokens.extend_from_slice(&self.tokens);
        tokens.push(token.id);
        Sequence {
            id: SeqId { choice: token.choice, ..self.id },
            key: self.key.clone(),
            choices: vec![token.choice],
            sampling: self.sampling.clone(),
            tokens,
            prompt_len: self.prompt_len,
            computed: self.computed,
            table: self.table.fork(),
            seeds: Vec::new(),
            constraint: self.constraint.as_ref().map(Constraint::fork),
            watcher: None,
            scored: self.scored,
            pooled: None,
            passed_over: 0,
            root: self.root.clone(),
            chain: self.chain.clone(),
            published: self.published,
        }
    }

    fn reusable(&self, pool: &BlockPool) -> &[BlockHash] {
        let scored_to = match &self.pooled {
            Some(Pooled { pooling: Pooling::Mean, .. }) => 0,
            _ if self.scored < self.prompt_len => self.scored,
            _ => self.tokens.len(),
        };
        let blocks = scored_to.saturating_sub(1) / pool.block_size() as usize;
        &self.chain[..blocks.min(self.chain.len())]
    }

    fn name_blocks(&mut self, block_size: usize) {
        for block in self.tokens.chunks_exact(block_size).skip(self.chain.len()) {
            self.chain.push(self.root.next(self.chain.last().copied(), block));
        }
    }
}
