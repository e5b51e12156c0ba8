//! Stage 2 of a request's life, Routed: P and D are chosen and booked together, after waiting for them where that makes sense.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use kv::{BlockHash, ChainRoot, hash_chain};
use tokio::time::Instant;
use tracing::info;
use types::{RequestKey, Role, Stage};

use super::error::Broken;
use super::{Path, RequestError, Story};
use crate::cluster::Routed;
use crate::leg::Leg;
use crate::link::Connection;
use crate::pairing::{Facts, PREFIX_BLOCK};

/// Before an instance that said it is full is asked again: some decode steps, in which others may end.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Hashes of prompt and output, once someone has asked for them.
type Chain = Option<Vec<BlockHash>>;

impl Story<'_> {
    /// Chooses and books P and D. Waits a moment for an instance that is not there, and in the line for room.
    pub(super) async fn routed(&self, leg: &mut Leg) -> Result<Path, Broken> {
        let _waiting = self.metrics.waiting();
        let overtakes = !leg.has_output() && self.admission.has_line();
        let mut chain = None;
        loop {
            let mut changed = std::pin::pin!(self.cluster.changed());
            changed.as_mut().enable();
            match if overtakes { Asked::NoRoom } else { self.ask(leg, &mut chain)? } {
                Asked::Go(path) => return Ok(path),
                Asked::NoRoom => return self.in_line(leg, chain).await,
                Asked::NotBefore(time) => tokio::time::sleep_until(time).await,
                Asked::Absent(role) => wait(changed, self.absent_until(leg), RequestError::NoInstance { role }).await?,
            }
        }
    }

    async fn in_line(&self, leg: &mut Leg, mut chain: Chain) -> Result<Path, Broken> {
        let waited = self.cluster.timings().wait;
        let until = *leg.waiting_since.get_or_insert_with(Instant::now) + waited;
        let place = self.admission.queue()?;
        let _head = tokio::time::timeout_at(until, place.head()).await;
        let _head = _head.map_err(|_| RequestError::NoRoom { waited })?;
        loop {
            if !leg.tried.busy.is_empty() {
                if Instant::now() >= until {
                    return Err(RequestError::NoRoom { waited }.into());
                }
                tokio::time::sleep(BUSY_PAUSE).await;
                leg.tried.busy.clear();
            }
            let mut changed = std::pin::pin!(self.cluster.changed());
            changed.as_mut().enable();
            match self.ask(leg, &mut chain)? {
                Asked::Go(path) => return Ok(path),
                Asked::NoRoom => wait(changed, until, RequestError::NoRoom { waited }).await?,
                Asked::NotBefore(time) => tokio::time::sleep_until(time).await,
                Asked::Absent(role) => wait(changed, self.absent_until(leg), RequestError::NoInstance { role }).await?,
            }
        }
    }

    /// Asks the router once. `chain` is the tokens', made by the first who asks.
    fn ask(&self, leg: &mut Leg, chain: &mut Chain) -> Result<Asked, RequestError> {
        let Some(model) = self.cluster.model() else { return Ok(Asked::Absent(Role::Decode)) };
        if self.model.get_or_init(|| model.digest.clone()) != &model.digest {
            return Ok(Asked::Absent(Role::Decode));
        }
        let (prompt, output) = (&self.request.prompt[..], leg.output());
        let chain = chain.get_or_insert_with(|| {
            let root = ChainRoot::new(&model.digest, &self.request.cache_salt);
            let tokens = if output.is_empty() { Cow::Borrowed(prompt) } else { Cow::Owned([prompt, output].concat()) };
            hash_chain(&root, &tokens, PREFIX_BLOCK)
        });
        let tokens = (prompt.len() + output.len()) as u32;
        let facts = |excluded| Facts {
            tokens,
            chain,
            choices: self.request.sampling.beam.map_or(leg.answers.len() as u32, |beam| beam.width),
            new_tokens: self.request.sampling.max_tokens.saturating_sub(output.len() as u32),
            excluded,
        };
        let [wary, tried, bold] = leg.tried.excluded(self.cluster);
        let routed = match self.request.via {
            Some(route) => self.cluster.route_by(route, &facts(&bold)),
            None => match self.cluster.route(&facts(&wary)) {
                go @ Routed::Go { .. } => go,
                _ => match self.cluster.route(&facts(&tried)) {
                    Routed::Absent(_) => match leg.bold_from {
                        Some(time) if time > Instant::now() => return Ok(Asked::NotBefore(time)),
                        _ => self.cluster.route(&facts(&bold)),
                    },
                    routed => routed,
                },
            },
        };
        match routed {
            Routed::Go { booked, prefill, decode } => {
                leg.prefill = prefill.as_ref().map(|connection| (connection.slot, connection.generation));
                leg.decode = Some((decode.slot, decode.generation));
                let key = RequestKey { request: leg.name(self.request), epoch: leg.epoch };
                let place = |connection: &Arc<Connection>| connection.instance.clone();
                info!(request_id = %key.request, stage = %Stage::Routed, epoch = key.epoch, tokens,
                    prefill = prefill.as_ref().map(place).as_ref().map_or("local", |id| id.as_str()), decode = %decode.instance, "routed");
                Ok(Asked::Go(Path { booked, prefill, decode, key }))
            }
            Routed::Wait => Ok(Asked::NoRoom),
            // Those that are there have just said that they are full.
            Routed::Absent(_) if !leg.tried.busy.is_empty() => Ok(Asked::NoRoom),
            Routed::Absent(role) => Ok(Asked::Absent(role)),
            Routed::TooLong { tokens_max } => Err(RequestError::TooLong { tokens, tokens_max }),
        }
    }

    /// A request that has text is worth waiting for longer than one that can simply be sent again.
    fn absent_until(&self, leg: &mut Leg) -> Instant {
        let timings = self.cluster.timings();
        let patience = if leg.has_output() { timings.absent_resume } else { timings.absent };
        *leg.absent_since.get_or_insert_with(Instant::now) + patience
    }
}

/// What the router said.
enum Asked {
    Go(Path),
    NoRoom,
    Absent(Role),
    /// The only way there is has just failed this request.
    NotBefore(Instant),
}

/// Until something changed, or `otherwise` when nothing did in time.
async fn wait(
    changed: std::pin::Pin<&mut tokio::sync::futures::Notified<'_>>,
    until: Instant,
    otherwise: RequestError,
) -> Result<(), RequestError> {
    tokio::time::timeout_at(until, changed).await.map_err(|_| otherwise)
}
