//! Who is chosen, as data: a cluster in one line each, a request, and the expected route.

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::edges::PAIR_FAILURES;
use super::*;

const BLOCKS: u32 = 100;

/// A ready cluster of `prefill` and `decode` instances with blocks of 16 tokens and known prices.
fn pairing(prefill: usize, decode: usize, local: LocalPrefill) -> Pairing {
    let roles = std::iter::repeat_n(Role::Prefill, prefill).chain(std::iter::repeat_n(Role::Decode, decode));
    let mut pairing = Pairing::new(roles, local);
    let limits = Limits { block_size: 16, blocks_total: BLOCKS, ..Limits::default() };
    for slot in (0..prefill + decode).map(Slot) {
        pairing.joined(slot, &limits);
        pairing.set_ready(slot, true);
        let steps = [
            Step { prefill_tokens: 1000, decode_rows: 0, seconds: 1.0 },
            Step { prefill_tokens: 0, decode_rows: 1, seconds: 0.010 },
            Step { prefill_tokens: 0, decode_rows: 11, seconds: 0.020 },
        ];
        pairing.loaded(slot, idle(), steps);
    }
    pairing
}

fn idle() -> Load {
    Load { blocks_available: BLOCKS, blocks_total: BLOCKS, ..Load::default() }
}

fn chain(of: u8, blocks: u8) -> Vec<BlockHash> {
    (0..blocks).map(|block| BlockHash([of, block, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])).collect()
}

struct Ask {
    tokens: u32,
    chain: Vec<BlockHash>,
    excluded: Excluded,
}

impl Ask {
    fn new(tokens: u32) -> Self {
        Self { tokens, chain: chain(1, (tokens as usize / PREFIX_BLOCK).min(255) as u8), excluded: Excluded::default() }
    }

    fn facts(&self) -> Facts<'_> {
        Facts { tokens: self.tokens, chain: &self.chain, choices: 1, new_tokens: 32, excluded: &self.excluded }
    }
}

fn choose(pairing: &Pairing, ask: &Ask, now: Instant) -> Choice {
    pairing.choose(&ask.facts(), now, &mut StdRng::seed_from_u64(7))
}

fn pair(prefill: usize, decode: usize) -> Choice {
    Choice::Route(Route::Pair { prefill: Slot(prefill), decode: Slot(decode) })
}

fn local(decode: usize) -> Choice {
    Choice::Route(Route::Local { decode: Slot(decode) })
}

/// 2 prefill (0, 1) and 2 decode (2, 3), changed by `change`, asked for `tokens`.
fn check(tokens: u32, change: impl FnOnce(&mut Pairing, &mut Ask), expected: Choice) {
    let (mut pairing, mut ask) = (pairing(2, 2, LocalPrefill::Never), Ask::new(tokens));
    change(&mut pairing, &mut ask);
    assert_eq!(choose(&pairing, &ask, Instant::now()), expected);
}

/// The free one cannot be reached, the one that can be is full: that is no reason to refuse anybody.
#[test]
fn a_full_instance_is_waited_for_while_the_only_free_one_cannot_be_reached() {
    let (mut pairing, now) = (pairing(1, 2, LocalPrefill::Never), Instant::now());
    (0..PAIR_FAILURES).for_each(|_| pairing.failed_pair(Slot(0), Slot(1), now));
    let ask = Ask::new(160);
    let _booked = pairing.book(Route::Pair { prefill: Slot(0), decode: Slot(2) }, &ask.facts(), now);
    assert_eq!(choose(&pairing, &ask, now), pair(0, 2));
    pairing.loaded(Slot(2), Load { running: 1, blocks_available: 0, ..idle() }, []);
    assert_eq!(choose(&pairing, &ask, now), Choice::Wait);
}

#[test]
fn queues_and_load_decide() {
    check(100, |_, _| {}, pair(0, 2));
    check(100, |p, _| p.loaded(Slot(0), Load { waiting_tokens: 500, ..idle() }, []), pair(1, 2));
    check(100, |p, _| p.loaded(Slot(2), Load { running: 20, ..idle() }, []), pair(0, 3));
    check(100, |p, _| p.loaded(Slot(0), Load { draining: true, ..idle() }, []), pair(1, 2));
    check(100, |p, _| p.set_ready(Slot(2), false), pair(0, 3));
    let slower = Step { prefill_tokens: 1000, decode_rows: 0, seconds: 9.0 };
    check(100, |p, _| p.loaded(Slot(0), idle(), [slower; 50]), pair(1, 2));
}

#[test]
fn a_cached_prefix_is_worth_a_short_queue_only() {
    let cached_on_1 = |p: &mut Pairing, ask: &Ask| p.prefixes.insert(Slot(1), &ask.chain);
    check(800, |p, ask| cached_on_1(p, ask), pair(1, 2));
    let queue = |tokens| Load { waiting_tokens: tokens, ..idle() };
    check(
        800,
        |p, ask| {
            cached_on_1(p, ask);
            p.loaded(Slot(1), queue(400), []);
        },
        pair(1, 2),
    );
    check(
        800,
        |p, ask| {
            cached_on_1(p, ask);
            p.loaded(Slot(1), queue(4000), []);
        },
        pair(0, 2),
    );
}

#[test]
fn a_burst_spreads_before_any_heartbeat() {
    let (mut pairing, now) = (pairing(2, 2, LocalPrefill::Never), Instant::now());
    let mut routes = Vec::new();
    for number in 0..4 {
        let ask = Ask { chain: chain(number, 10), ..Ask::new(160) };
        let Choice::Route(route) = choose(&pairing, &ask, now) else { panic!("no route") };
        pairing.book(route, &ask.facts(), now);
        routes.push((route.prefill().unwrap().0, route.decode().0));
    }
    assert_eq!(routes, [(0, 2), (1, 3), (0, 2), (1, 3)]);
}

#[test]
fn what_was_tried_is_not_tried_again() {
    let excluding = |slots: &[usize]| {
        let slots: Vec<Slot> = slots.iter().copied().map(Slot).collect();
        move |_: &mut Pairing, ask: &mut Ask| ask.excluded.instances.extend(slots)
    };
    check(100, excluding(&[0]), pair(1, 2));
    check(100, excluding(&[0, 2]), pair(1, 3));
    check(100, excluding(&[2, 3]), Choice::Absent(Role::Decode));
    check(100, excluding(&[0, 1]), Choice::Absent(Role::Prefill));
    check(100, |_, ask| ask.excluded.pairs.extend([(Slot(0), Slot(2))]), pair(1, 2));
}

#[test]
fn an_open_pair_is_avoided_but_for_those_who_have_nothing_else() {
    let (mut pairing, mut ask, now) = (pairing(1, 1, LocalPrefill::Never), Ask::new(100), Instant::now());
    (0..2).for_each(|_| pairing.failed_pair(Slot(0), Slot(1), now));
    assert_eq!(choose(&pairing, &ask, now), Choice::Absent(Role::Prefill));
    ask.excluded.despite_pair_breakers = true;
    assert_eq!(choose(&pairing, &ask, now), pair(0, 1));
}

#[test]
fn failures_open_a_breaker_and_time_closes_it() {
    let (mut pairing, ask, now) = (pairing(2, 2, LocalPrefill::Never), Ask::new(100), Instant::now());
    for _ in 0..4 {
        pairing.failed(Slot(2), now);
    }
    assert_eq!(choose(&pairing, &ask, now), pair(0, 2), "four failures");
    pairing.failed(Slot(2), now);
    assert_eq!(choose(&pairing, &ask, now), pair(0, 3), "five failures");
    let later = now + std::time::Duration::from_secs(2);
    assert_eq!(choose(&pairing, &ask, later), pair(0, 2), "probe");
    pairing.book(Route::Pair { prefill: Slot(0), decode: Slot(2) }, &ask.facts(), later);
    let Choice::Route(route) = choose(&pairing, &ask, later) else { panic!("no route") };
    assert_eq!(route.decode(), Slot(3), "one probe at a time");
    pairing.succeeded(Route::Pair { prefill: Slot(0), decode: Slot(2) });
    assert!(!pairing.is_open(Slot(2)));
}

#[test]
fn a_pair_that_cannot_hand_over_is_avoided() {
    let (mut pairing, ask, now) = (pairing(2, 2, LocalPrefill::Never), Ask::new(100), Instant::now());
    for _ in 0..2 {
        pairing.failed_pair(Slot(0), Slot(2), now);
    }
    assert_ne!(choose(&pairing, &ask, now), pair(0, 2));
    assert!(!pairing.is_open(Slot(0)) && !pairing.is_open(Slot(2)), "each is fine with others");
}

#[test]
fn room_decides_who_waits() {
    // A working decode instance with `available` blocks left.
    let filled = |available: u32| {
        move |p: &mut Pairing, _: &mut Ask| {
            for slot in [Slot(2), Slot(3)] {
                let other = Ask::new(16);
                p.book(Route::Local { decode: slot }, &other.facts(), Instant::now());
                p.loaded(slot, Load { blocks_available: available, ..idle() }, []);
            }
        }
    };
    check(160, filled(12), pair(0, 2));
    check(160, filled(11), Choice::Wait);
    check(16 * BLOCKS, |_, _| {}, Choice::TooLong { tokens_max: 16 * BLOCKS });
    check(16 * BLOCKS - 1, |_, _| {}, pair(0, 2));
}

#[test]
fn computing_on_decode_is_a_price() {
    let check = |local_prefill, tokens, running, prefill_ready, expected| {
        let mut pairing = pairing(1, 1, local_prefill);
        pairing.set_ready(Slot(0), prefill_ready);
        pairing.loaded(Slot(1), Load { running, ..idle() }, []);
        assert_eq!(
            choose(&pairing, &Ask::new(tokens), Instant::now()),
            expected,
            "{local_prefill:?} {tokens} {running}"
        );
    };
    check(LocalPrefill::Auto, 100, 0, true, local(1));
    check(LocalPrefill::Auto, 100, 8, true, pair(0, 1));
    check(LocalPrefill::Auto, 100, 8, false, local(1));
    check(LocalPrefill::Never, 100, 0, true, pair(0, 1));
    check(LocalPrefill::Never, 100, 0, false, Choice::Absent(Role::Prefill));
    check(LocalPrefill::Always, 100, 8, true, local(1));
    let alone = pairing(0, 1, LocalPrefill::Never);
    assert_eq!(choose(&alone, &Ask::new(100), Instant::now()), local(0), "no prefill instance in the table");
}

#[test]
fn a_new_process_is_unknown() {
    let (mut pairing, ask, now) = (pairing(1, 1, LocalPrefill::Never), Ask::new(640), Instant::now());
    let booking = pairing.book(Route::Pair { prefill: Slot(0), decode: Slot(1) }, &ask.facts(), now);
    let uncached = |pairing: &Pairing| ask.facts().uncached(pairing.prefixes.matched(Slot(0), &ask.chain));
    assert_eq!(uncached(&pairing), 1, "the last token");
    pairing.joined(Slot(0), &Limits::default());
    assert_eq!(uncached(&pairing), 640);
    pairing.release(&booking);
    assert_eq!(pairing.booked(Slot(0)), (0, 0));
}

proptest! {
    /// Whatever happens, a route names a ready prefill and a ready decode instance that were not excluded, and bookings balance.
    #[test]
    fn routes_are_always_usable(
        prefill in 0usize..12,
        decode in 0usize..12,
        seed in any::<u64>(),
        events in prop::collection::vec((0usize..24, 0u32..6, 1u32..3000), 0..60),
        excluded in prop::collection::hash_set(0usize..24, 0..6),
    ) {
        let (mut pairing, now) = (pairing(prefill, decode, LocalPrefill::Auto), Instant::now());
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bookings = Vec::new();
        for (slot, event, number) in events {
            let (slot, ask) = (Slot(slot), Ask::new(number));
            match event {
                0 => pairing.set_ready(slot, number % 2 == 0),
                1 => pairing.failed(slot, now),
                2 => pairing.loaded(slot, Load { running: number, blocks_available: number % 100, ..idle() }, []),
                3 => drop(bookings.pop().map(|booking| pairing.release(&booking))),
                _ => if let Choice::Route(route) = pairing.choose(&ask.facts(), now, &mut rng) {
                    bookings.push(pairing.book(route, &ask.facts(), now));
                },
            }
        }
        let mut ask = Ask::new(100);
        ask.excluded.instances = excluded.into_iter().map(Slot).collect();
        if let Choice::Route(route) = pairing.choose(&ask.facts(), now, &mut rng) {
            let sides = [(Some(route.decode()), Role::Decode), (route.prefill(), Role::Prefill)];
            for (slot, role) in sides.into_iter().filter_map(|(slot, role)| Some((slot?, role))) {
                prop_assert_eq!(pairing.members[slot.0].role, role);
                prop_assert!(pairing.members[slot.0].ready);
                prop_assert!(!ask.excluded.instances.contains(&slot));
            }
        }
        // The short list misses nobody who could serve, and the order by load is that of the instances.
        let among_all = pairing.choose_among_all(&ask.facts(), now);
        let chosen = pairing.choose(&ask.facts(), now, &mut rng);
        prop_assert_eq!(matches!(chosen, Choice::Route(_)), matches!(among_all, Choice::Route(_)), "{:?} {:?}", chosen, among_all);
        bookings.iter().for_each(|booking| pairing.release(booking));
        for role in [Role::Prefill, Role::Decode] {
            let members = pairing.members.iter().enumerate().filter(|(_, member)| member.role == role);
            let mut expected: Vec<_> = members.filter_map(|(slot, member)| Some((member.busy()?, Slot(slot)))).collect();
            expected.sort();
            let ready = &pairing.ready[side(role)];
            prop_assert!(ready.least_busy().eq(expected.iter().map(|(_, slot)| *slot)));
            prop_assert_eq!(ready.all().len(), expected.len());
        }
        for slot in (0..prefill + decode).map(Slot) {
            prop_assert_eq!(pairing.booked(slot), (0, 0));
            prop_assert_eq!(pairing.members[slot.0].booked, Share::default());
        }
    }
}
