//! Who sits on the link between the scheduler and a worker: hears what both say, and now and then loses, repeats or brings up again
//! what a correct cluster must bear.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use prost::Message;
use proto::control::scheduler_message::Body as Down;
use proto::control::worker_message::Body as Up;
use proto::control::{Cancel, Key, Reserve, SchedulerMessage, Token, WorkerMessage};
use rand::Rng;
use rand::rngs::StdRng;

use crate::grpc::Meddler;
use crate::plan::pick_of_thousand;
use crate::witness::{Witness, attempt};

/// How many messages of a thousand suffer what. But for lost cancels, nobody may notice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mischief {
    /// Tokens that come twice.
    pub(crate) doubled: u32,
    /// Reservations of an epoch before the one that lives, and their cancels.
    pub(crate) stale: u32,
    /// Pieces that a forged one comes before.
    pub(crate) forged: u32,
    /// Cancels that never come, of hand-overs whose lease runs.
    pub(crate) cancels_lost: u32,
    /// Hand-overs that P gives up without D hearing of it.
    pub(crate) abandons_lost: u32,
}

impl Mischief {
    /// `pieces`: KV goes where pieces can be seen.
    pub(crate) fn draw(random: &mut StdRng, pieces: bool) -> Self {
        let mut share = |most| random.random_range(0..=most);
        let (doubled, stale, forged) = (share(200), share(300), share(100));
        let silent = pieces && share(1) == 1;
        let (cancels_lost, abandons_lost) = if silent { (200 + share(800), 200 + share(800)) } else { (0, 0) };
        Self { doubled, stale, forged, cancels_lost, abandons_lost }
    }
}

/// What both directions of one connection know of it.
#[derive(Default)]
pub(crate) struct Talk {
    /// Reservations that the worker has spoken of and that have not ended.
    live: BTreeMap<String, u32>,
    reserved: BTreeMap<String, Reserve>,
    /// A stale order was sent; its cancel follows.
    owed: Option<Vec<u8>>,
}

impl Talk {
    fn over(&mut self, key: &Key) {
        if self.live.get(&key.request_id) == Some(&key.epoch) {
            self.live.remove(&key.request_id);
        }
        // A cancel may come before the worker has spoken.
        if self.reserved.get(&key.request_id).is_some_and(|order| order.key.as_ref() == Some(key)) {
            self.reserved.remove(&key.request_id);
        }
    }

    /// An order of an attempt before one that lives.
    fn stale(&mut self) -> Option<Vec<u8>> {
        let (request, epoch) = self.live.iter().find(|(_, epoch)| **epoch > 0)?;
        let key = Some(Key { request_id: request.clone(), epoch: epoch - 1 });
        let order = Reserve { key: key.clone(), ..self.reserved.get(request)?.clone() };
        let say = |body| SchedulerMessage { body: Some(body) }.encode_to_vec();
        self.owed = Some(say(Down::Cancel(Cancel { key, choices: Vec::new() })));
        Some(say(Down::Reserve(order)))
    }
}

/// One end's view of a connection.
pub(crate) struct Eavesdropper {
    pub(crate) talk: Arc<Mutex<Talk>>,
    pub(crate) witness: Witness,
    pub(crate) mischief: Mischief,
    pub(crate) random: StdRng,
    /// No mischief any more.
    pub(crate) over: Arc<AtomicBool>,
}

impl Eavesdropper {
    fn happens(&mut self, of_thousand: u32) -> bool {
        pick_of_thousand(&mut self.random, of_thousand) && !self.over.load(Relaxed)
    }
}

/// From the scheduler to a worker.
pub(crate) struct Orders(pub(crate) Eavesdropper);

impl Orders {
    /// Notes an order; false if it gets lost.
    fn hear(&mut self, body: &Down) -> bool {
        let Self(ear) = self;
        let watch = |key: &Option<Key>, spec: &Option<_>, first: &[Token]| {
            if let (Some(key), Some(spec)) = (key, spec) {
                ear.witness.ordered(key, spec, first);
            }
        };
        match body {
            Down::Reserve(order) => {
                watch(&order.key, &order.spec, &[]);
                if let Some(key) = &order.key {
                    ear.talk.lock().reserved.insert(key.request_id.clone(), order.clone());
                }
            }
            Down::Prefill(order) => watch(&order.key, &order.spec, &[]),
            Down::Generate(order) => watch(&order.key, &order.spec, &order.first),
            Down::Cancel(Cancel { key: Some(key), choices }) => {
                let landing = choices.is_empty() && ear.talk.lock().reserved.contains_key(&key.request_id);
                ear.talk.lock().over(key);
                return !(landing && ear.witness.has_landed(&attempt(key)) && ear.happens(ear.mischief.cancels_lost));
            }
            _ => {}
        }
        true
    }
}

impl Meddler for Orders {
    fn message(&mut self, message: Vec<u8>) -> Vec<Vec<u8>> {
        let mut out = Vec::from_iter(self.0.talk.lock().owed.take());
        let body = SchedulerMessage::decode(message.as_slice()).ok().and_then(|message| message.body);
        if body.is_none_or(|body| self.hear(&body)) {
            out.push(message);
        }
        if out.len() == 1 && self.0.happens(self.0.mischief.stale) {
            out.extend(self.0.talk.lock().stale());
        }
        out
    }
}

/// From a worker to the scheduler.
pub(crate) struct Replies(pub(crate) Eavesdropper);

impl Replies {
    fn hear(&mut self, body: &Up) {
        let mut talk = self.0.talk.lock();
        let (key, ends) = match body {
            Up::Reserved(reserved) => {
                if let Some(key) = &reserved.key {
                    talk.live.entry(key.request_id.clone()).or_insert(key.epoch);
                }
                (&reserved.key, false)
            }
            Up::Tokens(tokens) => (&tokens.key, tokens.tokens.iter().any(|token| token.finish != 0)),
            Up::FirstTokens(first) => (&first.key, false),
            Up::Failed(failed) => (&failed.key, true),
            _ => return,
        };
        let Some(key) = key else { return };
        match talk.live.get(&key.request_id) {
            Some(live) if *live > key.epoch && !ends => {
                let (request, epoch) = attempt(key);
                self.0.witness.accuse(format!("a worker goes back to epoch {epoch} of {request} from {live}"));
            }
            Some(live) if *live < key.epoch => drop(talk.live.insert(key.request_id.clone(), key.epoch)),
            _ => {}
        }
        if ends {
            talk.over(key);
        }
    }
}

impl Meddler for Replies {
    fn message(&mut self, message: Vec<u8>) -> Vec<Vec<u8>> {
        let body = WorkerMessage::decode(message.as_slice()).ok().and_then(|message| message.body);
        let mut copies = 1;
        if let Some(body) = body {
            self.hear(&body);
            copies += usize::from(matches!(body, Up::Tokens(_)) && self.0.happens(self.0.mischief.doubled));
        }
        vec![message; copies]
    }
}
