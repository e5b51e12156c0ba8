//! A stand-in for the engine whose next token is a pure function of the history it reads back from its KV blocks, and a world that
//! drives a runner with it.
//!
//! A block that was shared, copied, evicted or addressed wrongly changes the history and so the tokens, which [`World`] compares
//! with [`oracle`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engine::{Batch, BatchRow, SampleRequest, StepObserver, StepOutput};
use kv::{BlockId, BlockPool, BlockTable, Owner, Phase};
use types::{FinishReason, GenerateSpec, RequestKey, SampledToken, SamplingParams, TokenId};

use super::{Event, Goal, Happening, Job, Plan, Planner, QueueView, Runner, RunnerConfig, SeqId, SeqView, Stepper};

/// Tokens of the pretended model; token 0 is its EOS.
pub const VOCAB: u32 = 61;
pub const MAX_MODEL_LEN: u32 = 96;

/// KV of one position: a digest of all tokens up to it.
type Digest = u64;

/// See the module's head.
pub struct FakeStepper {
    block_size: usize,
    kv: HashMap<(BlockId, usize), Digest>,
    /// Most rows and tokens of a step so far.
    pub rows_max: usize,
    pub tokens_max: usize,
}

impl FakeStepper {
    pub fn new(block_size: u32) -> Self {
        Self { block_size: block_size as usize, kv: HashMap::new(), rows_max: 0, tokens_max: 0 }
    }

    /// Writes the KV of `tokens` as if it had come from another instance.
    pub fn land(&mut self, blocks: &[BlockId], tokens: &[TokenId]) {
        self.write(&BatchRow { tokens, start: 0, blocks, samples: Vec::new() });
    }

    fn write(&mut self, row: &BatchRow<'_>) -> Digest {
        let place = |position: usize| (row.blocks[position / self.block_size], position % self.block_size);
        let before = (row.start as usize).checked_sub(1);
        let mut digest = before.map_or(0, |position| self.kv[&place(position)]);
        for (position, token) in (row.start as usize..).zip(row.tokens) {
            digest = mix(digest, u64::from(*token) + 1);
            self.kv.insert(place(position), digest);
        }
        digest
    }
}

impl Stepper for FakeStepper {
    fn step(&mut self, batch: &Batch<'_>, observer: &dyn StepObserver) -> Result<StepOutput, engine::Error> {
        self.rows_max = self.rows_max.max(batch.rows.len());
        self.tokens_max = self.tokens_max.max(batch.rows.iter().map(|row| row.tokens.len()).sum());
        let digests: Vec<_> = batch.rows.iter().map(|row| self.write(row)).collect();
        observer.layer_done(0, 0..1);
        let draw = |(row, digest): (&BatchRow<'_>, Digest)| row.samples.iter().map(|ask| drawn(digest, ask)).collect();
        Ok(StepOutput { rows: batch.rows.iter().zip(digests).map(draw).collect(), micros: 1 })
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) {
        for slot in 0..self.block_size {
            if let Some(digest) = self.kv.get(&(from, slot)).copied() {
                self.kv.insert((to, slot), digest);
            }
        }
    }
}

/// What each choice of `spec` must come to, from here on.
pub fn oracle(spec: &GenerateSpec) -> Vec<Vec<SampledToken>> {
    let context: Vec<_> = spec.prompt.iter().chain(&spec.output).copied().collect();
    let digest = context.iter().fold(0, |digest, token| mix(digest, u64::from(*token) + 1));
    spec.choices.clone().map(|choice| oracle_choice(spec, choice, digest)).collect()
}

fn oracle_choice(spec: &GenerateSpec, choice: u32, mut digest: Digest) -> Vec<SampledToken> {
    let mut output = spec.output.clone();
    let mut tokens: Vec<SampledToken> = Vec::new();
    while tokens.last().is_none_or(|token| token.finish.is_none()) {
        let ask = SampleRequest { params: &spec.sampling, choice, prompt: &spec.prompt, output: &output };
        let token = drawn(digest, &ask);
        output.push(token.id);
        digest = mix(digest, u64::from(token.id) + 1);
        tokens.push(token);
    }
    tokens
}

fn drawn(digest: Digest, ask: &SampleRequest<'_>) -> SampledToken {
    let position = ask.output.len() as u32;
    let random = mix(mix(digest, ask.params.seed), u64::from(ask.choice) << 32 | u64::from(position));
    let id = (random % u64::from(VOCAB)) as TokenId;
    let full =
        position + 1 >= ask.params.max_tokens || ask.prompt.len() + ask.output.len() + 1 >= MAX_MODEL_LEN as usize;
    let finish = match id {
        0 => Some(FinishReason::Stop),
        _ => full.then_some(FinishReason::Length),
    };
    SampledToken { choice: ask.choice, id, position, logprob: 0.0, top: Vec::new(), finish }
}

/// splitmix64 over both.
fn mix(state: u64, value: u64) -> u64 {
    let mut z = (state ^ value.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A spec over the pretended vocabulary. Equal `family`s share a prompt prefix.
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

/// How a job of the world begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Complete,
    FirstTokens,
    Continue,
}

/// The size of an instance.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub blocks: u32,
    pub block_size: u32,
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: u32,
}

/// A runner on a fake engine, with a record of every job.
pub struct World {
    pub runner: Runner,
    pub pool: BlockPool,
    pub stepper: FakeStepper,
    jobs: HashMap<RequestKey, Record>,
    steps: u64,
}

struct Record {
    spec: GenerateSpec,
    kind: Kind,
    cancelled: Vec<u32>,
    drawn: Vec<SampledToken>,
    ended: bool,
}

impl World {
    pub fn new(size: Size, planner: Box<dyn Planner>) -> Self {
        let pool = BlockPool::new(size.blocks, size.block_size);
        let config = RunnerConfig {
            digest: "fake".into(),
            vocab_size: VOCAB,
            max_model_len: MAX_MODEL_LEN,
            max_num_seqs: size.max_num_seqs,
            max_num_batched_tokens: size.max_num_batched_tokens,
        };
        let runner = Runner::new(config, pool.clone(), planner);
        Self { runner, pool, stepper: FakeStepper::new(size.block_size), jobs: HashMap::new(), steps: 0 }
    }

    /// Submits a job; false if it was refused or, for `Continue`, has no blocks to land in.
    pub fn submit(&mut self, name: &str, spec: GenerateSpec, kind: Kind) -> bool {
        let key = key(name);
        let Some((goal, first)) = self.goal(&key, &spec, kind) else { return false };
        let job = Job { key: key.clone(), spec: spec.clone(), goal };
        let accepted = self.runner.submit(job, self.now()).is_ok();
        if accepted {
            self.jobs.insert(key, Record { spec, kind, cancelled: Vec::new(), drawn: first, ended: false });
        }
        accepted
    }

    fn goal(&mut self, key: &RequestKey, spec: &GenerateSpec, kind: Kind) -> Option<(Goal, Vec<SampledToken>)> {
        match kind {
            Kind::Complete => Some((Goal::Complete, Vec::new())),
            Kind::FirstTokens => Some((Goal::FirstTokens { watcher: Arc::new(Deaf) }, Vec::new())),
            Kind::Continue => {
                let mut table = BlockTable::new(self.pool.block_size());
                let owner = Owner { key: key.clone(), phase: Phase::Landing };
                table.extend(self.pool.allocate(table.blocks_needed(spec.context_len()), owner).ok()?);
                let context: Vec<_> = spec.prompt.iter().chain(&spec.output).copied().collect();
                self.stepper.land(table.ids(), &context);
                let first: Vec<_> = oracle(spec).into_iter().map(|tokens| tokens[0].clone()).collect();
                Some((Goal::Continue { table, first: first.clone() }, first))
            }
        }
    }

    pub fn cancel(&mut self, name: &str, choices: &[u32]) {
        let event = self.runner.cancel(&key(name), choices);
        if let Some(record) = self.jobs.get_mut(&key(name)) {
            let all: Vec<_> = record.spec.choices.clone().collect();
            record.cancelled.extend(if choices.is_empty() { &all } else { choices });
            record.ended |= choices.is_empty();
        }
        self.note(event.into_iter().collect());
    }

    /// One step; false if nothing was computed.
    pub fn step(&mut self) -> bool {
        self.steps += 1;
        let stepped = self.runner.step(self.now(), &mut self.stepper);
        self.note(stepped.events);
        stepped.cost.is_some()
    }

    /// Steps until every job has ended; panics if that takes more than `steps_max` steps.
    pub fn run(&mut self, steps_max: usize) {
        for _ in 0..steps_max {
            if self.runner.is_idle() {
                return;
            }
            self.step();
        }
        panic!("not done after {steps_max} steps: {:?}, {:?}", self.runner.stats(), self.pool.stats());
    }

    /// Every job ended, with the oracle's tokens, and every block is back.
    pub fn check_end(&self) {
        for (key, record) in &self.jobs {
            assert!(record.ended, "{key} never ended");
            check_tokens(key, record);
        }
        assert_eq!(self.pool.stats().leased, 0, "blocks left behind: {:?}", self.pool.ledger());
    }

    /// Names of the jobs that ended, for scripts.
    pub fn ended(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.jobs.iter().filter(|(_, record)| record.ended).map(|(key, _)| key.request.to_string()).collect();
        names.sort();
        names
    }

    fn note(&mut self, events: Vec<Event>) {
        for event in events {
            let record = self.jobs.get_mut(&event.key).expect("events are of submitted jobs");
            assert!(!record.ended, "{}: {:?} after its end", event.key, event.what);
            match event.what {
                Happening::Sampled { tokens, .. } => record.drawn.extend(tokens),
                Happening::Finished => record.ended = true,
                Happening::Failed(failure) => panic!("{}: {failure}", event.key),
            }
        }
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.steps)
    }
}

fn check_tokens(key: &RequestKey, record: &Record) {
    for (choice, mut expected) in record.spec.choices.clone().zip(oracle(&record.spec)) {
        let found: Vec<_> = record.drawn.iter().filter(|token| token.choice == choice).cloned().collect();
        if record.kind == Kind::FirstTokens {
            expected.truncate(1);
        }
        if record.cancelled.contains(&choice) {
            assert!(expected.starts_with(&found), "{key} choice {choice}: {found:?} is no prefix of {expected:?}");
        } else {
            assert_eq!(found, expected, "{key} choice {choice}");
        }
    }
}

fn key(name: &str) -> RequestKey {
    RequestKey { request: name.into(), epoch: 0 }
}

/// A watcher for jobs whose KV nobody ships.
struct Deaf;

impl super::KvWatcher for Deaf {
    fn admitted(&self, _blocks: &[kv::BlockRef], _computed: u32) -> Result<(), super::Failure> {
        Ok(())
    }

    fn layer_done(&self, _layer: u32, _heads: std::ops::Range<u32>, _tokens: std::ops::Range<u32>) {}
}

/// Checks a plan: `script` has one line `budget=.. slots=.. blocks=..`, then one line per sequence, `run` or `wait`, its arrival
/// (or `arrival.choice`) and any of `pending= cached= slots= held= hits= missing= passed=`.
pub fn check_plan(planner: &mut dyn Planner, script: &str, expected: &str) {
    let mut lines = script.lines().map(str::trim).filter(|line| !line.is_empty());
    let head = lines.next().unwrap_or_default();
    let (mut running, mut waiting) = (Vec::new(), Vec::new());
    for line in lines {
        let queue = if line.starts_with("run ") { &mut running } else { &mut waiting };
        queue.push(parse_seq(line));
    }
    let view = QueueView {
        running: &running,
        waiting: &waiting,
        token_budget: number(head, "budget").unwrap_or(64),
        slots_total: number(head, "slots").unwrap_or(8),
        blocks_available: number(head, "blocks").unwrap_or(100),
    };
    assert_eq!(show(&planner.plan(&view)), expected, "for\n{script}");
}

fn parse_seq(line: &str) -> SeqView {
    let id = line.split_whitespace().nth(1).unwrap_or_default();
    let (arrival, choice) = id.split_once('.').unwrap_or((id, "0"));
    SeqView {
        id: SeqId { arrival: arrival.parse().expect("an arrival"), choice: choice.parse().expect("a choice") },
        pending: number(line, "pending").unwrap_or(1),
        cached: number(line, "cached").unwrap_or(0),
        slots: number(line, "slots").unwrap_or(1),
        blocks_held: number(line, "held").unwrap_or(0),
        blocks_cached: number(line, "hits").unwrap_or(0),
        blocks_missing: number(line, "missing").unwrap_or(0),
        passed_over: number(line, "passed").unwrap_or(0),
    }
}

fn number(line: &str, name: &str) -> Option<u32> {
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.parse().expect("a number"))
}

fn show(plan: &Plan) -> String {
    let id = |id: &SeqId| if id.choice == 0 { id.arrival.to_string() } else { format!("{}.{}", id.arrival, id.choice) };
    let list = |ids: &[SeqId]| ids.iter().map(id).collect::<Vec<_>>().join(" ");
    let rows: Vec<_> = plan.rows.iter().map(|(seq, tokens)| format!("{}:{tokens}", id(seq))).collect();
    format!("preempt [{}] admit [{}] rows [{}]", list(&plan.preempt), list(&plan.admit), rows.join(" "))
}
