//! Instances of one role that take requests, the least loaded first.

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::Slot;

/// Prompt tokens that wait there, and sequences that decode there.
pub(super) type Busy = (u32, u32);

#[derive(Default)]
pub(super) struct Ready {
    by_load: BTreeSet<(Busy, Slot)>,
    slots: Vec<Slot>,
}

impl Ready {
    /// How busy an instance was before and is now; `None` while it takes no requests.
    pub(super) fn update(&mut self, slot: Slot, before: Option<Busy>, now: Option<Busy>) {
        if before == now {
            return;
        }
        if let Some(before) = before {
            self.by_load.remove(&(before, slot));
        }
        if let Some(now) = now {
            self.by_load.insert((now, slot));
        }
        match (before, now) {
            (None, Some(_)) => self.slots.push(slot),
            (Some(_), None) => self.slots.retain(|other| *other != slot),
            _ => {}
        }
    }

    pub(super) fn all(&self) -> &[Slot] {
        &self.slots
    }

    pub(super) fn least_busy(&self) -> impl Iterator<Item = Slot> {
        self.by_load.iter().map(|(_, slot)| *slot)
    }

    /// One of them, if there is any.
    pub(super) fn random(&self, rng: &mut impl Rng) -> Option<Slot> {
        self.slots.choose(rng).copied()
    }
}
