//! How the cluster looks from outside: what `/ready` says of every instance, and whether requests would be served.

use types::Role;

use super::{Cluster, Live, Member, State};
use crate::pairing::{Pairing, Slot};

/// One instance as `/ready` shows it.
#[derive(Debug, serde::Serialize)]
pub(crate) struct InstanceReport {
    pub(crate) instance: String,
    pub(crate) role: &'static str,
    address: String,
    /// `ready`, `connected` (no canary came back yet), `draining`, `not_ready` or `absent`.
    pub(crate) state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The instruction-set level that it computes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<LoadReport>,
}

#[derive(Debug, serde::Serialize)]
struct LoadReport {
    running: u32,
    waiting: u32,
    waiting_tokens: u32,
    blocks_total: u32,
    blocks_free: u32,
    blocks_cached: u32,
    preemptions: u64,
    /// Choices of our requests there, and their prompt tokens not yet computed.
    booked_choices: u32,
    booked_tokens: u32,
    breaker_open: bool,
    late_dropped: u64,
}

impl Cluster {
    /// Whether a request would be served (an instance of each role is proven: one that cannot be must not take the others out of
    /// service), and every instance's state with its reason.
    pub(crate) fn report(&self) -> (bool, Vec<InstanceReport>) {
        let members = self.members.lock();
        let pairing = self.pairing.lock();
        let of = |listed: bool| {
            let members = members.iter().enumerate().filter(move |(_, member)| member.listed == listed);
            members.filter_map(|(index, member)| report(&pairing, Slot(index), member))
        };
        let reports: Vec<InstanceReport> = of(true).chain(of(false)).collect();
        let some = |role: Role| reports.iter().any(|report| report.role == role.as_str() && report.state == "ready");
        let needs_prefill = members.iter().any(|member| member.listed && member.target.role == Role::Prefill);
        (some(Role::Decode) && (!needs_prefill || some(Role::Prefill)), reports)
    }
}

/// `None` when nothing is left of it.
fn report(pairing: &Pairing, slot: Slot, member: &Member) -> Option<InstanceReport> {
    let target = &member.target;
    let unlisted = || "no longer in the rank table; it finishes what it has".to_owned();
    let (state, reason, load) = match &member.state {
        State::Gone => return None,
        State::Away { refused: false, reason } => ("absent", Some(reason.clone()), None),
        State::Away { refused: true, reason } => ("not_ready", Some(reason.clone()), None),
        State::Connected(live) => {
            let (word, reason) = match (&live.mismatch, live.load.draining, live.proven) {
                _ if !member.listed => ("draining", Some(unlisted())),
                (Some(mismatch), _, _) => ("not_ready", Some(mismatch.clone())),
                (None, true, _) => ("draining", None),
                (None, false, true) => ("ready", None),
                (None, false, false) => {
                    let waiting = || "no canary prompt came back yet".to_owned();
                    ("connected", Some(live.canary_error.clone().unwrap_or_else(waiting)))
                }
            };
            (word, reason, Some(load_report(pairing, slot, live)))
        }
    };
    let instructions = member.live().map(|live| live.instructions.clone()).filter(|level| !level.is_empty());
    let (instance, address) = (target.id.to_string(), target.address.to_string());
    Some(InstanceReport { instance, role: target.role.as_str(), address, state, reason, instructions, load })
}

fn load_report(pairing: &Pairing, slot: Slot, live: &Live) -> LoadReport {
    let (booked_choices, booked_tokens) = pairing.booked(slot);
    LoadReport {
        running: live.load.running,
        waiting: live.load.waiting,
        waiting_tokens: live.load.waiting_tokens,
        blocks_total: live.load.blocks_total,
        blocks_free: live.load.blocks_free,
        blocks_cached: live.load.blocks_cached,
        preemptions: live.load.preemptions,
        booked_choices,
        booked_tokens,
        breaker_open: pairing.is_open(slot),
        late_dropped: live.connection.late_dropped(),
    }
}
