//! One run: hosts take turns, the network delivers, faults come and go as planned, and the checks look on.

use std::cell::Cell;
use std::net::SocketAddr;
use std::ops::Range;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use kv::{BlockRef, Owner, Phase};
use net::sim::Network;
use parking_lot::Mutex;
use scheduler::{LocalPrefill, Target};
use types::{RequestKey, Role as Kind};
use worker::Loaded;

use crate::ask::Seen;
use crate::check::{self, Ended, Ledgers, May, Violation};
use crate::client::{self, PATIENCE, ask_of, request_id};
use crate::host::{Host, Role};
use crate::links::tampering;
use crate::model::Model;
use crate::plan::{Fault, Place, Plan, Sabotage};
use crate::witness::Witness;

pub(crate) const PORT: u16 = 8000;
pub(crate) const KV_PORT: u16 = 8001;
/// How often ledgers are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// After the last request: leases run out, hand-overs are given up.
const QUIET: Duration = Duration::from_secs(12);

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub whole: u32,
    pub left: u32,
    pub refused: u32,
    pub cut: u32,
    pub faults: usize,
    /// Simulated time.
    pub seconds: u64,
    /// Of the network's traffic: equal for equal runs.
    pub fingerprint: u64,
}

impl Outcome {
    /// Takes another run's counts in.
    pub fn add(&mut self, other: &Outcome) {
        self.whole += other.whole;
        self.left += other.left;
        self.refused += other.refused;
        self.cut += other.cut;
        self.faults += other.faults;
        self.seconds += other.seconds;
        self.fingerprint ^= other.fingerprint;
    }
}

struct World<'a> {
    plan: Plan,
    model: &'a Model,
    network: Network,
    hosts: Vec<Host>,
    now: Duration,
    seen: Vec<Arc<Mutex<Seen>>>,
    witness: Witness,
    ledgers: Ledgers,
    damage_over: Arc<AtomicBool>,
    mild: bool,
    /// When a client may find the scheduler gone: it was not there or did not run.
    scheduler_gone: Vec<Range<Duration>>,
}

/// Runs a plan to its end.
///
/// # Errors
/// The first thing that was not as it must be.
pub fn run(plan: Plan, model: &Model) -> Result<Outcome, Violation> {
    let panics = Panics::watch();
    let outcome = World::new(plan, model).and_then(World::run);
    match panics.seen() {
        0 => outcome,
        count => Err(Violation(format!("{count} panics; the run itself came to {outcome:?}"))),
    }
}

impl<'a> World<'a> {
    fn new(plan: Plan, model: &'a Model) -> Result<Self, Violation> {
        let (network, damage_over) = (Network::new(plan.seed), Arc::new(AtomicBool::new(false)));
        let seen: Vec<Arc<Mutex<Seen>>> = plan.asks.iter().map(|_| Arc::default()).collect();
        let witness = Witness::new(&seen);
        network.tamper(Some(tampering(&plan, witness.clone(), &damage_over)));
        let places = plan.places();
        for &one in &places {
            for &other in &places {
                let delay = Duration::from_micros(100)..plan.delay + Duration::from_millis(1);
                network.delay(one.address(), other.address(), Some(delay));
            }
        }
        let hosts = places.iter().map(|&place| Host::new(place, &network)).collect();
        let ledgers = Ledgers::new(plan.mischief.cancels_lost > 0);
        let mut world = Self {
            mild: plan.is_mild(),
            plan,
            model,
            network,
            hosts,
            now: Duration::ZERO,
            seen,
            witness,
            ledgers,
            damage_over,
            scheduler_gone: Vec::new(),
        };
        for &place in places.iter().rev() {
            world.start(place)?;
        }
        world.send_clients();
        Ok(world)
    }

    fn run(mut self) -> Result<Outcome, Violation> {
        let faults = std::mem::take(&mut self.plan.faults);
        for &(at, fault) in &faults {
            self.until(at)?;
            self.apply(fault)?;
        }
        self.damage_over.store(true, Ordering::Relaxed);
        let _leaked = self.sabotage();
        let last = self.plan.asks.iter().map(|ask| ask.at).max().unwrap_or_default();
        let deadline = last + PATIENCE + Duration::from_secs(1);
        while self.seen.iter().any(|seen| seen.lock().over.is_none()) {
            if self.now > deadline {
                return Err(Violation("a client never came to its end".into()));
            }
            self.until(self.now + LOOK)?;
        }
        self.until(self.now + QUIET)?;
        check::check_quiet(&self.hosts)?;
        self.outcome(faults.iter().filter(|(at, _)| *at < self.plan.calm_at()).count())
    }

    fn outcome(&self, faults: usize) -> Result<Outcome, Violation> {
        let (seconds, fingerprint) = (self.now.as_secs(), self.network.fingerprint());
        let mut outcome = Outcome { faults, seconds, fingerprint, ..Outcome::default() };
        for (number, ask) in self.plan.asks.iter().enumerate() {
            let seen = self.seen[number].lock().clone();
            let over = seen.over.unwrap_or(self.now);
            let be_cut = self.scheduler_gone.iter().any(|gone| gone.start <= over && ask.at < gone.end);
            let may = May { be_cut, be_refused: !ask.calm && !self.mild };
            match check::check_seen(number, ask, &seen, self.model, may)? {
                Ended::Whole => outcome.whole += 1,
                Ended::Left => outcome.left += 1,
                Ended::Refused => outcome.refused += 1,
                Ended::Cut => outcome.cut += 1,
            }
        }
        Ok(outcome)
    }

    /// Lets time go on, and looks at the ledgers now and then.
    fn until(&mut self, end: Duration) -> Result<(), Violation> {
        while self.now < end {
            let looked = self.now.as_millis() / LOOK.as_millis();
            self.now += self.plan.tick;
            self.network.deliver(self.now);
            self.hosts.iter_mut().for_each(|host| host.step(self.now));
            if self.now.as_millis() / LOOK.as_millis() > looked {
                let mut ledgers = std::mem::take(&mut self.ledgers);
                ledgers.check(self.now, &self.hosts, |request| self.is_over(request))?;
                self.ledgers = ledgers;
                if let Some(wrong) = self.witness.wrong() {
                    return Err(Violation(wrong));
                }
            }
        }
        Ok(())
    }

    /// Whether the request of a ledger's line is over for its client.
    fn is_over(&self, request: &str) -> bool {
        ask_of(request).and_then(|number| self.seen.get(number)).is_some_and(|seen| seen.lock().over.is_some())
    }

    fn apply(&mut self, fault: Fault) -> Result<(), Violation> {
        let (network, now) = (self.network.clone(), self.now);
        match fault {
            Fault::Kill(place) => self.host(place).kill(),
            Fault::PowerOff(place) => self.host(place).power_off(),
            Fault::Start(place) => return self.start(place),
            Fault::Freeze(place) => self.host(place).freeze(now),
            Fault::Wake(place) => self.host(place).wake(now),
            Fault::Drain(place) => self.host(place).drain(),
            Fault::Block(one, other) => network.block(one.address(), other.address()),
            Fault::Unblock(one, other) => network.unblock(one.address(), other.address()),
            Fault::Cut(one, other) => network.cut(one.address(), other.address()),
            Fault::Slow(one, other) => {
                let slow = Duration::from_millis(100)..Duration::from_millis(1500);
                network.delay(one.address(), other.address(), Some(slow));
            }
            Fault::Unslow(one, other) => {
                let usual = Duration::from_micros(100)..self.plan.delay + Duration::from_millis(1);
                network.delay(one.address(), other.address(), Some(usual));
            }
        }
        if let Fault::Kill(Place::Scheduler) = fault {
            self.scheduler_gone.push(now..Duration::MAX);
        }
        Ok(())
    }

    /// What a leak holds.
    fn sabotage(&self) -> Vec<BlockRef> {
        match self.plan.sabotage {
            Some(Sabotage::Leak) => {
                let key = RequestKey { request: request_id(0).into(), epoch: 0 };
                let pool = self.hosts.iter().find_map(Host::worker).map(worker::Running::pool);
                let leaked = pool.and_then(|pool| pool.allocate(1, Owner { key, phase: Phase::Decoding }).ok());
                leaked.expect("an idle worker has a free block")
            }
            Some(Sabotage::Silence) => {
                self.network.block(Place::Scheduler.address(), Place::Clients.address());
                Vec::new()
            }
            Some(Sabotage::Double) | None => Vec::new(),
        }
    }

    fn host(&mut self, place: Place) -> &mut Host {
        let at = self.hosts.iter().position(|host| host.place == place);
        &mut self.hosts[at.expect("plans name places of their own cluster")]
    }

    fn start(&mut self, place: Place) -> Result<(), Violation> {
        let now = self.now;
        if place == Place::Scheduler
            && let Some(gone) = self.scheduler_gone.last_mut()
        {
            gone.end = gone.end.min(now + LOOK);
        }
        let plan = &self.plan;
        let started = match place {
            Place::Clients => {
                let role = async { Ok(Role::Clients) };
                self.host(place).start(now, role)
            }
            Place::Scheduler => {
                let config = scheduler_config(plan, self.model);
                let role = async { Ok(Role::Scheduler { _running: scheduler::start(config).await? }) };
                self.host(place).start(now, role)
            }
            Place::Prefill(_) | Place::Decode(_) => {
                let role = worker_role(plan, place, self.model);
                // A worker that is still draining is killed first, as a supervisor does.
                let host = self.host(place);
                if host.is_up() && host.worker().is_none() {
                    host.kill();
                }
                host.start(now, role)
            }
        };
        started.map_err(|error| Violation(format!("{place:?} does not start: {error:#}")))
    }

    fn send_clients(&mut self) {
        let scheduler = SocketAddr::new(Place::Scheduler.address(), PORT);
        for (number, (ask, seen)) in self.plan.asks.iter().zip(&self.seen).enumerate() {
            let client = client::live(number, ask.clone(), scheduler, seen.clone(), self.witness.clone());
            let clients = self.hosts.iter().find(|host| host.place == Place::Clients);
            clients.expect("every plan has clients").spawn(client);
        }
    }
}

fn scheduler_config(plan: &Plan, model: &Model) -> scheduler::Config {
    let target = |place: Place| Target {
        id: name(place).into(),
        role: kind(place),
        address: SocketAddr::new(place.address(), PORT),
    };
    let mut config = scheduler::Config::new(model.path(), plan.workers().into_iter().map(target).collect(), "table");
    config.served_names = vec![crate::model::NAME.to_owned()];
    config.listen = SocketAddr::new(Place::Scheduler.address(), PORT);
    config.local_prefill = if plan.local_prefill { LocalPrefill::Auto } else { LocalPrefill::Never };
    config.grammars = Some(model.grammars.clone());
    config.seed = Some(plan.seed);
    // As in production, but for what would only make runs long.
    config.timings.stall = Duration::from_secs(2);
    config.timings.connect = Duration::from_secs(2);
    config.timings.progress = Duration::from_secs(15);
    config.timings.wait = Duration::from_secs(20);
    config
}

fn worker_role(plan: &Plan, place: Place, model: &Model) -> impl Future<Output = anyhow::Result<Role>> + use<> {
    let mut config = worker::fake::config(kind(place), &name(place), &plan.transports);
    config.listen = SocketAddr::new(place.address(), PORT);
    config.advertise = place.address();
    config.kv_port = KV_PORT;
    let (size, pace, grammars) = (plan.size, plan.pace, model.grammars.clone());
    async move {
        let planner: Box<dyn worker::Planner> = match place {
            Place::Prefill(_) => Box::new(prefill_worker::PrefillPlanner),
            _ => Box::new(decode_worker::DecodePlanner::default()),
        };
        let loaded = Loaded { grammars, ..worker::fake::simulated(config, size, planner, pace) };
        let running = match place {
            Place::Prefill(_) => prefill_worker::serve(loaded).await?,
            _ => decode_worker::serve(loaded).await?,
        };
        Ok(Role::Worker { running: Some(running) })
    }
}

fn name(place: Place) -> String {
    match place {
        Place::Scheduler => "scheduler".into(),
        Place::Clients => "clients".into(),
        Place::Prefill(index) => format!("prefill-{index}"),
        Place::Decode(index) => format!("decode-{index}"),
    }
}

fn kind(place: Place) -> Kind {
    match place {
        Place::Prefill(_) => Kind::Prefill,
        Place::Decode(_) => Kind::Decode,
        Place::Scheduler | Place::Clients => Kind::Scheduler,
    }
}

thread_local! {
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// Counts panics of this thread: a runtime would swallow those of its tasks.
struct Panics;

impl Panics {
    fn watch() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                PANICS.set(PANICS.get() + 1);
                before(info);
            }));
        });
        PANICS.set(0);
        Self
    }

    fn seen(&self) -> u32 {
        PANICS.get()
    }
}
