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
        slots.sort_by_cached_key(|slot| std::cmp::Reverse(self.members[slot.0].cached_tokens(facts)));
        listed.extend(&slots[..SHORTLIST]);
        slots.sort_by_key(|slot| (self.members[slot.0].queued_tokens(), self.members[slot.0].rows()));
        listed.extend(&slots[..SHORTLIST]);
        listed.sort();
        listed.dedup();
        listed
    }

    fn cheapest(&self, prefills: &[Slot], decodes: &[Slot], facts: &Facts<'_>, now: Instant) -> Option<Route> {
        let local_allowed = self.local_prefill != LocalPrefill::Never || !self.has_prefill();
        let prompts: Vec<f64> = prefills.iter().map(|&prefill| self.prompt_seconds(prefill, facts)).collect();
        let slow_downs: Vec<f64> = decodes.iter().map(|&decode| self.slow_down(decode, facts)).collect();
        let pairs = decodes.iter().zip(&slow_downs).flat_map(|(&decode, slow_down)| {
            let routes = prefills.iter().map(move |&prefill| Route::Pair { prefill, decode }).zip(&prompts);
            routes
                .filter(|(route, _)| self.pair_allowed(*route, facts, now))
                .map(move |(route, prompt)| (route, prompt + self.exposed_seconds(route) + slow_down))
        });
        let locals = decodes
            .iter()
            .zip(&slow_downs)
            .filter(|_| local_allowed)
            .map(|(&decode, slow_down)| (Route::Local { decode }, self.local_seconds(decode, facts) + slow_down));
        let routes = pairs.chain(locals);
        routes.min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(route, _)| route)
    }

    fn pair_allowed(&self, route: Route, facts: &Facts<'_>, now: Instant) -> bool {
        let Route::Pair { prefill, decode } = route else { return true };
        !facts.excluded.pairs.contains(&(prefill, decode))
            && (facts.excluded.despite_pair_breakers
                || self.edges.get(&(prefill, decode)).is_none_or(|edge| edge.breaker.allows(now)))
    }

    /// Seconds until P has computed the prompt, what it lacks counted as often as it weighs.
    fn prompt_seconds(&self, prefill: Slot, facts: &Facts<'_>) -> f64 {
        let prefill = &self.members[prefill.0];
        let compute = self.prefill_seconds(prefill, prefill.uncached(facts));
        self.prefill_seconds(prefill, prefill.queued_tokens()) + PREFILL_WEIGHT * compute
    }

    /// The same where D computes it, which also holds up everyone who decodes there.
    fn local_seconds(&self, decode: Slot, facts: &Facts<'_>) -> f64 {
        let decode = &self.members[decode.0];
        let compute = self.prefill_seconds(decode, decode.uncached(facts));
        self.prefill_seconds(decode, decode.queued_tokens()) + (PREFILL_WEIGHT + f64::from(decode.rows())) * compute
    }

    fn exposed_seconds(&self, route: Route) -> f64 {
        let Route::Pair { prefill, decode } = route else { return 0.0 };
        self.edges.get(&(prefill, decode)).and_then(|edge| edge.exposed.get()).unwrap_or(EXPOSED_SECONDS)
    }

    fn prefill_seconds(&self, member: &Member, tokens: u32) -> f64 {
        let prices = || self.members.iter().map(|member| &member.price);
        member.price.prefill(tokens).unwrap_or_else(|| assumed_prefill(prices(), tokens))
    }

    /// Seconds that this request's tokens take on D, and that its rows add to everyone else's.
    fn slow_down(&self, decode: Slot, facts: &Facts<'_>) -> f64 {
        let decode = &self.members[decode.0];
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
