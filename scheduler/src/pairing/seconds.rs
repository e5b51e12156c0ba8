//! The policy: fewest expected seconds over a short list of pairs.
//!
//! Price of a pair = queue of P + `PREFILL_WEIGHT` x computing what P lacks + exposed hand-over + slow-down of D and of its others.
//! Price of a decode instance alone = the same with its own computation, which also holds up everyone who decodes there.

use rand::Rng;
use rand::seq::SliceRandom;
use tokio::time::Instant;
use types::Role;

use super::price::{assumed_decode_step, assumed_prefill};
use super::{Choice, Facts, Member, Pairing, Route, Slot};
use crate::LocalPrefill;

/// Computing a prompt again takes capacity from the next request too.
const PREFILL_WEIGHT: f64 = 2.0;
/// Assumed until a pair has handed over once: two round trips and the last layer's bytes.
const EXPOSED_SECONDS: f64 = 2e-3;
/// Output tokens that a placement is judged by.
const JUDGED_TOKENS: u32 = 64;
/// Candidates of each kind (best prefix, least loaded, random) that are priced; up to three times as many instances are all priced.
const SHORTLIST: usize = 3;

impl Pairing {
    /// Who should serve. Nothing is booked.
    pub(crate) fn choose(&self, facts: &Facts<'_>, now: Instant, rng: &mut impl Rng) -> Choice {
        let decodes = self.usable(Role::Decode, facts, now);
        if decodes.is_empty() {
            return Choice::Absent(Role::Decode);
        }
        let mut prefills = self.usable(Role::Prefill, facts, now);
        if self.local_prefill == LocalPrefill::Always {
            prefills.clear();
        }
        if prefills.is_empty() && self.has_prefill() && self.local_prefill == LocalPrefill::Never {
            return Choice::Absent(Role::Prefill);
        }
        let (fitting, too_small): (Vec<_>, Vec<_>) =
            decodes.into_iter().partition(|&slot| self.members[slot.0].tokens_max() > facts.tokens);
        if fitting.is_empty() {
            let tokens_max = too_small.iter().map(|slot| self.members[slot.0].tokens_max()).max().unwrap_or(0);
            return Choice::TooLong { tokens_max };
        }
        let roomy = fitting.iter().copied().filter(|slot| self.members[slot.0].has_room(facts)).collect();
        let roomy = self.shortlist(roomy, facts, rng);
        let prefills = self.shortlist(prefills, facts, rng);
        match self.cheapest(&prefills, &roomy, facts, now) {
            Some(route) => Choice::Route(route),
            // Who could be reached has no room now.
            None if roomy.is_empty() || self.cheapest(&prefills, &fitting, facts, now).is_some() => Choice::Wait,
            None => Choice::Absent(Role::Prefill),
        }
    }

    fn usable(&self, role: Role, facts: &Facts<'_>, now: Instant) -> Vec<Slot> {
        let usable = |&(index, member): &(usize, &Member)| {
            member.role == role
                && member.ready
                && !member.load.draining
                && member.breaker.allows(now)
                && !facts.excluded.instances.contains(&Slot(index))
        };
        self.members.iter().enumerate().filter(usable).map(|(index, _)| Slot(index)).collect()
    }

    /// Everyone while that is few; else the best prefix holders, the least loaded and some at random (which find out about new instances).
    fn shortlist(&self, mut slots: Vec<Slot>, facts: &Facts<'_>, rng: &mut impl Rng) -> Vec<Slot> {
        if slots.len() <= 3 * SHORTLIST {
            return slots;
        }
        slots.shuffle(rng);
        let mut listed: Vec<Slot> = slots[..SHORTLIST].to_vec();
        slots.sort_by_key(|slot| std::cmp::Reverse(self.members[slot.0].cached_tokens(facts)));
        listed.extend(&slots[..SHORTLIST]);
        slots.sort_by_key(|slot| (self.members[slot.0].queued_tokens(), self.members[slot.0].rows()));
        listed.extend(&slots[..SHORTLIST]);
        listed.sort();
        listed.dedup();
        listed
    }

    fn cheapest(&self, prefills: &[Slot], decodes: &[Slot], facts: &Facts<'_>, now: Instant) -> Option<Route> {
        let pairs = decodes.iter().flat_map(|&decode| {
            prefills
                .iter()
                .map(move |&prefill| Route::Pair { prefill, decode })
                .filter(|route| self.pair_allowed(*route, facts, now))
        });
        let locals = decodes.iter().map(|&decode| Route::Local { decode });
        let local_allowed = self.local_prefill != LocalPrefill::Never || !self.has_prefill();
        let routes = pairs.chain(locals.filter(|_| local_allowed));
        routes.min_by(|&a, &b| self.seconds(a, facts).total_cmp(&self.seconds(b, facts)))
    }

    fn pair_allowed(&self, route: Route, facts: &Facts<'_>, now: Instant) -> bool {
        let Route::Pair { prefill, decode } = route else { return true };
        !facts.excluded.pairs.contains(&(prefill, decode))
            && (facts.excluded.despite_pair_breakers
                || self.edges.get(&(prefill, decode)).is_none_or(|edge| edge.breaker.allows(now)))
    }

    /// Expected seconds that serving by `route` costs this request and its neighbours.
    pub(super) fn seconds(&self, route: Route, facts: &Facts<'_>) -> f64 {
        let decode = &self.members[route.decode().0];
        match route {
            Route::Pair { prefill: slot, decode: _ } => {
                let prefill = &self.members[slot.0];
                let queue = self.prefill_seconds(prefill, prefill.queued_tokens());
                let compute = self.prefill_seconds(prefill, prefill.uncached(facts));
                let exposed = self.edges.get(&(slot, route.decode())).and_then(|edge| edge.exposed.get());
                queue + PREFILL_WEIGHT * compute + exposed.unwrap_or(EXPOSED_SECONDS) + self.slow_down(decode, facts)
            }
            Route::Local { .. } => {
                let queue = self.prefill_seconds(decode, decode.queued_tokens());
                let compute = self.prefill_seconds(decode, decode.uncached(facts));
                queue + (PREFILL_WEIGHT + f64::from(decode.rows())) * compute + self.slow_down(decode, facts)
            }
        }
    }

    fn prefill_seconds(&self, member: &Member, tokens: u32) -> f64 {
        let prices = || self.members.iter().map(|member| &member.price);
        member.price.prefill(tokens).unwrap_or_else(|| assumed_prefill(prices(), tokens))
    }

    /// Seconds that this request's tokens take on D, and that its rows add to everyone else's.
    fn slow_down(&self, decode: &Member, facts: &Facts<'_>) -> f64 {
        let step = |rows| {
            let prices = || self.members.iter().map(|member| &member.price);
            decode.price.decode_step(rows).unwrap_or_else(|| assumed_decode_step(prices(), rows))
        };
        let rows = decode.rows();
        let (before, after) = (step(rows), step(rows + facts.choices));
        let tokens = f64::from(facts.new_tokens.min(JUDGED_TOKENS));
        tokens * (after + f64::from(rows) * (after - before).max(0.0))
    }
}
