//! Which instances are alive, of one model and willing: live truth beside the rank table's bootstrap.
//!
//! Every connected instance is compared, field by field, with what most instances run; one that differs is connected but never
//! ready. A `Cluster` is shared by all connections and requests; its locks are held for microseconds.

mod listing;
mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use edge::Credentials;
use parking_lot::Mutex;
use proto::control::{self, Welcome};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use telemetry::{SchedulerMetrics, WorkerLoad};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};
use types::{InstanceId, Limits, ModelIdentity, Role};

use crate::config::{Config, Timings};
use crate::connection::Ended;
use crate::link::Connection;
use crate::outbox::Outbox;
use crate::pairing::{Booking, Choice, Facts, Load, Pairing, Route, Slot, Step};
use crate::table::Target;

pub(crate) struct Cluster {
    members: Mutex<Vec<Member>>,
    pairing: Mutex<Pairing>,
    /// What most instances run, as of the last change of who is there.
    model: Mutex<Option<Arc<ModelIdentity>>>,
    /// Something happened that may let a waiting request go on.
    changed: Notify,
    generations: AtomicU64,
    /// Of this process: workers drop what an older scheduler left.
    incarnation: u64,
    random: Mutex<SmallRng>,
    table_hash: Mutex<String>,
    credentials: Credentials,
    timings: Timings,
    metrics: SchedulerMetrics,
}

/// One instance.
struct Member {
    target: Arc<Target>,
    state: State,
    /// Whether the rank table names it; one that it names no longer only finishes what it has.
    listed: bool,
}

/// What is known of one instance now.
enum State {
    /// Not connected; `refused` when it could be, but is not what the rank table says.
    Away {
        refused: bool,
        reason: String,
    },
    Connected(Box<Live>),
    /// Nothing is left of it: its slot may be taken over.
    Gone,
}

struct Live {
    connection: Arc<Connection>,
    model: Arc<ModelIdentity>,
    /// The instruction-set level that it computes on; empty if it does not say.
    instructions: String,
    load: control::Load,
    /// Why it must not be used although it is connected.
    mismatch: Option<String>,
    /// A canary prompt came back through it.
    proven: bool,
    /// Why the last canary did not.
    canary_error: Option<String>,
}

/// Takes a route's share of its instances; dropping it gives the share back.
pub(crate) struct Booked {
    cluster: Arc<Cluster>,
    booking: Booking,
}

/// What the router decided, with the connections to go with it.
pub(crate) enum Routed {
    Go { booked: Booked, prefill: Option<Arc<Connection>>, decode: Arc<Connection> },
    Wait,
    Absent(Role),
    TooLong { tokens_max: u32 },
}

impl Cluster {
    pub(crate) fn new(config: &Config) -> Self {
        let instances = &config.table.instances;
        Self {
            members: Mutex::new(instances.iter().cloned().map(Member::new).collect()),
            pairing: Mutex::new(Pairing::new(instances.iter().map(|target| target.role), config.local_prefill)),
            model: Mutex::new(None),
            changed: Notify::new(),
            generations: AtomicU64::new(0),
            incarnation: rand::random(),
            random: Mutex::new(config.seed.map_or_else(SmallRng::from_os_rng, SmallRng::seed_from_u64)),
            table_hash: Mutex::new(config.table.hash.clone()),
            credentials: config.credentials.clone(),
            timings: config.timings.clone(),
            metrics: SchedulerMetrics::new(config.served_names.first().map_or("", String::as_str)),
        }
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        (0..self.members.lock().len()).map(Slot)
    }

    pub(crate) fn target(&self, slot: Slot) -> Arc<Target> {
        self.members.lock()[slot.0].target.clone()
    }

    pub(crate) fn timings(&self) -> &Timings {
        &self.timings
    }

    pub(crate) fn metrics(&self) -> &SchedulerMetrics {
        &self.metrics
    }

    pub(crate) fn table_hash(&self) -> String {
        self.table_hash.lock().clone()
    }

    pub(crate) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Completes when something changed after the call was polled or enabled.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    // ---- what connections report

    /// A worker answered Hello. Checked here: that it is who the table says, and what it runs.
    pub(crate) fn welcomed(&self, slot: Slot, welcome: Welcome, outbox: Outbox) -> Result<Arc<Connection>, Ended> {
        let target = self.target(slot);
        let model = self.check(&target, &welcome).map_err(Ended::Refused)?;
        let limits = welcome.limits.map(Limits::from).unwrap_or_default();
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection::new(slot, generation, target.id.clone(), self.timings.progress, outbox));
        info!(instance = %target.id, address = %target.address, blocks = limits.blocks_total, block_size = limits.block_size, instructions = limits.instructions, "instance connected");
        self.warn_of_others(&target.id, &limits.instructions);
        let instructions = limits.instructions.clone();
        self.pairing.lock().joined(slot, &limits);
        let live = Live {
            connection: connection.clone(),
            model: Arc::new(model),
            instructions,
            load: control::Load::default(),
            mismatch: None,
            proven: false,
            canary_error: None,
        };
        self.change(|members, _| members[slot.0].state = State::Connected(Box::new(live)));
        Ok(connection)
    }

    /// Instances that round differently work together, but nobody should wonder why.
    fn warn_of_others(&self, id: &InstanceId, instructions: &str) {
        let members = self.members.lock();
        let mut listed = members.iter().filter(|member| member.listed && member.target.id != *id);
        let other = listed.find_map(|member| {
            let theirs = member.live()?.instructions.as_str();
            (theirs != instructions).then_some((&member.target.id, theirs))
        });
        if let Some((other, theirs)) = other {
            let effect = "a text that moves between them may go on in other words";
            warn!(instance = %id, instructions, %other, theirs, effect, "instances compute on different instructions");
        }
    }

    pub(crate) fn lost(&self, slot: Slot, ended: &Ended) {
        let (refused, reason) = (matches!(ended, Ended::Refused(_)), ended.to_string());
        self.change(|members, _| members[slot.0].state = State::Away { refused, reason });
    }

    pub(crate) fn loaded(&self, slot: Slot, load: control::Load) {
        let seen = Load {
            running: load.running,
            waiting: load.waiting,
            waiting_tokens: load.waiting_tokens,
            blocks_available: load.blocks_free.saturating_add(load.blocks_cached),
            blocks_total: load.blocks_total,
            draining: load.draining,
        };
        let steps = load.costs.iter().map(|cost| Step {
            prefill_tokens: cost.prefill_tokens,
            decode_rows: cost.decode_rows,
            seconds: cost.micros as f64 / 1e6,
        });
        self.pairing.lock().loaded(slot, seen, steps);
        let shown = WorkerLoad {
            running: load.running.into(),
            waiting: load.waiting.into(),
            blocks_total: load.blocks_total.into(),
            blocks_free: load.blocks_free.into(),
            blocks_cached: load.blocks_cached.into(),
            preemptions: load.preemptions,
        };
        let member = &mut self.members.lock()[slot.0];
        if member.listed {
            self.metrics.worker_load(&member.target.id, member.target.role, shown);
        }
        if let State::Connected(live) = &mut member.state {
            live.load = load;
        }
        self.changed.notify_waiters();
    }

    fn check(&self, target: &Target, welcome: &Welcome) -> Result<ModelIdentity, String> {
        if !welcome.refusal.is_empty() {
            return Err(format!("refused the scheduler: {}", welcome.refusal));
        }
        if welcome.protocol < proto::PROTOCOL_MIN {
            return Err(differs("protocol", proto::PROTOCOL, welcome.protocol));
        }
        let table_hash = self.table_hash();
        if welcome.table_hash != table_hash {
            let fix = "give every role the same global rank table";
            return Err(format!("{}; {fix}", differs("table_hash", &table_hash, &welcome.table_hash)));
        }
        if welcome.instance != target.id.as_str() {
            return Err(differs("instance", &target.id, &welcome.instance));
        }
        if welcome.role != target.role.as_str() {
            return Err(differs("role", target.role, &welcome.role));
        }
        welcome.model.clone().map(ModelIdentity::from).ok_or_else(|| "its Welcome lacks the model".to_owned())
    }

    /// Applies a change of who is there, then says again who is ready.
    fn change(&self, apply: impl FnOnce(&mut Vec<Member>, &mut Pairing)) {
        let mut members = self.members.lock();
        let mut pairing = self.pairing.lock();
        apply(&mut members, &mut pairing);
        let reference = reference(&members).map(|(id, model)| (id.clone(), model.clone()));
        *self.model.lock() = reference.as_ref().map(|(_, model)| model.clone());
        for (index, member) in members.iter_mut().enumerate().filter(|(_, member)| member.listed) {
            let target = &member.target;
            let State::Connected(live) = &mut member.state else {
                pairing.set_ready(Slot(index), false);
                self.metrics.worker_down(&target.id, target.role);
                continue;
            };
            let mismatch =
                reference.as_ref().and_then(|(id, model)| describe_mismatch(id, model, &target.id, &live.model));
            if mismatch.is_some() && mismatch != live.mismatch {
                warn!(instance = %target.id, reason = mismatch.as_deref(), "instance is not ready");
            }
            match mismatch {
                None => self.metrics.worker_up(&target.id, target.role),
                Some(_) => self.metrics.worker_down(&target.id, target.role),
            }
            pairing.set_ready(Slot(index), mismatch.is_none());
            live.mismatch = mismatch;
        }
        self.changed.notify_waiters();
    }

    // ---- what requests ask

    /// The model that the cluster runs; `None` while no instance is connected.
    pub(crate) fn model(&self) -> Option<Arc<ModelIdentity>> {
        self.model.lock().clone()
    }

    /// Decides who serves and books it.
    pub(crate) fn route(self: &Arc<Self>, facts: &Facts<'_>) -> Routed {
        let now = Instant::now();
        let mut pairing = self.pairing.lock();
        match pairing.choose(facts, now, &mut *self.random.lock()) {
            Choice::Route(route) => {
                let booking = pairing.book(route, facts, now);
                drop(pairing);
                self.connected(Booked { cluster: self.clone(), booking })
            }
            Choice::Wait => Routed::Wait,
            Choice::Absent(role) => Routed::Absent(role),
            Choice::TooLong { tokens_max } => Routed::TooLong { tokens_max },
        }
    }

    /// Books a given route: canaries prove the way they were sent, not the cheapest.
    pub(crate) fn route_by(self: &Arc<Self>, route: Route, facts: &Facts<'_>) -> Routed {
        let booking = self.pairing.lock().book(route, facts, Instant::now());
        self.connected(Booked { cluster: self.clone(), booking })
    }

    fn connected(&self, booked: Booked) -> Routed {
        let members = self.members.lock();
        let route = booked.route();
        let find = |slot: Slot| members[slot.0].live().map(|live| live.connection.clone());
        let prefill = route.prefill().map(find);
        match (prefill, find(route.decode())) {
            (None, Some(decode)) => Routed::Go { booked, prefill: None, decode },
            (Some(Some(prefill)), Some(decode)) => Routed::Go { booked, prefill: Some(prefill), decode },
            (Some(None), _) => Routed::Absent(Role::Prefill),
            (_, None) => Routed::Absent(Role::Decode),
        }
    }

    /// Which connection stands behind a slot now.
    pub(crate) fn generation(&self, slot: Slot) -> Option<u64> {
        self.members.lock().get(slot.0)?.live().map(|live| live.connection.generation)
    }

    // ---- what attempts report

    pub(crate) fn succeeded(&self, route: Route) {
        self.pairing.lock().succeeded(route);
    }

    pub(crate) fn failed(&self, slot: Slot) {
        self.pairing.lock().failed(slot, Instant::now());
    }

    pub(crate) fn failed_pair(&self, prefill: Slot, decode: Slot) {
        self.pairing.lock().failed_pair(prefill, decode, Instant::now());
    }

    pub(crate) fn handed_over(&self, prefill: Slot, decode: Slot, exposed: Duration) {
        self.pairing.lock().handed_over(prefill, decode, exposed.as_secs_f64());
    }

    pub(crate) fn admitted(&self) {
        self.pairing.lock().admitted();
    }

    pub(crate) fn may_retry(&self) -> bool {
        self.pairing.lock().may_retry()
    }

    // ---- readiness

    /// Instances that may be used but that no canary came back through yet.
    pub(crate) fn unproven(&self) -> Vec<(Slot, Role)> {
        self.usable(|live| !live.proven)
    }

    /// Every instance that may be used.
    pub(crate) fn live(&self) -> Vec<(Slot, Role)> {
        self.usable(|_| true)
    }

    fn usable(&self, keep: impl Fn(&Live) -> bool) -> Vec<(Slot, Role)> {
        let members = self.members.lock();
        let usable = members.iter().enumerate().filter(|(_, member)| {
            member.listed && member.live().is_some_and(|live| live.mismatch.is_none() && keep(live))
        });
        usable.map(|(index, member)| (Slot(index), member.target.role)).collect()
    }

    /// What a canary through this connection of the slot came to.
    pub(crate) fn canary(&self, slot: Slot, generation: u64, outcome: Result<(), String>) {
        if let State::Connected(live) = &mut self.members.lock()[slot.0].state
            && live.connection.generation == generation
        {
            live.proven = outcome.is_ok();
            live.canary_error = outcome.err();
        }
    }
}

impl Booked {
    pub(crate) fn route(&self) -> Route {
        self.booking.route()
    }

    /// The prompt is computed: the next one need not queue behind it.
    pub(crate) fn computed(&mut self) {
        self.cluster.pairing.lock().computed(&mut self.booking);
    }
}

impl Drop for Booked {
    fn drop(&mut self) {
        self.cluster.pairing.lock().release(&self.booking);
        self.cluster.changed.notify_waiters();
    }
}

fn differs(field: &str, ours: impl std::fmt::Display, theirs: impl std::fmt::Display) -> String {
    format!("{field}: ours is {ours}, theirs is {theirs}")
}

impl Member {
    fn new(target: Target) -> Self {
        let state = State::Away { refused: false, reason: "not connected yet".into() };
        Self { target: Arc::new(target), state, listed: true }
    }

    fn live(&self) -> Option<&Live> {
        match &self.state {
            State::Connected(live) => Some(live),
            State::Away { .. } | State::Gone => None,
        }
    }

    fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }
}

/// The first instance of those whose model most listed instances run, and that model.
fn reference(members: &[Member]) -> Option<(&InstanceId, &Arc<ModelIdentity>)> {
    let listed = members.iter().filter(|member| member.listed);
    let live: Vec<_> = listed.filter_map(|member| Some((&member.target.id, &member.live()?.model))).collect();
    let votes = |model: &Arc<ModelIdentity>| live.iter().filter(|(_, other)| *other == model).count();
    // Of equals, `max_by_key` takes the last: so look from the back.
    live.iter().rev().max_by_key(|(_, model)| votes(model)).copied()
}

fn describe_mismatch(
    ours: &InstanceId,
    reference: &ModelIdentity,
    theirs: &InstanceId,
    model: &ModelIdentity,
) -> Option<String> {
    let fields = reference.mismatches(model);
    let texts = fields.iter().map(|m| format!("{}: {ours} has {}, {theirs} has {}", m.field, m.ours, m.theirs));
    (!fields.is_empty()).then(|| texts.collect::<Vec<_>>().join("; "))
}
