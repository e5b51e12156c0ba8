//! Who sits on which link of a run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use net::sim::{Tamper, Tampering};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::control::{Eavesdropper, Mischief, Orders, Replies, Talk};
use crate::grpc::{Grpc, PREFACE_BYTES};
use crate::plan::{Place, Plan, Sabotage};
use crate::run::{KV_PORT, PORT};
use crate::tamper::{Answers, Damage, Frames, Pieces, Twice};
use crate::witness::Witness;

/// Who sits on the links of a run.
struct Links {
    plan: (u64, Damage, Mischief),
    witness: Witness,
    over: Arc<AtomicBool>,
    /// What both directions of a connection share, by the address that dialed.
    talks: BTreeMap<SocketAddr, Arc<Mutex<Talk>>>,
    pieces: BTreeMap<SocketAddr, Pieces>,
}

impl Links {
    /// Between the scheduler and workers, and on the KV ports.
    fn tamper(&mut self, from: SocketAddr, to: SocketAddr) -> Option<Box<dyn Tamper>> {
        let scheduler = Place::Scheduler.address();
        match (from.ip() == scheduler, to.ip() == scheduler) {
            (true, false) if to.port() == PORT => {
                Some(Box::new(Grpc::new(PREFACE_BYTES, Orders(self.ear(from, from)))))
            }
            (false, true) if from.port() == PORT => Some(Box::new(Grpc::new(0, Replies(self.ear(to, from))))),
            (false, false) if to.port() == KV_PORT => Some(Box::new(self.frames(from))),
            (false, false) if from.port() == KV_PORT => Some(Box::new(self.answers(to))),
            _ => None,
        }
    }

    /// Equal for equal runs: ports are given out in order.
    fn random(&self, of: SocketAddr) -> StdRng {
        StdRng::seed_from_u64(self.plan.0 ^ u64::from(of.port()) << 32)
    }

    fn ear(&mut self, dialed: SocketAddr, says: SocketAddr) -> Eavesdropper {
        let talk = self.talks.entry(dialed).or_default().clone();
        let (random, mischief) = (self.random(says), self.plan.2);
        Eavesdropper { talk, witness: self.witness.clone(), mischief, random, over: self.over.clone() }
    }

    fn frames(&mut self, dialed: SocketAddr) -> Frames {
        let pieces = self.pieces.entry(dialed).or_default().clone();
        let (_, damage, mischief) = self.plan;
        let (random, over) = (self.random(dialed), self.over.clone());
        Frames { damage, mischief, pieces, random, unread: Vec::new(), held: None, over }
    }

    fn answers(&mut self, dialed: SocketAddr) -> Answers {
        let pieces = self.pieces.entry(dialed).or_default().clone();
        Answers { pieces, witness: self.witness.clone(), unread: Vec::new() }
    }
}

/// What happens on the links of a run of `plan`, until `over`.
pub(crate) fn tampering(plan: &Plan, witness: Witness, over: &Arc<AtomicBool>) -> Tampering {
    let mut links = Links {
        plan: (plan.seed, plan.damage, plan.mischief),
        witness,
        over: over.clone(),
        talks: BTreeMap::new(),
        pieces: BTreeMap::new(),
    };
    let doubles = plan.sabotage == Some(Sabotage::Double);
    Box::new(move |from, to| match to.ip() == Place::Clients.address() {
        true => doubles.then(|| Box::new(Twice) as Box<dyn Tamper>),
        false => links.tamper(from, to),
    })
}
