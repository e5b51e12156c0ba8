//! The engine that computes digests instead of attention.

use std::sync::Arc;

use engine::{Batch, BatchRow, Probe, Probed, SampleRequest, StepObserver, StepOutput};
use kv::{BlockId, KvDtype, KvError, KvLayout, KvSpan, KvStore};
use parking_lot::Mutex;
use text::Matcher;
use types::{
    BeamParams, FinishReason, GenerateSpec, Pooling, SampledToken, SamplingParams, TokenId, TokenScore, TokenSet,
};

use super::beams::beams;
use crate::Stepper;
use crate::runner::constraint::Constraint;

/// Tokens of the pretended model; token 0 is its EOS.
pub const VOCAB: u32 = 61;
pub const MAX_MODEL_LEN: u32 = 96;
const LAYERS: u32 = 2;
const HEADS: u32 = 2;
/// Two f32 hold one digest.
const HEAD_DIM: u32 = 2;
const DIGEST_BYTES: usize = 8;

/// What stands for everything up to a position.
type Digest = u64;

/// KV memory: for each layer, head and position the digest of all tokens up to it, as K, and its complement, as V.
pub struct FakeStore {
    layout: KvLayout,
    /// [block][slot][layer][head][K|V]
    cells: Mutex<Vec<[u8; DIGEST_BYTES]>>,
}

/// See the head of [`crate::fake`].
pub struct FakeEngine {
    store: Arc<FakeStore>,
    pace: Pace,
    /// Most rows and tokens of a step so far.
    pub rows_max: usize,
    pub tokens_max: usize,
}

/// What a step pretends to take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    pub micros_per_step: u64,
    pub micros_per_token: u64,
}

impl FakeStore {
    fn new(blocks: u32, block_size: u32) -> Self {
        let layout =
            KvLayout { layers: LAYERS, kv_heads: HEADS, head_dim: HEAD_DIM, dtype: KvDtype::F32, block_size, blocks };
        let cells = (blocks * block_size * LAYERS * HEADS * 2) as usize;
        Self { layout, cells: Mutex::new(vec![[0; DIGEST_BYTES]; cells]) }
    }

    fn cell(&self, block: BlockId, slot: u32, layer: u32, head: u32) -> usize {
        let token = block.0 * self.layout.block_size + slot;
        (((token * LAYERS + layer) * HEADS + head) * 2) as usize
    }

    /// Calls `each` with every cell of the span and its place in the canonical bytes.
    fn visit(&self, span: &KvSpan, blocks: &[BlockId], mut each: impl FnMut(usize, usize)) {
        let heads = (span.heads.end - span.heads.start) as usize;
        let half = (span.tokens.end - span.tokens.start) as usize * heads;
        for (nth, position) in span.tokens.clone().enumerate() {
            let block = blocks[(position / self.layout.block_size) as usize];
            for (h, head) in span.heads.clone().enumerate() {
                let cell = self.cell(block, position % self.layout.block_size, span.layer, head);
                each(cell, nth * heads + h);
                each(cell + 1, half + nth * heads + h);
            }
        }
    }

    /// The digest at a position; anything else if one layer or head has other bytes than it should.
    fn digest(&self, blocks: &[BlockId], position: usize) -> Digest {
        let (block, slot) = (position / self.layout.block_size as usize, position as u32 % self.layout.block_size);
        let cells = self.cells.lock();
        let of = |layer, head| {
            let cell = self.cell(blocks[block], slot, layer, head);
            let (key, value) = (u64::from_le_bytes(cells[cell]), u64::from_le_bytes(cells[cell + 1]));
            if value == !key { key ^ tint(layer, head) } else { mix(key, value) }
        };
        let first = of(0, 0);
        let all = (0..LAYERS).flat_map(|layer| (0..HEADS).map(move |head| (layer, head)));
        all.map(|(layer, head)| of(layer, head)).find(|found| *found != first).map_or(first, |odd| mix(first, odd))
    }

    fn put(&self, blocks: &[BlockId], position: usize, layer: u32, digest: Digest) {
        let (block, slot) = (position / self.layout.block_size as usize, position as u32 % self.layout.block_size);
        let mut cells = self.cells.lock();
        for head in 0..HEADS {
            let (cell, key) = (self.cell(blocks[block], slot, layer, head), digest ^ tint(layer, head));
            cells[cell] = key.to_le_bytes();
            cells[cell + 1] = (!key).to_le_bytes();
        }
    }
}

impl KvStore for FakeStore {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn read(&self, span: &KvSpan, blocks: &[BlockId], out: &mut [u8]) -> Result<(), KvError> {
        span.check(&self.layout, blocks, out.len())?;
        let cells = self.cells.lock();
        self.visit(span, blocks, |cell, place| {
            out[place * DIGEST_BYTES..][..DIGEST_BYTES].copy_from_slice(&cells[cell]);
        });
        Ok(())
    }

    fn write(&self, span: &KvSpan, blocks: &[BlockId], bytes: &[u8]) -> Result<(), KvError> {
        span.check(&self.layout, blocks, bytes.len())?;
        let mut cells = self.cells.lock();
        self.visit(span, blocks, |cell, place| {
            cells[cell].copy_from_slice(&bytes[place * DIGEST_BYTES..][..DIGEST_BYTES]);
        });
        Ok(())
    }
}

impl FakeEngine {
    pub fn new(blocks: u32, block_size: u32) -> Self {
        Self { store: Arc::new(FakeStore::new(blocks, block_size)), pace: Pace::default(), rows_max: 0, tokens_max: 0 }
    }

    /// The same engine, whose steps take time.
    pub fn paced(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    pub fn store(&self) -> Arc<FakeStore> {
        self.store.clone()
    }

    /// Writes the KV of `tokens` as if it had come from another instance.
    pub fn land(&self, blocks: &[BlockId], tokens: &[TokenId]) {
        let row = BatchRow { tokens, start: 0, blocks, samples: Vec::new(), probe: Probe::None };
        for layer in 0..LAYERS {
            self.write(&row, layer);
        }
    }

    fn probe(&self, row: &BatchRow<'_>) -> Probed {
        match row.probe {
            Probe::None => Probed::None,
            // Two numbers that tell the whole text, and how many states were added.
            Probe::Hidden { count: 0, before } => Probed::Hidden(before.to_vec()),
            Probe::Hidden { count, before } => {
                let digest = self.store.digest(row.blocks, row.start as usize + row.tokens.len() - 1);
                let counted = before.get(1).copied().unwrap_or(0.0);
                Probed::Hidden(vec![f64::from((digest >> 40) as u32), counted + count as f64])
            }
            Probe::Scores { skip, next, .. } => {
                let digest = |at: usize| self.store.digest(row.blocks, row.start as usize + skip + at);
                Probed::Scores(next.iter().enumerate().map(|(at, token)| scored(digest(at), *token)).collect())
            }
        }
    }

    /// Computes one layer of a row; returns the digest of its last token.
    fn write(&self, row: &BatchRow<'_>, layer: u32) -> Digest {
        let start = row.start as usize;
        let mut digest = start.checked_sub(1).map_or(0, |before| self.store.digest(row.blocks, before));
        for (position, token) in (start..).zip(row.tokens) {
            digest = mix(digest, u64::from(*token) + 1);
            self.store.put(row.blocks, position, layer, digest);
        }
        digest
    }
}

impl Stepper for FakeEngine {
    fn step(&mut self, batch: &Batch<'_>, observer: &dyn StepObserver) -> Result<StepOutput, engine::Error> {
        self.rows_max = self.rows_max.max(batch.rows.len());
        let tokens: usize = batch.rows.iter().map(|row| row.tokens.len()).sum();
        self.tokens_max = self.tokens_max.max(tokens);
        let micros = 1 + self.pace.micros_per_step + self.pace.micros_per_token * tokens as u64;
        let mut digests = Vec::new();
        for layer in 0..LAYERS {
            digests = batch.rows.iter().map(|row| self.write(row, layer)).collect();
            (0..HEADS).for_each(|head| observer.layer_done(layer, head..head + 1));
        }
        let draw =
            |(row, digest): (&BatchRow<'_>, Digest)| row.samples.iter().filter_map(|ask| drawn(digest, ask)).collect();
        let probed = batch.rows.iter().map(|row| self.probe(row)).collect();
        Ok(StepOutput { rows: batch.rows.iter().zip(digests).map(draw).collect(), probed, micros })
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) {
        let cells = (self.store.layout.block_size * LAYERS * HEADS * 2) as usize;
        let from = from.0 as usize * cells;
        self.store.cells.lock().copy_within(from..from + cells, to.0 as usize * cells);
    }
}

/// What each choice of `spec` must come to, from here on.
pub fn oracle(spec: &GenerateSpec) -> Vec<Vec<SampledToken>> {
    spec.choices.clone().map(|choice| oracle_choice(spec, choice, None)).collect()
}

/// As [`oracle`], each choice held to a grammar from its beginning.
pub fn oracle_within(spec: &GenerateSpec, grammar: &Matcher) -> Vec<Vec<SampledToken>> {
    let within = |choice| oracle_choice(spec, choice, Some(&Constraint::new(grammar.fork())));
    spec.choices.clone().map(within).collect()
}

fn oracle_choice(spec: &GenerateSpec, choice: u32, constraint: Option<&dyn engine::Constraint>) -> Vec<SampledToken> {
    let (params, prompt) = (&spec.sampling, &*spec.prompt);
    let mut output = spec.output.clone();
    let mut digest = prompt.iter().chain(&output).fold(0, |digest, token| mix(digest, u64::from(*token) + 1));
    let mut tokens: Vec<SampledToken> = Vec::new();
    if spec.sampling.beam.is_some() {
        // Only the first candidates: see `oracle_beams` for the rest.
        let ask = SampleRequest { params, choice, prompt, output: &[], constraint };
        return drawn(digest, &ask).into_iter().collect();
    }
    while tokens.last().is_none_or(|token| token.finish.is_none()) {
        let ask = SampleRequest { params, choice, prompt, output: &output, constraint };
        let Some(token) = drawn(digest, &ask) else { break };
        output.push(token.id);
        digest = mix(digest, u64::from(token.id) + 1);
        tokens.push(token);
    }
    tokens
}

/// What the scores of a prompt's tokens must come to, its first left out.
pub fn oracle_scores(prompt: &[TokenId]) -> Vec<TokenScore> {
    let mut digest = 0;
    let before = prompt.iter().map(|token| {
        digest = mix(digest, u64::from(*token) + 1);
        digest
    });
    before.collect::<Vec<_>>().into_iter().zip(&prompt[1..]).map(|(digest, token)| scored(digest, *token)).collect()
}

fn scored(digest: Digest, token: TokenId) -> TokenScore {
    let random = mix(digest, u64::from(token));
    TokenScore { logprob: -((random % 1000) as f32) / 100.0, rank: 1 + random as u32 % VOCAB, top: Vec::new() }
}

/// What the vector of a prompt must come to.
pub fn oracle_vector(spec: &GenerateSpec, pooling: Pooling) -> Vec<f32> {
    let digest = spec.prompt.iter().fold(0, |digest, token| mix(digest, u64::from(*token) + 1));
    let count = if pooling == Pooling::Mean { spec.prompt.len() as f64 } else { 1.0 };
    [f64::from((digest >> 40) as u32), count].map(|value| (value / count) as f32).to_vec()
}

/// What may follow in a beam search, best first.
fn candidates(digest: Digest, count: usize) -> Vec<(TokenId, f32)> {
    let logprob = |id: TokenId| -((mix(digest, u64::from(id)) % 1000) as f32) / 100.0;
    let mut all: Vec<_> = (0..VOCAB).map(|id| (id, logprob(id))).collect();
    all.sort_by(|one, other| other.1.total_cmp(&one.1));
    all.truncate(count);
    all
}

/// What a beam search over the pretended model must find.
pub fn oracle_beams(spec: &GenerateSpec, beam: BeamParams) -> Vec<Vec<TokenId>> {
    let prompt = spec.prompt.iter().fold(0, |digest, token| mix(digest, u64::from(*token) + 1));
    let after = |output: &[TokenId]| output.iter().fold(prompt, |digest, token| mix(digest, u64::from(*token) + 1));
    beams(spec, beam, &[0], |output| candidates(after(output), 2 * beam.width as usize))
}

/// None if the request's grammar leaves nothing.
fn drawn(digest: Digest, ask: &SampleRequest<'_>) -> Option<SampledToken> {
    let position = ask.output.len() as u32;
    if let Some(beam) = ask.params.beam {
        let top = candidates(digest, 2 * beam.width as usize);
        return Some(SampledToken { choice: ask.choice, id: top[0].0, position, logprob: top[0].1, top, finish: None });
    }
    let mut random = mix(mix(digest, ask.params.seed), u64::from(ask.choice) << 32 | u64::from(position));
    if ask.params.presence_penalty != 0.0 {
        // What counts as output matters, too.
        random = ask.output.iter().fold(random, |random, token| mix(random, u64::from(*token)));
    }
    let id = match ask.constraint.map(|constraint| constraint.next(ask.output)) {
        None => (random % u64::from(VOCAB)) as TokenId,
        Some(allowed) => one_of(&allowed, random)?,
    };
    let full =
        position + 1 >= ask.params.max_tokens || ask.prompt.len() + ask.output.len() + 1 >= MAX_MODEL_LEN as usize;
    let finish = match id {
        0 => Some(FinishReason::Stop),
        _ => full.then_some(FinishReason::Length),
    };
    let logprob = -((random >> 32) as u16 as f32) / 100.0;
    Some(SampledToken { choice: ask.choice, id, position, logprob, top: Vec::new(), finish })
}

/// A token that may come next; the end is one of them where the text may end.
fn one_of(allowed: &TokenSet, random: u64) -> Option<TokenId> {
    let end = allowed.end.then_some(0);
    let ids: Vec<TokenId> = end.into_iter().chain((1..VOCAB).filter(|id| allowed.contains(*id))).collect();
    ids.get((random % ids.len().max(1) as u64) as usize).copied()
}

/// A spec over the pretended vocabulary. Prompts of one `family` are prefixes of each other.
pub fn spec(family: u32, prompt_len: usize, choices: u32, max_tokens: u32, seed: u64) -> GenerateSpec {
    let token = |i: usize| (mix(u64::from(family), i as u64) % u64::from(VOCAB)) as TokenId;
    GenerateSpec {
        prompt: (0..prompt_len.max(1)).map(token).collect(),
        output: Vec::new(),
        choices: 0..choices.max(1),
        sampling: SamplingParams { max_tokens: max_tokens.max(1), seed, ..SamplingParams::default() },
        cache_salt: Vec::new(),
    }
}

/// Tells the bytes of one layer and head from those of another.
fn tint(layer: u32, head: u32) -> u64 {
    mix(u64::from(layer) + 1, u64::from(head) + 1)
}

/// splitmix64 over both.
fn mix(state: u64, value: u64) -> u64 {
    let mut z = (state ^ value.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
