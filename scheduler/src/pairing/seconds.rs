//! The policy: fewest expected seconds over a short list of pairs.
//! The list is made without looking at every instance, so that a choice among thousands takes hardly longer than among a few.
//!
//! Price of a pair = queue of P + `PREFILL_WEIGHT` x computing what P lacks + exposed hand-over + slow-down of D and of its others.
//! Price of a decode instance alone = the same with its own computation, which also holds up everyone who decodes there.

use rand::Rng;
use smallvec::SmallVec;
use tokio::time::Instant;
use types::Role;

use super::prefix::Known;
use super::{Choice, Facts, Pairing, Route, Slot, side};
use crate::LocalPrefill;

/// Computing a prompt again takes capacity from the next request too.
const PREFILL_WEIGHT: f64 = 2.0;
/// Output tokens that a placement is judged by.
const JUDGED_TOKENS: u32 = 64;
/// Candidates of each kind (most of the prompt cached, least busy) that are priced, and one at random; up to four times as many instances
/// are all priced.
const SHORTLIST: usize = 2;
/// A pair that could be cheaper by this at most is not looked at: it is less than a choice takes.
const NEGLIGIBLE_SECONDS: f64 = 1e-6;

/// As many as a short list has, mostly.
type Few<T> = SmallVec<[T; 8]>;

/// An instance that may be chosen.
#[derive(Clone, Copy)]
struct Candidate {
    slot: Slot,
    /// Tokens of the prompt that it would have to compute.
    uncached: u32,
}

impl Pairing {
    /// Who should serve. Nothing is booked.
    pub fn choose(&self, facts: &Facts<'_>, now: Instant, rng: &mut impl Rng) -> Choice {
        let known = self.prefixes.known(Role::Decode, facts.chain, None);
        let decodes = self.shortlist(Role::Decode, &known, facts, now, rng);
        // Who computed a prompt sent it to a decode instance.
        let known = self.prefixes.known(Role::Prefill, facts.chain, Some(known.deepest()));
        let prefills = self.shortlist(Role::Prefill, &known, facts, now, rng);
        // With nobody to choose from, the reason is to be found out.
        self.cheapest(&prefills, &decodes, facts, now).map_or_else(|| self.choose_among_all(facts, now), Choice::Route)
    }

    /// The same, with every instance and pair looked at: what [`Pairing::choose`] is judged by, and who says why there is no route.
    pub fn choose_among_all(&self, facts: &Facts<'_>, now: Instant) -> Choice {
        let usable = |role| -> Few<Slot> {
            self.ready[side(role)]
                .all()
                .iter()
                .copied()
                .filter(|slot| self.is_usable(*slot, role, facts, now))
                .collect()
        };
        let (decodes, prefills) = (usable(Role::Decode), usable(Role::Prefill));
        if decodes.is_empty() {
            return Choice::Absent(Role::Decode);
        }
        if prefills.is_empty() && !self.may_be_local() {
            return Choice::Absent(Role::Prefill);
        }
        let sizes = || decodes.iter().map(|slot| self.members[slot.0].tokens_max());
        let fitting: Few<_> = decodes.iter().copied().filter(|slot| self.members[slot.0].fits(facts)).collect();
        if fitting.is_empty() {
            return Choice::TooLong { tokens_max: sizes().max().unwrap_or(0) };
        }
        let roomy = fitting.iter().copied().filter(|slot| self.members[slot.0].has_room(facts)).collect();
        let candidates = |role, slots| self.candidates(slots, &self.prefixes.known(role, facts.chain, None), facts);
        let (prefills, roomy) = (candidates(Role::Prefill, prefills), candidates(Role::Decode, roomy));
        let fitting = || candidates(Role::Decode, fitting);
        match self.cheapest(&prefills, &roomy, facts, now) {
            Some(route) => Choice::Route(route),
            // Who could be reached has no room now.
            None if roomy.is_empty() || self.cheapest(&prefills, &fitting(), facts, now).is_some() => Choice::Wait,
            None => Choice::Absent(Role::Prefill),
        }
    }

    fn may_be_local(&self) -> bool {
        self.local_prefill != LocalPrefill::Never || !self.has_prefill()
    }

    /// Whether one of those that take requests may get this one.
    fn is_usable(&self, slot: Slot, role: Role, facts: &Facts<'_>, now: Instant) -> bool {
        (role == Role::Decode || self.local_prefill != LocalPrefill::Always)
            && self.members[slot.0].breaker.allows(now)
            && !facts.excluded.instances.contains(&slot)
    }

    /// Everyone while that is few; else those with most of the prompt, the least busy, and one at random (which finds out about new
    /// instances). Empty only if no instance of the role can take the request now.
    fn shortlist(
        &self,
        role: Role,
        known: &Known<'_>,
        facts: &Facts<'_>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Few<Candidate> {
        let ready = &self.ready[side(role)];
        let takes = |slot: &Slot| {
            let member = &self.members[slot.0];
            let roomy = || role == Role::Prefill || member.fits(facts) && member.has_room(facts);
            member.busy().is_some() && self.is_usable(*slot, role, facts, now) && roomy()
        };
        if ready.all().len() <= 4 * SHORTLIST {
            return self.candidates(ready.all().iter().copied().filter(takes).collect(), known, facts);
        }
        let mut slots = known.best(SHORTLIST, |slot| takes(&slot), rng);
        slots.extend(ready.least_busy().filter(takes).take(SHORTLIST));
        slots.extend(ready.random(rng).filter(takes));
        self.candidates(slots, known, facts)
    }

    /// In the order of their slots, each once, so that equal prices go to the first.
    fn candidates(&self, mut slots: Few<Slot>, known: &Known<'_>, facts: &Facts<'_>) -> Few<Candidate> {
        slots.sort_unstable();
        slots.dedup();
        slots.into_iter().map(|slot| Candidate { slot, uncached: facts.uncached(known.matched(slot)) }).collect()
    }

    fn cheapest(
        &self,
        prefills: &[Candidate],
        decodes: &[Candidate],
        facts: &Facts<'_>,
        now: Instant,
    ) -> Option<Route> {
        let local_allowed = self.may_be_local();
        let prompts: Few<_> = prefills.iter().map(|prefill| (prefill.slot, self.prompt_seconds(*prefill))).collect();
        let soonest = prompts.iter().map(|(_, prompt)| *prompt).fold(f64::INFINITY, f64::min);
        let (mut best, mut least) = (None, f64::INFINITY);
        // Whether a pair may be cheaper by more than is worth looking at it.
        let promises =
            |prompt, slow_down, least| prompt + self.edges.least_exposed() + slow_down + NEGLIGIBLE_SECONDS < least;
        for &decode in decodes {
            let slow_down = self.slow_down(decode.slot, facts);
            let prompts = if promises(soonest, slow_down, least) { &prompts[..] } else { &[] };
            for &(prefill, prompt) in prompts {
                let pair = (prefill, decode.slot);
                if promises(prompt, slow_down, least)
                    && let Some(exposed) = self.exposed_seconds(pair, facts, now)
                    && prompt + exposed + slow_down < least
                {
                    (best, least) = (Some(Route::Pair { prefill, decode: decode.slot }), prompt + exposed + slow_down);
                }
            }
            let local = if local_allowed { self.local_seconds(decode) + slow_down } else { f64::INFINITY };
            if local < least {
                (best, least) = (Some(Route::Local { decode: decode.slot }), local);
            }
        }
        best
    }

    /// `None` if the two must not be used together.
    fn exposed_seconds(&self, pair: (Slot, Slot), facts: &Facts<'_>, now: Instant) -> Option<f64> {
        if facts.excluded.pairs.contains(&pair) {
            return None;
        }
        self.edges.exposed(pair, !facts.excluded.despite_pair_breakers, now)
    }

    /// Seconds until P has computed the prompt, what it lacks counted as often as it weighs.
    fn prompt_seconds(&self, prefill: Candidate) -> f64 {
        let Candidate { slot, uncached } = prefill;
        self.queue_seconds(slot) + PREFILL_WEIGHT * self.members[slot.0].price.prefill(uncached, &self.typical)
    }

    /// The same where D computes it, which also holds up everyone who decodes there.
    fn local_seconds(&self, decode: Candidate) -> f64 {
        let member = &self.members[decode.slot.0];
        let compute = member.price.prefill(decode.uncached, &self.typical);
        self.queue_seconds(decode.slot) + (PREFILL_WEIGHT + f64::from(member.rows())) * compute
    }

    fn queue_seconds(&self, slot: Slot) -> f64 {
        let member = &self.members[slot.0];
        member.price.prefill(member.queued_tokens(), &self.typical)
    }

    /// Seconds that this request's tokens take on D, and that its rows add to everyone else's.
    fn slow_down(&self, decode: Slot, facts: &Facts<'_>) -> f64 {
        let decode = &self.members[decode.0];
        let step = |rows| decode.price.decode_step(rows, &self.typical);
        let rows = decode.rows();
        let (before, after) = (step(rows), step(rows + facts.choices));
        let tokens = f64::from(facts.new_tokens.min(JUDGED_TOKENS));
        tokens * (after + f64::from(rows) * (after - before).max(0.0))
    }
}
