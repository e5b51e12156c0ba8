//! What happens in a run, drawn from its seed: the cluster, the requests, and which fault comes when.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use transfer::TransportKind;
use types::TokenId;
use worker::fake::{MAX_MODEL_LEN, Pace, Size, VOCAB};

use crate::ask::{Ask, Leave};
use crate::control::Mischief;
use crate::model::{Form, Model};
use crate::tamper::Damage;

/// Faults begin after this and have all ended by `CALM`.
const FIRST_FAULT: Duration = Duration::from_millis(300);
const CALM: Duration = Duration::from_secs(9);
/// From the end of the faults to the requests that must succeed: connections are made again, stalls noticed, pairs proven anew.
const SETTLE: Duration = Duration::from_secs(9);
const CALM_ASKS: usize = 3;

/// A run before it begins.
#[derive(Debug)]
pub struct Plan {
    pub seed: u64,
    pub(crate) prefills: usize,
    pub(crate) decodes: usize,
    pub(crate) size: Size,
    pub(crate) transports: Vec<TransportKind>,
    pub(crate) pace: Pace,
    pub(crate) local_prefill: bool,
    /// The network delivers this often.
    pub(crate) tick: Duration,
    /// Longest way through the network.
    pub(crate) delay: Duration,
    pub(crate) asks: Vec<Ask>,
    /// In order of time.
    pub(crate) faults: Vec<(Duration, Fault)>,
    pub(crate) damage: Damage,
    pub(crate) mischief: Mischief,
    pub(crate) sabotage: Option<Sabotage>,
}

/// Something wrong that no correct cluster does, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A block is held for a request and never given back.
    Leak,
    /// Pieces of answers come twice.
    Double,
    /// From the end of the faults on no client hears anything.
    Silence,
}

/// A place in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Scheduler,
    Clients,
    Prefill(usize),
    Decode(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is gone; its kernel says so.
    Kill(Place),
    /// The machine is gone; nobody says so.
    PowerOff(Place),
    Start(Place),
    /// As SIGSTOP.
    Freeze(Place),
    Wake(Place),
    /// Nothing goes from the first to the second.
    Block(Place, Place),
    Unblock(Place, Place),
    /// Every connection between them is reset.
    Cut(Place, Place),
    Slow(Place, Place),
    Unslow(Place, Place),
    /// As SIGTERM: it leaves gently.
    Drain(Place),
}

impl Place {
    pub(crate) fn address(self) -> IpAddr {
        let ip = |net, host: usize| Ipv4Addr::new(10, 0, net, host as u8 + 1);
        IpAddr::V4(match self {
            Place::Scheduler => ip(0, 0),
            Place::Clients => ip(0, 1),
            Place::Prefill(index) => ip(1, index),
            Place::Decode(index) => ip(2, index),
        })
    }
}

impl Fault {
    /// Whom it disturbs. The scheduler is well when it only cannot reach somebody.
    fn places(self) -> Vec<Place> {
        match self {
            Fault::Kill(place)
            | Fault::PowerOff(place)
            | Fault::Start(place)
            | Fault::Freeze(place)
            | Fault::Wake(place)
            | Fault::Drain(place) => vec![place],
            Fault::Block(one, other)
            | Fault::Unblock(one, other)
            | Fault::Cut(one, other)
            | Fault::Slow(one, other)
            | Fault::Unslow(one, other) => {
                [one, other].into_iter().filter(|place| *place != Place::Scheduler).collect()
            }
        }
    }
}

impl Plan {
    /// The plan of a seed. The model is needed to choose stop strings that occur.
    pub fn new(seed: u64, model: &Model) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let random = &mut random;
        let transports =
            [&[TransportKind::Tcp][..], &[TransportKind::Grpc], &[TransportKind::Tcp, TransportKind::Grpc]];
        let transports = pick(random, &transports).to_vec();
        let tcp = transports == [TransportKind::Tcp];
        let mut plan = Self {
            seed,
            prefills: random.random_range(1..=2),
            decodes: random.random_range(1..=3),
            size: Size {
                // From a tight squeeze to plenty.
                blocks: *pick(random, &[16, 24, 48, 96]),
                block_size: *pick(random, &[4, 8, 16]),
                max_num_seqs: *pick(random, &[4, 16]),
                max_num_batched_tokens: *pick(random, &[16, 64]),
            },
            transports,
            pace: Pace { micros_per_step: *pick(random, &[1000, 5000, 20000]), micros_per_token: 100 },
            local_prefill: random.random_bool(0.3),
            tick: Duration::from_millis(*pick(random, &[2, 5])),
            delay: Duration::from_millis(*pick(random, &[2, 20, 100])),
            asks: Vec::new(),
            faults: Vec::new(),
            damage: Damage::default(),
            mischief: Mischief::default(),
            sabotage: None,
        };
        // A prompt with its answer must fit.
        let blocks_needed = MAX_MODEL_LEN.div_ceil(plan.size.block_size) + 4;
        plan.size.blocks = plan.size.blocks.max(blocks_needed);
        if tcp && random.random_bool(0.5) {
            plan.damage = Damage::draw(random);
        }
        if random.random_bool(0.7) {
            plan.mischief = Mischief::draw(random, tcp);
        }
        if plan.mischief.cancels_lost > 0 {
            // What is lost shows where hand-overs take long beside the way that messages take.
            plan.size.max_num_batched_tokens = 16;
            (plan.pace.micros_per_step, plan.delay) = (20_000, Duration::from_millis(2));
        }
        plan.draw_asks(random, model);
        plan.draw_faults(random);
        plan
    }

    pub(crate) fn places(&self) -> Vec<Place> {
        let prefills = (0..self.prefills).map(Place::Prefill);
        [Place::Clients, Place::Scheduler]
            .into_iter()
            .chain(prefills)
            .chain((0..self.decodes).map(Place::Decode))
            .collect()
    }

    pub(crate) fn workers(&self) -> Vec<Place> {
        self.places().split_off(2)
    }

    /// From when on there are no faults.
    pub(crate) fn calm_at(&self) -> Duration {
        CALM
    }

    /// The same run with something wrong in it, for tests of the checks themselves.
    pub fn sabotaged(self, sabotage: Sabotage) -> Self {
        Self { sabotage: Some(sabotage), ..self }
    }

    /// Whether no request may be refused: the scheduler and one instance of each role are well all the time.
    pub(crate) fn is_mild(&self) -> bool {
        let touched: Vec<Place> =
            self.faults.iter().filter(|(at, _)| *at < CALM).flat_map(|(_, fault)| fault.places()).collect();
        let well = |place: &Place| !touched.contains(place);
        let prefills = (0..self.prefills).map(Place::Prefill).any(|place| well(&place));
        let decodes = (0..self.decodes).map(Place::Decode).any(|place| well(&place));
        prefills && decodes && well(&Place::Scheduler) && !self.damage.any() && self.mischief.cancels_lost == 0
    }

    fn draw_asks(&mut self, random: &mut StdRng, model: &Model) {
        let count = random.random_range(6..=24);
        // Where cancels get lost there must be some.
        let leaving = if self.mischief.cancels_lost > 0 { 0.4 } else { 0.15 };
        let families: Vec<Vec<TokenId>> =
            (0..3).map(|_| (0..60).map(|_| random.random_range(1..VOCAB)).collect()).collect();
        for number in 0..count + CALM_ASKS {
            let calm = number >= count;
            let prompt_len = random.random_range(1..=60);
            let prompt = pick(random, &families)[..prompt_len].to_vec();
            let (message, prompt) = said(prompt, random.random_bool(0.3), model);
            let mut ask = Ask {
                at: match calm {
                    false => Duration::from_millis(random.random_range(1..8000)),
                    true => CALM + SETTLE + Duration::from_millis(200 * number as u64),
                },
                prompt,
                message,
                presence_penalty: if random.random_bool(0.3) { 0.5 } else { 0.0 },
                logprobs: random.random_bool(0.3),
                choices: if random.random_bool(0.2) { random.random_range(2..=3) } else { 1 },
                max_tokens: random.random_range(1..=MAX_MODEL_LEN - 61),
                seed: random.random::<u32>().into(),
                stop: None,
                form: random.random_bool(0.3).then(|| *pick(random, &Form::ALL)),
                stream: random.random_bool(0.8),
                leaves: (!calm && random.random_bool(leaving)).then(|| leave(random)),
                calm,
            };
            if random.random_bool(0.3) {
                ask.stop = stop_string(random, &ask, model);
            }
            self.asks.push(ask);
        }
    }

    fn draw_faults(&mut self, random: &mut StdRng) {
        for _ in 0..random.random_range(0..=5) {
            let begins = random.random_range(FIRST_FAULT..CALM - Duration::from_secs(1));
            let ends = begins + random.random_range(Duration::from_millis(50)..CALM - begins);
            let (begin, end) = self.draw_fault(random);
            self.faults.push((begins, begin));
            self.faults.extend(end.map(|end| (ends, end)));
        }
        self.faults.sort_by_key(|(at, _)| *at);
        // Whatever overlapped: in the end all are well.
        let places = self.places();
        for &place in &places {
            self.faults.push((CALM, Fault::Wake(place)));
            if place != Place::Clients {
                self.faults.push((CALM, Fault::Start(place)));
            }
            for &other in &places {
                self.faults.extend([(CALM, Fault::Unblock(place, other)), (CALM, Fault::Unslow(place, other))]);
            }
        }
    }

    /// A fault and how it ends.
    fn draw_fault(&self, random: &mut StdRng) -> (Fault, Option<Fault>) {
        let workers = self.workers();
        let worker = *pick(random, &workers);
        let (one, other) = match random.random_range(0..3) {
            0 => (worker, Place::Scheduler),
            1 => (Place::Scheduler, worker),
            _ => (*pick(random, &workers), worker),
        };
        match random.random_range(0..20) {
            0..=4 => (Fault::Kill(worker), Some(Fault::Start(worker))),
            5..=6 => (Fault::PowerOff(worker), Some(Fault::Start(worker))),
            7..=9 => (Fault::Freeze(worker), Some(Fault::Wake(worker))),
            10..=12 => (Fault::Block(one, other), Some(Fault::Unblock(one, other))),
            13..=14 => (Fault::Cut(one, other), None),
            15 => (Fault::Slow(one, other), Some(Fault::Unslow(one, other))),
            16..=17 => (Fault::Drain(worker), Some(Fault::Start(worker))),
            18 => (Fault::Kill(Place::Scheduler), Some(Fault::Start(Place::Scheduler))),
            _ => (Fault::Freeze(Place::Scheduler), Some(Fault::Wake(Place::Scheduler))),
        }
    }
}

fn leave(random: &mut StdRng) -> Leave {
    match random.random_bool(0.5) {
        true => Leave::Landing,
        false => Leave::After(Duration::from_millis(random.random_range(1..1500))),
    }
}

/// A prompt as tokens, or as a message that a chat makes tokens of.
fn said(prompt: Vec<TokenId>, chat: bool, model: &Model) -> (Option<String>, Vec<TokenId>) {
    if !chat {
        return (None, prompt);
    }
    let letter = |token: &TokenId| char::from(b'A' + (token % 26) as u8);
    let message: String = prompt.iter().map(letter).collect();
    let prompt = model.tokenizer.encode(&message, true).expect("letters are tokens");
    (Some(message), prompt)
}

/// A piece of what the first choice says, so that it really ends there.
fn stop_string(random: &mut StdRng, ask: &Ask, model: &Model) -> Option<String> {
    let text = ask.expected(model).into_iter().next()?.text;
    let chars: Vec<char> = text.chars().collect();
    let from = random.random_range(0..chars.len().max(1));
    let stop: String = chars.iter().skip(from).take(random.random_range(1..=3)).collect();
    (!stop.is_empty() && !stop.contains(char::REPLACEMENT_CHARACTER)).then_some(stop)
}

pub(crate) fn pick_of_thousand(random: &mut StdRng, of_thousand: u32) -> bool {
    random.random_range(0..1000) < of_thousand
}

pub(crate) fn pick<'a, T>(random: &mut StdRng, from: &'a [T]) -> &'a T {
    from.choose(random).expect("something to choose from")
}
