//! The one thread that owns engine and runner, and the handle that everyone else has.
//!
//! The thread sleeps when there is nothing to do and never waits for anyone: an attempt that does not fetch its events loses its job.

mod pulse;
#[cfg(any(test, feature = "fake"))]
mod task;

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use kv::{BlockPool, PoolStats};
use parking_lot::{Condvar, Mutex};
use proto::control::{FailCode, StepCost};
use telemetry::WorkerMetrics;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use types::RequestKey;

use pulse::{Beating, Pulse};

use crate::{Event, Failure, Happening, Job, QueueStats, Runner, Stepped, Stepper};

/// Commands that may wait for the thread, which takes all of them between two steps.
const COMMANDS_MAX: usize = 1024;
/// Events that a job may have unread: seconds of decoding, so only a consumer that stands still runs into it.
const EVENTS_MAX: usize = 4096;
/// Step costs kept for the next load report.
const COSTS_MAX: usize = 64;
/// Pause before another try when nobody could get blocks, which come back without telling the thread.
const STALLED: Duration = Duration::from_millis(2);

/// Hands work to the engine thread. Cheap to clone.
#[derive(Clone)]
pub struct EngineHandle(Arc<Shared>);

struct Shared {
    inbox: Mutex<Inbox>,
    bell: Bell,
    report: Mutex<Report>,
    pool: BlockPool,
    metrics: WorkerMetrics,
    pulse: Pulse,
    /// Counts reports; closed when the thread has ended.
    changed: watch::Receiver<u64>,
}

/// Wakes the engine.
#[derive(Default)]
struct Bell {
    heard: Condvar,
    #[cfg(any(test, feature = "fake"))]
    heard_by_task: tokio::sync::Notify,
}

impl Bell {
    fn ring(&self) {
        self.heard.notify_one();
        #[cfg(any(test, feature = "fake"))]
        self.heard_by_task.notify_one();
    }
}

#[derive(Default)]
struct Inbox {
    commands: VecDeque<Command>,
    stopping: bool,
    /// The thread has ended; nothing will be taken any more.
    closed: bool,
}

enum Command {
    Submit { job: Box<Job>, events: mpsc::Sender<Happening> },
    Cancel { key: RequestKey, choices: Vec<u32> },
}

#[derive(Default)]
struct Report {
    queue: QueueStats,
    steps: u64,
    costs: VecDeque<StepCost>,
}

/// What an instance is busy with.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    pub queue: QueueStats,
    pub pool: PoolStats,
    pub steps: u64,
}

/// A submitted job: yields its events; dropping it cancels it.
pub struct RunningJob {
    key: RequestKey,
    events: mpsc::Receiver<Happening>,
    engine: EngineHandle,
}

impl EngineHandle {
    /// Starts the thread. It ends by [`EngineHandle::shutdown`] or when a step panics.
    pub fn start(
        runner: Runner,
        stepper: impl Stepper + Send + 'static,
        pool: BlockPool,
        metrics: WorkerMetrics,
    ) -> std::io::Result<Self> {
        let (handle, mut thread) = Self::new(runner, stepper, pool, metrics);
        std::thread::Builder::new().name("engine".into()).spawn(move || {
            if std::panic::catch_unwind(AssertUnwindSafe(|| thread.run())).is_err() {
                tracing::error!("the engine panicked; this instance stops, its requests go on elsewhere");
            }
            thread.shared.close();
        })?;
        Ok(handle)
    }

    fn new(
        runner: Runner,
        stepper: impl Stepper + Send + 'static,
        pool: BlockPool,
        metrics: WorkerMetrics,
    ) -> (Self, EngineThread) {
        let (change, changed) = watch::channel(0);
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            bell: Bell::default(),
            report: Mutex::default(),
            pool,
            metrics,
            pulse: Pulse::new(),
            changed,
        });
        let thread = EngineThread {
            shared: shared.clone(),
            runner,
            stepper: Box::new(stepper),
            events: HashMap::new(),
            change,
            start: Instant::now(),
            preemptions: 0,
        };
        (Self(shared), thread)
    }

    /// Queues a job. Refusals that need the runner's state come as the job's first event.
    pub fn submit(&self, job: Job) -> Result<RunningJob, Failure> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let key = job.key.clone();
        self.push(Command::Submit { job: Box::new(job), events: sender })?;
        Ok(RunningJob { key, events, engine: self.clone() })
    }

    /// Forgets some choices of a job; unknown ones are ignored.
    pub fn cancel_choices(&self, key: &RequestKey, choices: &[u32]) {
        if !choices.is_empty() {
            // When the queue is full these choices just go on; the scheduler ignores their tokens.
            let _ = self.push(Command::Cancel { key: key.clone(), choices: choices.to_vec() });
        }
    }

    pub fn stats(&self) -> EngineStats {
        let report = self.0.report.lock();
        EngineStats { queue: report.queue, pool: self.0.pool.stats(), steps: report.steps }
    }

    /// For how long the step that runs has stood still; nothing if none runs.
    pub fn silence(&self) -> Duration {
        self.0.pulse.silence()
    }

    /// Step costs since the last call, the latest ones if there were many.
    pub fn take_costs(&self) -> Vec<StepCost> {
        self.0.report.lock().costs.drain(..).collect()
    }

    /// Changes after every step and every command; closed when the thread has ended.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.clone()
    }

    pub fn pool(&self) -> &BlockPool {
        &self.0.pool
    }

    pub fn metrics(&self) -> &WorkerMetrics {
        &self.0.metrics
    }

    /// Ends the thread after the step it is in. Jobs that are not finished are lost.
    pub fn shutdown(&self) {
        self.0.inbox.lock().stopping = true;
        self.0.bell.ring();
    }

    /// Waits until the thread has ended.
    pub async fn ended(&self) {
        let mut changes = self.changes();
        while changes.changed().await.is_ok() {}
    }

    fn push(&self, command: Command) -> Result<(), Failure> {
        let mut inbox = self.0.inbox.lock();
        if inbox.closed {
            return Err(Failure::new(FailCode::FailInternal, "the engine has stopped"));
        }
        if inbox.commands.len() >= COMMANDS_MAX {
            let message = format!("{COMMANDS_MAX} commands wait for the engine");
            return Err(Failure::new(FailCode::FailQueueFull, message));
        }
        inbox.commands.push_back(command);
        drop(inbox);
        self.0.bell.ring();
        Ok(())
    }
}

impl RunningJob {
    /// The next event; `Finished` or `Failed` is the last. None: the events were not fetched in time, or the engine has stopped.
    pub async fn next(&mut self) -> Option<Happening> {
        self.events.recv().await
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        // The channel of a job that has ended is closed. For any other, cancel is unconditional, so the bound on the queue does not
        // hold: there is at most one such command per accepted job.
        let mut inbox = self.engine.0.inbox.lock();
        if !self.events.is_closed() && !inbox.closed {
            inbox.commands.push_back(Command::Cancel { key: self.key.clone(), choices: Vec::new() });
            self.engine.0.bell.ring();
        }
    }
}

impl Shared {
    fn close(&self) {
        let mut inbox = self.inbox.lock();
        inbox.closed = true;
        inbox.commands.clear();
    }
}

struct EngineThread {
    shared: Arc<Shared>,
    runner: Runner,
    stepper: Box<dyn Stepper + Send>,
    events: HashMap<RequestKey, mpsc::Sender<Happening>>,
    change: watch::Sender<u64>,
    /// Zero of the runner's clock.
    start: Instant,
    /// As the metrics know them.
    preemptions: u64,
}

impl EngineThread {
    fn run(&mut self) {
        let mut stalled = false;
        while let Some(commands) = self.commands(stalled) {
            let stepped = self.step(commands);
            stalled = stepped.is_stalled();
            self.tell(stepped);
        }
    }

    fn step(&mut self, commands: VecDeque<Command>) -> Stepped {
        for command in commands {
            self.apply(command);
        }
        let pulse = &self.shared.pulse;
        pulse.beat();
        let stepped = self.runner.step(self.start.elapsed(), &mut Beating { stepper: &mut *self.stepper, pulse });
        pulse.rest();
        stepped
    }

    /// Says what a step came to, to whoever waits for it.
    fn tell(&mut self, stepped: Stepped) {
        self.report(&stepped);
        stepped.events.into_iter().for_each(|event| self.deliver(event));
        self.change.send_modify(|reports| *reports += 1);
    }

    /// Everything that was asked for meanwhile; sleeps if there is nothing else to do. None ends the thread.
    fn commands(&self, stalled: bool) -> Option<VecDeque<Command>> {
        let mut inbox = self.shared.inbox.lock();
        if self.runner.is_idle() {
            self.shared.bell.heard.wait_while(&mut inbox, |inbox| inbox.commands.is_empty() && !inbox.stopping);
        } else if stalled && inbox.commands.is_empty() {
            self.shared.bell.heard.wait_for(&mut inbox, STALLED);
        }
        (!inbox.stopping).then(|| std::mem::take(&mut inbox.commands))
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Submit { job, events } => {
                let key = job.key.clone();
                match self.runner.submit(*job, self.start.elapsed()) {
                    Ok(()) => drop(self.events.insert(key, events)),
                    // A fresh channel has room; a receiver that is gone already needs no answer.
                    Err(failure) => drop(events.try_send(Happening::Failed(failure))),
                }
            }
            Command::Cancel { key, choices } => {
                let ended = self.runner.cancel(&key, &choices);
                if choices.is_empty() {
                    self.events.remove(&key);
                }
                ended.into_iter().for_each(|event| self.deliver(event));
            }
        }
    }

    /// Hands an event over without waiting. Whoever does not fetch, or is gone, loses the job.
    fn deliver(&mut self, Event { key, what }: Event) {
        let last = matches!(what, Happening::Finished | Happening::Failed(_));
        let lost = self.events.get(&key).is_none_or(|events| events.try_send(what).is_err());
        if last || lost {
            self.events.remove(&key);
        }
        if lost && !last {
            self.runner.cancel(&key, &[]);
        }
    }

    fn report(&mut self, stepped: &Stepped) {
        let queue = self.runner.stats();
        let metrics = &self.shared.metrics;
        metrics.set_sequences(queue.running as usize, queue.waiting as usize);
        metrics.preempted(queue.preemptions - self.preemptions);
        self.preemptions = queue.preemptions;
        let mut report = self.shared.report.lock();
        report.queue = queue;
        if let Some(cost) = stepped.cost {
            metrics.stepped(u64::from(cost.prefill_tokens + cost.decode_rows), Duration::from_micros(cost.micros));
            report.steps += 1;
            if report.costs.len() == COSTS_MAX {
                report.costs.pop_front();
            }
            report.costs.push_back(cost);
        }
    }
}
