//! What a changed rank table does to the cluster: who stays, who is new, who finishes what it has and is let go.

use std::sync::Arc;

use tracing::info;

use super::{Cluster, Member, State};
use crate::link::Connection;
use crate::pairing::{Pairing, Slot};
use crate::table::{Table, Target};

impl Cluster {
    /// Takes over a table that was read again. Whoever has the role and address of before stays as it is. Returns the slots of new
    /// instances, for them to be connected to.
    pub(crate) fn list(&self, table: &Table) -> Vec<Slot> {
        if std::mem::replace(&mut *self.table_hash.lock(), table.hash.clone()) == table.hash {
            return Vec::new();
        }
        let mut added = Vec::new();
        self.change(|members, pairing| {
            for (index, member) in members.iter_mut().enumerate().filter(|(_, member)| member.listed) {
                if !table.instances.iter().any(|target| same(target, &member.target)) {
                    self.unlist(Slot(index), member, pairing);
                }
            }
            for target in &table.instances {
                let known = members
                    .iter_mut()
                    .enumerate()
                    .find(|(_, member)| !member.is_gone() && same(target, &member.target));
                match known {
                    Some((index, member)) => self.keep_listed(Slot(index), member, target, pairing),
                    None => added.push(add(members, target, pairing)),
                }
            }
        });
        info!(hash = table.hash, instances = table.instances.len(), new = added.len(), "rank table changed");
        added
    }

    fn unlist(&self, slot: Slot, member: &mut Member, pairing: &mut Pairing) {
        let target = &member.target;
        info!(instance = %target.id, address = %target.address, "no longer in the rank table: it finishes what it has");
        member.listed = false;
        pairing.set_listed(slot, false);
        self.metrics.worker_down(&target.id, target.role);
    }

    /// Its line may have moved up or down, and its name with it.
    fn keep_listed(&self, slot: Slot, member: &mut Member, target: &Target, pairing: &mut Pairing) {
        if member.target.id != target.id {
            info!(before = %member.target.id, now = %target.id, address = %target.address, "instance has another name");
            self.metrics.worker_down(&member.target.id, target.role);
            member.target = Arc::new(target.clone());
        }
        member.listed = true;
        pairing.set_listed(slot, true);
    }

    /// Whether a connection of an instance that is no longer listed has nothing left to do.
    pub(crate) fn is_done(&self, connection: &Connection) -> bool {
        let listed = self.members.lock().get(connection.slot.0).is_some_and(|member| member.listed);
        !listed && connection.is_idle() && self.pairing.lock().is_free(connection.slot)
    }

    /// Whether nobody need connect to it any more. From then on its slot may be another's.
    pub(crate) fn let_go(&self, slot: Slot) -> bool {
        let mut members = self.members.lock();
        let Some(member) = members.get_mut(slot.0).filter(|member| !member.listed) else { return false };
        member.state = State::Gone;
        true
    }
}

/// A worker process is where it listens.
fn same(a: &Target, b: &Target) -> bool {
    (a.role, a.address) == (b.role, b.address)
}

fn add(members: &mut Vec<Member>, target: &Target, pairing: &mut Pairing) -> Slot {
    info!(instance = %target.id, address = %target.address, "new in the rank table");
    let free = |(index, member): (usize, &Member)| (member.is_gone() && pairing.is_free(Slot(index))).then_some(index);
    let index = members.iter().enumerate().find_map(free).unwrap_or(members.len());
    let member = Member::new(target.clone());
    match members.get_mut(index) {
        Some(gone) => *gone = member,
        None => members.push(member),
    }
    pairing.list(Slot(index), target.role);
    Slot(index)
}
