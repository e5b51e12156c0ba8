//! Instances of one role that take requests, the least loaded first.

use std::collections::BTreeSet;

use rand::Rng;

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

    /// Some of them, perhaps one twice.
    pub(super) fn random(&self, count: usize, rng: &mut impl Rng) -> impl Iterator<Item = Slot> {
        let count = if self.slots.is_empty() { 0 } else { count };
        (0..count).map(|_| self.slots[rng.random_range(0..self.slots.len())])
    }
}
