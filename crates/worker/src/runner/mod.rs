//! The pure, synchronous core of an instance: sequences wait, run and end here.
//!
//! Invariants: a job ends exactly once (or was cancelled); a sequence that runs has blocks for all it has computed; nobody writes
//! into a block that another sequence can see; nobody is pushed out by one that stands behind it (lower priority, or later).
//!
//! ```text
//! submit ─► waiting ── admit: prefix lookup + blocks ──► running ── step ──► draw ─► split into choices ─► finished
//!              ▲                                            │   (a beam search: parked until all its members have candidates)
//!              └── preempt: blocks given back, tokens kept ─┘
//! ```

mod beam;
mod check;
mod compute;
pub(crate) mod constraint;
mod growth;
mod job;
mod plan;
mod search;
mod sequence;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use engine::{Batch, Engine, Probed, StepObserver, StepOutput};
use kv::{BlockId, BlockPool, ChainRoot};
use proto::control::{FailCode, StepCost};
use types::{RequestKey, SampledToken, TokenId};

use beam::{BeamSearch, Candidates};
pub use check::check_fits;
use compute::Row;
pub use growth::Growth;
pub use job::{Event, Failure, Goal, Happening, Job, KvWatcher, PromptStats};
pub use plan::{FULL_STEP, Plan, Planner, QueueView, SeqId, SeqView};
use sequence::Sequence;

/// Waiting sequences whose prefix-cache hit is looked up before each step; planners choose among these.
const LOOKED_UP: usize = 16;

/// What computes: the engine, or a fake in tests.
pub trait Stepper {
    fn step(&mut self, batch: &Batch<'_>, observer: &dyn StepObserver) -> Result<StepOutput, engine::Error>;
    fn copy_block(&mut self, from: BlockId, to: BlockId);
}

impl Stepper for Engine {
    fn step(&mut self, batch: &Batch<'_>, observer: &dyn StepObserver) -> Result<StepOutput, engine::Error> {
        Engine::step(self, batch, observer)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) {
        Engine::copy_block(self, from, to);
    }
}

/// What a runner must know of the model and the instance.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// Of the model; the prefix cache is keyed by it.
    pub digest: String,
    pub vocab_size: u32,
    pub max_model_len: u32,
    /// Tokens with which the model ends a text.
    pub eos_token_ids: Vec<TokenId>,
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: u32,
}

/// See the module's head.
pub struct Runner {
    config: RunnerConfig,
    pool: BlockPool,
    planner: Box<dyn Planner>,
    waiting: BTreeMap<SeqId, Sequence>,
    running: BTreeMap<SeqId, Sequence>,
    /// Members of beam searches that wait for the others of theirs, each with its candidates. They may lose their blocks any time.
    parked: BTreeMap<SeqId, (Sequence, Candidates)>,
    jobs: HashMap<RequestKey, JobState>,
    arrivals: u64,
    preemptions: u64,
    growth: Growth,
}

struct JobState {
    /// Of its first choice.
    id: SeqId,
    submitted: Duration,
    /// Until it is reported, or never for KV that was computed elsewhere.
    prompt: Option<PromptStats>,
    /// Not on P, which only gives the first candidates.
    search: Option<BeamSearch>,
}

/// What one call of [`Runner::step`] did.
#[derive(Debug, Default)]
pub struct Stepped {
    pub events: Vec<Event>,
    /// None: there was nothing to compute, or no block to compute it in.
    pub cost: Option<StepCost>,
}

impl Stepped {
    /// There is work, and no block to do it in.
    pub fn is_stalled(&self) -> bool {
        self.cost.is_none() && self.events.is_empty()
    }
}

/// The queue at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    pub running: u32,
    pub waiting: u32,
    /// Tokens of contexts that are not yet computed.
    pub waiting_tokens: u32,
    pub preemptions: u64,
    /// Blocks that the sequences here will probably ask for before they end: nobody else should take them.
    pub blocks_wanted: u32,
    /// What is expected of one more.
    pub growth: Growth,
}

impl Runner {
    pub fn new(config: RunnerConfig, pool: BlockPool, planner: Box<dyn Planner>) -> Self {
        Self {
            config,
            pool,
            planner,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            parked: BTreeMap::new(),
            jobs: HashMap::new(),
            arrivals: 0,
            preemptions: 0,
            growth: Growth::default(),
        }
    }

    /// Queues a job. A refused job leaves no trace. `now` is any clock that only goes forward.
    pub fn submit(&mut self, job: Job, now: Duration) -> Result<(), Failure> {
        self.check(&job)?;
        let root = ChainRoot::new(&self.config.digest, &job.spec.cache_salt);
        let arrival = self.arrivals;
        self.arrivals += 1;
        let context_tokens = job.spec.context_len() as u32;
        let computed_here = !matches!(job.goal, Goal::Continue { .. });
        let prompt = computed_here.then(|| PromptStats { context_tokens, ..PromptStats::default() });
        let key = job.key.clone();
        let (eos, max_model_len) = (&self.config.eos_token_ids, self.config.max_model_len);
        let decodes = !matches!(job.goal, Goal::FirstTokens { .. } | Goal::Embed { .. });
        let search = decodes.then(|| BeamSearch::new(&job.spec, eos, max_model_len)).flatten();
        let mut sequence = Sequence::new(job, arrival, root, self.pool.block_size());
        self.jobs.insert(key, JobState { id: sequence.id, submitted: now, prompt, search });
        sequence.publish(&self.pool);
        self.waiting.insert(sequence.id, sequence);
        Ok(())
    }

    /// Forgets these choices (none named = all). Returns the job's end if others of its choices had already finished.
    pub fn cancel(&mut self, key: &RequestKey, choices: &[u32]) -> Option<Event> {
        let job = self.jobs.get(key)?.id;
        self.learn(job, choices);
        if choices.is_empty() {
            self.waiting.retain(|id, _| id.arrival != job.arrival);
            self.running.retain(|id, _| id.arrival != job.arrival);
            self.parked.retain(|id, _| id.arrival != job.arrival);
            self.jobs.remove(key);
            return None;
        }
        if self.is_search(key) {
            // Its choices are found at its end.
            return None;
        }
        for queue in [&mut self.waiting, &mut self.running] {
            for sequence in queue.range_mut(of_job(job)).map(|(_, sequence)| sequence) {
                sequence.choices.retain(|choice| !choices.contains(choice));
            }
            queue.retain(|_, sequence| !sequence.choices.is_empty());
        }
        self.end_if_done(key)
    }

    /// What texts become that are not wanted any longer: a client left, or the scheduler found a stop string. None named = all.
    fn learn(&mut self, job: SeqId, choices: &[u32]) {
        let running = self.running.range(of_job(job)).map(|(_, sequence)| sequence);
        for sequence in running.filter(|sequence| choices.is_empty() || choices.contains(&sequence.id.choice)) {
            self.growth.observe(sequence.output().len(), sequence.sampling.max_tokens);
        }
    }

    /// Plans and computes one step. `now` is the clock of [`Runner::submit`].
    pub fn step(&mut self, now: Duration, stepper: &mut dyn Stepper) -> Stepped {
        debug_assert_eq!(self.pool.audit(), Ok(()), "the ledger before a step");
        let mut stepped = Stepped::default();
        let plan = self.plan();
        for id in &plan.preempt {
            stepped.events.extend(self.preempt(*id));
        }
        for id in &plan.admit {
            self.admit(*id, now, stepper, &mut stepped.events);
        }
        let rows = self.rows(&plan);
        if rows.is_empty() {
            self.parked.values_mut().for_each(|(sequence, _)| sequence.forget_kv());
            return stepped;
        }
        match self.compute(&rows, stepper) {
            Ok(output) => {
                stepped.cost = Some(self.cost(&rows, output.micros));
                self.absorb(&rows, output, stepper, &mut stepped.events);
            }
            Err(error) => self.fail(&rows, &error.to_string(), &mut stepped.events),
        }
        stepped
    }

    /// Whether there is nothing to do until the next job.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    pub fn stats(&self) -> QueueStats {
        let all = || self.waiting.values().chain(self.running.values());
        let prompt_tokens = all().map(Sequence::pending).filter(|pending| *pending > 1).sum::<usize>();
        let block_size = self.pool.block_size();
        let waiting = self.waiting.values().map(|seq| seq.table.blocks_needed(seq.tokens.len()) as u32);
        let growth = all().map(|seq| seq.growth(self.growth, block_size));
        QueueStats {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            waiting_tokens: prompt_tokens as u32,
            preemptions: self.preemptions,
            blocks_wanted: waiting.chain(growth).fold(0, u32::saturating_add),
            growth: self.growth,
        }
    }

    fn plan(&mut self) -> Plan {
        let (pool, growth) = (&self.pool, self.growth);
        let running: Vec<_> = self.running.values().map(|seq| seq.view(pool, growth, 0)).collect();
        let view_waiting = |(place, seq): (usize, &mut Sequence)| {
            let look = place < LOOKED_UP && seq.table.is_empty();
            let cached = if look { seq.cached_len(pool) } else { 0 };
            seq.view(pool, growth, cached)
        };
        let waiting: Vec<_> = self.waiting.values_mut().enumerate().map(view_waiting).collect();
        let stats = pool.stats();
        let token_budget = self.config.max_num_batched_tokens.max(1);
        self.planner.plan(&QueueView {
            running: &running,
            waiting: &waiting,
            token_budget,
            // Every running row gets at least one token per step, so that none starves.
            slots_total: self.config.max_num_seqs.min(token_budget).max(1),
            blocks_available: stats.free + stats.cached,
        })
    }

    /// Takes a sequence's blocks; it waits in its old place and is recomputed with the same draws.
    fn preempt(&mut self, id: SeqId) -> Option<Event> {
        let mut sequence = self.running.remove(&id).or_else(|| self.waiting.remove(&id))?;
        self.preemptions += 1;
        sequence.forget_kv();
        if sequence.seeds.is_empty() || self.is_search(&sequence.key) {
            sequence.seeds.clear();
            self.waiting.insert(id, sequence);
            return None;
        }
        let (key, seeds) = (sequence.key.clone(), std::mem::take(&mut sequence.seeds));
        self.waiting.extend(sequence.split(&seeds).into_iter().map(|child| (child.id, child)));
        self.end_if_done(&key)
    }

    /// Lets a waiting sequence run if its blocks can be had; otherwise it keeps its place.
    fn admit(&mut self, id: SeqId, now: Duration, stepper: &mut dyn Stepper, events: &mut Vec<Event>) {
        let Some(mut sequence) = self.waiting.remove(&id) else { return };
        if sequence.table.is_empty() {
            if sequence.lease(&self.pool).is_err() {
                self.waiting.insert(id, sequence);
                return;
            }
            self.note_admission(&sequence, now);
            if let Some(watcher) = &sequence.watcher
                && let Err(failure) = watcher.admitted(sequence.table.blocks(), sequence.computed as u32)
            {
                self.jobs.remove(&sequence.key);
                events.push(Event { key: sequence.key.clone(), what: Happening::Failed(failure) });
                return;
            }
        }
        self.waiting.range_mut(..id).for_each(|(_, earlier)| earlier.passed_over += 1);
        if sequence.seeds.is_empty() {
            self.running.insert(id, sequence);
            return;
        }
        let (key, seeds) = (sequence.key.clone(), std::mem::take(&mut sequence.seeds));
        if self.is_search(&key) {
            return self.park(sequence, seeds, stepper, events);
        }
        self.split(sequence, &seeds, stepper);
        events.extend(self.end_if_done(&key));
    }

    fn note_admission(&mut self, sequence: &Sequence, now: Duration) {
        if let Some(job) = self.jobs.get_mut(&sequence.key)
            && let Some(prompt) = &mut job.prompt
        {
            prompt.cached_tokens = sequence.computed as u32;
            prompt.queue_us = now.saturating_sub(job.submitted).as_micros() as u64;
        }
    }

    /// One sequence per choice. The last block, which each will write into, is copied for all but the first; a choice that gets no
    /// block for that, or no slot, waits.
    fn split(&mut self, sequence: Sequence, first: &[SampledToken], stepper: &mut dyn Stepper) {
        let shared = sequence.computed / self.pool.block_size() as usize;
        let children = sequence.split(first);
        let slots = self.config.max_num_seqs.min(self.config.max_num_batched_tokens).max(1) as usize;
        for (place, mut child) in children.into_iter().enumerate() {
            // Blocks past the computed tokens hold nothing worth sharing.
            child.table.truncate(child.computed.div_ceil(self.pool.block_size() as usize));
            let own = child.computed > 0
                && (place == 0 || shared == child.table.len() || self.copy_last(&mut child, stepper));
            if !own {
                self.preemptions += 1;
                child.forget_kv();
            }
            let queue = if own && self.running.len() < slots { &mut self.running } else { &mut self.waiting };
            queue.insert(child.id, child);
        }
    }

    /// Gives `child` a last block of its own; false if there is none to be had.
    fn copy_last(&self, child: &mut Sequence, stepper: &mut dyn Stepper) -> bool {
        let Some((last, from)) = child.table.len().checked_sub(1).zip(child.table.ids().last().copied()) else {
            return true;
        };
        let Some(copy) = self.pool.allocate(1, child.owner()).ok().and_then(|mut blocks| blocks.pop()) else {
            return false;
        };
        stepper.copy_block(from, copy.id());
        child.table.replace(last, copy).is_ok()
    }

    fn absorb(&mut self, rows: &[Row], output: StepOutput, stepper: &mut dyn Stepper, events: &mut Vec<Event>) {
        for ((row, drawn), probed) in rows.iter().zip(output.rows).zip(output.probed) {
            let Some(sequence) = self.running.get_mut(&row.id) else { continue };
            sequence.computed += row.tokens;
            sequence.publish(&self.pool);
            events.extend(told(sequence, probed));
            if let Some(prompt) = self.jobs.get_mut(&sequence.key).and_then(|job| job.prompt.as_mut()) {
                prompt.compute_us += output.micros;
            }
            if row.draws && drawn.is_empty() && sequence.pooled.is_none() {
                let failure = nothing_left(sequence);
                self.end(row.id, failure, events);
            } else if row.draws {
                self.go_on(row.id, drawn, stepper, events);
            }
        }
    }

    /// A sequence has its next token, or one for each of its choices.
    fn go_on(&mut self, id: SeqId, drawn: Vec<SampledToken>, stepper: &mut dyn Stepper, events: &mut Vec<Event>) {
        let Some(mut sequence) = self.running.remove(&id) else { return };
        let key = sequence.key.clone();
        if self.is_search(&key) {
            return self.park(sequence, drawn, stepper, events);
        }
        if let Some(pooled) = &sequence.pooled {
            let values = pooled.vector(sequence.tokens.len());
            drop(sequence);
            let prompt = self.jobs.get_mut(&key).and_then(|job| job.prompt.take());
            events.push(Event { key: key.clone(), what: Happening::Embedded { values, prompt } });
            return events.extend(self.end_if_done(&key));
        }
        match &drawn[..] {
            _ if sequence.watcher.is_some() => sequence.watcher.iter().for_each(|watcher| watcher.computed()),
            [only] if only.finish.is_none() => {
                sequence.tokens.push(only.id);
                self.running.insert(id, sequence);
            }
            several => {
                let ended = several.iter().filter(|token| token.finish.is_some());
                ended.for_each(|token| self.growth.observe(token.position as usize + 1, sequence.sampling.max_tokens));
                self.split(sequence, several, stepper);
            }
        }
        let prompt = self.jobs.get_mut(&key).and_then(|job| job.prompt.take());
        events.push(Event { key: key.clone(), what: Happening::Sampled { tokens: drawn, prompt } });
        events.extend(self.end_if_done(&key));
    }

    fn is_search(&self, key: &RequestKey) -> bool {
        self.jobs.get(key).is_some_and(|job| job.search.is_some())
    }

    fn fail(&mut self, rows: &[Row], message: &str, events: &mut Vec<Event>) {
        for row in rows {
            self.end(row.id, Failure::new(FailCode::FailInternal, message), events);
        }
    }

    /// Ends the job of a sequence by a failure.
    fn end(&mut self, id: SeqId, failure: Failure, events: &mut Vec<Event>) {
        let Some(key) = self.running.get(&id).map(|sequence| sequence.key.clone()) else { return };
        self.cancel(&key, &[]);
        events.push(Event { key, what: Happening::Failed(failure) });
    }

    /// The job's last event, once none of its sequences is left.
    fn end_if_done(&mut self, key: &RequestKey) -> Option<Event> {
        let job = self.jobs.get(key)?.id;
        let left = [&self.waiting, &self.running].iter().any(|queue| queue.range(of_job(job)).next().is_some());
        if left || self.parked.range(of_job(job)).next().is_some() {
            return None;
        }
        self.jobs.remove(key);
        Some(Event { key: key.clone(), what: Happening::Finished })
    }
}

/// Another instance would come to the same end, so the request as a whole is refused.
fn nothing_left(sequence: &Sequence) -> Failure {
    let reason = sequence.constraint.as_ref().and_then(|constraint| constraint.failure());
    let reason = reason.map(|reason| format!("the grammar cannot go on: {reason}"));
    let message = reason.unwrap_or_else(|| "what the request allows leaves no token to go on with".to_owned());
    Failure::new(FailCode::FailBadRequest, message)
}

/// What a probe found, as the job's event.
fn told(sequence: &mut Sequence, probed: Probed) -> Option<Event> {
    let what = match probed {
        Probed::None => return None,
        Probed::Hidden(sum) => {
            sequence.pooled.iter_mut().for_each(|pooled| pooled.sum.clone_from(&sum));
            return None;
        }
        Probed::Scores(scores) => {
            let first = sequence.scored as u32;
            sequence.scored += scores.len();
            Happening::Scored { first, scores }
        }
    };
    Some(Event { key: sequence.key.clone(), what })
}

/// The ids of all choices of the job that this one belongs to.
fn of_job(id: SeqId) -> std::ops::RangeInclusive<SeqId> {
    SeqId { choice: 0, ..id }..=SeqId { choice: u32::MAX, ..id }
}
