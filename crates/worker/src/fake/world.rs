//! Drives a runner on a fake engine and keeps a record of every job.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kv::{BlockPool, BlockTable, Owner, Phase};
use types::{GenerateSpec, Pooling, RequestKey, SampledToken, TokenScore};

use super::{FakeEngine, MAX_MODEL_LEN, VOCAB, oracle, oracle_beams, oracle_scores, oracle_vector};
use crate::{Event, Goal, Happening, Job, Planner, Runner, RunnerConfig};

/// How a job of the world begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Complete,
    FirstTokens,
    Continue,
    Embed(Pooling),
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
    pub stepper: FakeEngine,
    jobs: HashMap<RequestKey, Record>,
    steps: u64,
}

struct Record {
    spec: GenerateSpec,
    kind: Kind,
    cancelled: Vec<u32>,
    drawn: Vec<SampledToken>,
    scores: Vec<TokenScore>,
    vector: Vec<f32>,
    ended: bool,
}

impl World {
    pub fn new(size: Size, planner: Box<dyn Planner>) -> Self {
        let pool = BlockPool::new(size.blocks, size.block_size);
        let config = RunnerConfig {
            digest: "fake".into(),
            vocab_size: VOCAB,
            max_model_len: MAX_MODEL_LEN,
            eos_token_ids: vec![0],
            max_num_seqs: size.max_num_seqs,
            max_num_batched_tokens: size.max_num_batched_tokens,
        };
        let runner = Runner::new(config, pool.clone(), planner);
        Self { runner, pool, stepper: FakeEngine::new(size.blocks, size.block_size), jobs: HashMap::new(), steps: 0 }
    }

    /// Submits a job; false if it was refused or, for `Continue`, has no blocks to land in.
    pub fn submit(&mut self, name: &str, spec: GenerateSpec, kind: Kind) -> bool {
        let key = key(name);
        let Some((goal, first)) = self.goal(&key, &spec, kind) else { return false };
        let job = Job { key: key.clone(), spec: spec.clone(), goal, matcher: None };
        let accepted = self.runner.submit(job, self.now()).is_ok();
        if accepted {
            self.jobs.insert(
                key,
                Record {
                    spec,
                    kind,
                    cancelled: Vec::new(),
                    drawn: first,
                    scores: Vec::new(),
                    vector: Vec::new(),
                    ended: false,
                },
            );
        }
        accepted
    }

    fn goal(&mut self, key: &RequestKey, spec: &GenerateSpec, kind: Kind) -> Option<(Goal, Vec<SampledToken>)> {
        match kind {
            Kind::Complete => Some((Goal::Complete, Vec::new())),
            Kind::Embed(pooling) => Some((Goal::Embed { pooling }, Vec::new())),
            Kind::FirstTokens => Some((Goal::FirstTokens { watcher: Arc::new(Deaf) }, Vec::new())),
            Kind::Continue => {
                let mut table = BlockTable::new(self.pool.block_size());
                let owner = Owner { key: key.clone(), phase: Phase::Landing };
                table.extend(self.pool.allocate(table.blocks_needed(spec.context_len()), owner).ok()?);
                let context: Vec<_> = spec.prompt.iter().chain(&spec.output).copied().collect();
                self.stepper.land(table.ids(), &context);
                let first: Vec<_> = oracle(spec).into_iter().map(|tokens| tokens[0].clone()).collect();
                // A search's first candidates are no part of its answer.
                let told = if spec.sampling.beam.is_some() { Vec::new() } else { first.clone() };
                Some((Goal::Continue { table, first }, told))
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
            let asked = record.kind != Kind::Continue && record.spec.sampling.prompt_logprobs.is_some();
            if asked && record.cancelled.is_empty() {
                assert_eq!(record.scores, oracle_scores(&record.spec.prompt), "{key}");
            }
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
                Happening::Scored { first, scores } => {
                    assert_eq!(first as usize, record.scores.len() + 1, "{}: scores come once and in order", event.key);
                    assert!(record.drawn.is_empty(), "{}: scores after the first token", event.key);
                    record.scores.extend(scores);
                }
                Happening::Embedded { values, .. } => record.vector = values,
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
    if let Kind::Embed(pooling) = record.kind {
        assert_eq!(record.vector, oracle_vector(&record.spec, pooling), "{key}");
        return assert_eq!(record.drawn, [], "{key}");
    }
    if let (Some(beam), Kind::Complete | Kind::Continue) = (record.spec.sampling.beam, record.kind) {
        let found: Vec<Vec<_>> = record
            .drawn
            .chunk_by(|a, b| a.choice == b.choice)
            .map(|tokens| {
                assert!(tokens.iter().zip(0..).all(|(token, at)| token.position == at), "{key}: {tokens:?}");
                assert!(
                    tokens.iter().all(|token| token.finish.is_some() == (token.position as usize + 1 == tokens.len()))
                );
                tokens.iter().map(|token| token.id).collect()
            })
            .collect();
        return assert_eq!(found, oracle_beams(&record.spec, beam), "{key}");
    }
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

impl crate::KvWatcher for Deaf {
    fn admitted(&self, _blocks: &[kv::BlockRef], _computed: u32) -> Result<(), crate::Failure> {
        Ok(())
    }

    fn layer_done(&self, _layer: u32, _heads: std::ops::Range<u32>, _tokens: std::ops::Range<u32>) {}

    fn computed(&self) {}
}
