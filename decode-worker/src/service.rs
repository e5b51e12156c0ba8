//! The life of an attempt on D: reserve, land, decode; or compute the prompt here and decode.

use std::time::Duration;

use proto::control::{FailCode, Reserved, Tokens, worker_message::Body};
use transfer::{Counters, LandingStats, Listening};
use types::{GenerateSpec, RequestKey, SampledToken};
use worker::{Attempt, Compiling, Direction, Failure, Goal, Happening, Job, Order, RoleService};

use crate::landing::{LEASE, Landings};

/// D's role.
pub(crate) struct DecodeService {
    pub(crate) landings: Landings,
    /// The KV doors, open as long as the service lives.
    pub(crate) _doors: Listening,
}

impl RoleService for DecodeService {
    async fn serve(&self, mut attempt: Attempt) -> Result<(), Failure> {
        match attempt.order().await? {
            Order::Reserve(spec) => self.receive(attempt, spec).await,
            Order::Generate { spec, first } if first.is_empty() => {
                let compiling = attempt.compile(&spec.sampling);
                stream(&attempt, spec, Goal::Complete, compiling).await
            }
            Order::Generate { .. } => {
                Err(Failure::new(FailCode::FailLease, "no reservation for this attempt: its lease ran out"))
            }
            Order::Embed { spec, pooling } => attempt.embed(spec, pooling).await,
            other => Err(other.unexpected("Reserve, Generate or Embed")),
        }
    }

    fn kv_counters(&self) -> &Counters {
        self.landings.receiver.counters()
    }

    fn leases(&self) -> Vec<(RequestKey, Duration)> {
        self.landings.receiver.leases()
    }
}

impl DecodeService {
    async fn receive(&self, mut attempt: Attempt, reserved: GenerateSpec) -> Result<(), Failure> {
        let compiling = attempt.compile(&reserved.sampling);
        let reservation = self.landings.reserve(&attempt.key, &reserved).await?;
        attempt
            .reply(Body::Reserved(Reserved {
                key: Some((&attempt.key).into()),
                ticket: reservation.ticket(),
                cached_tokens: reservation.cached_tokens,
                lease_ms: LEASE.as_millis() as u32,
            }))
            .await?;
        // Generate may come before or after the last byte; until it is fetched it waits in the attempt's queue.
        let (table, stats) = reservation.land(self.landings.engine.pool(), &attempt.key).await?;
        self.measure(&stats);
        let order = tokio::time::timeout(LEASE, attempt.order()).await.map_err(|_| never_generated())??;
        let Order::Generate { spec, first } = order else { return Err(order.unexpected("Generate")) };
        check_continues(&reserved, &spec, &first)?;
        stream(&attempt, spec, Goal::Continue { table, first }, compiling).await
    }

    fn measure(&self, stats: &LandingStats) {
        if let Some(transport) = stats.transport {
            let metrics = self.landings.engine.metrics();
            metrics.transferred(transport.as_str(), Direction::Received, stats.pieces.into(), stats.bytes);
        }
    }
}

/// Runs the job and sends its tokens as they come.
async fn stream(attempt: &Attempt, spec: GenerateSpec, goal: Goal, compiling: Compiling) -> Result<(), Failure> {
    let matcher = compiling.matcher().await?;
    let mut job = attempt.submit(Job { key: attempt.key.clone(), spec, goal, matcher })?;
    loop {
        match job.next().await? {
            Happening::Sampled { tokens, prompt } => {
                let tokens = tokens.iter().map(Into::into).collect();
                let (key, prefill) = (Some((&attempt.key).into()), prompt.map(Into::into));
                attempt.reply(Body::Tokens(Tokens { key, tokens, prefill })).await?;
            }
            Happening::Scored { first, scores } => attempt.reply_scores(first, &scores).await?,
            Happening::Embedded { .. } => {}
            Happening::Finished => return Ok(()),
            Happening::Failed(failure) => return Err(failure),
        }
    }
}

/// The KV that landed is that of the reserved context, so nothing else may be decoded from it.
fn check_continues(reserved: &GenerateSpec, spec: &GenerateSpec, first: &[SampledToken]) -> Result<(), Failure> {
    let bad = |message: String| Err(Failure::new(FailCode::FailBadRequest, message));
    if reserved.prompt != spec.prompt || reserved.output != spec.output {
        return bad("Generate has another context than its Reserve".into());
    }
    if reserved.sampling.grammar != spec.sampling.grammar {
        return bad("Generate has another grammar than its Reserve".into());
    }
    let position = spec.output.len() as u32;
    if let Some(token) = first.iter().find(|token| token.position != position || !spec.choices.contains(&token.choice))
    {
        let (choice, found) = (token.choice, token.position);
        return bad(format!("first token of choice {choice} at position {found}, expected position {position}"));
    }
    if first.is_empty() {
        return bad("Generate of a reservation needs first tokens".into());
    }
    Ok(())
}

fn never_generated() -> Failure {
    let message = format!("KV landed, but no Generate came within {} s", LEASE.as_secs());
    Failure::new(FailCode::FailLease, message)
}
