//! The life of an attempt on P: compute the prompt, tell its first tokens, ship its KV.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::control::{FirstTokens, PrefillStats, Shipped, TransferStats, worker_message::Body};
use transfer::Counters;
use types::{GenerateSpec, SampledToken};
use worker::{
    Attempt, AttemptJob, Direction, EngineHandle, Failure, Goal, Happening, Job, Order, PromptStats, RoleService,
};

use crate::handoff::{HandOff, Shipping, failure};

/// P's role.
pub(crate) struct PrefillService {
    pub(crate) shipping: Shipping,
    pub(crate) engine: EngineHandle,
}

impl RoleService for PrefillService {
    async fn serve(&self, mut attempt: Attempt) -> Result<(), Failure> {
        match attempt.order().await? {
            Order::Prefill { spec, ticket } => self.prefill(attempt, spec, ticket).await,
            Order::Embed { spec, pooling } => attempt.embed(spec, pooling).await,
            other => Err(other.unexpected("Prefill or Embed")),
        }
    }

    fn kv_counters(&self) -> &Counters {
        self.shipping.sender.counters()
    }
}

impl PrefillService {
    async fn prefill(&self, attempt: Attempt, spec: GenerateSpec, ticket: Bytes) -> Result<(), Failure> {
        let hand_off = Arc::new(HandOff::new(attempt.key.clone(), ticket, self.shipping.clone()));
        let goal = Goal::FirstTokens { watcher: hand_off.clone() };
        let matcher = attempt.compile(&spec.sampling).matcher().await?;
        let mut job = attempt.submit(Job { key: attempt.key.clone(), spec, goal, matcher })?;
        // The client gets its first token now, whatever becomes of the hand-over.
        let (tokens, prompt) = first_tokens(&attempt, &mut job).await?;
        attempt.reply(first_tokens_message(&attempt, &tokens, prompt)).await?;
        let stats = match hand_off.take() {
            Some(outgoing) => self.measured(outgoing.finish().await.map_err(failure)?),
            // Every choice was cancelled before the prompt got its blocks.
            None => TransferStats::default(),
        };
        attempt.reply(Body::Shipped(Shipped { key: Some((&attempt.key).into()), stats: Some(stats) })).await
    }

    fn measured(&self, stats: transfer::TransferStats) -> TransferStats {
        let transport = stats.transport.map_or("", |kind| kind.as_str());
        if stats.pieces > 0 {
            self.engine.metrics().transferred(transport, Direction::Sent, stats.pieces.into(), stats.bytes);
        }
        TransferStats {
            transport: transport.into(),
            bytes: stats.bytes,
            pieces: stats.pieces,
            retried_pieces: stats.retried_pieces,
            blocks_skipped: stats.blocks_skipped,
            exposed_us: micros(stats.exposed),
        }
    }
}

/// Waits for the job's end and returns what it drew; scores of the prompt go out as they come.
async fn first_tokens(attempt: &Attempt, job: &mut AttemptJob) -> Result<(Vec<SampledToken>, PromptStats), Failure> {
    let (mut drawn, mut stats) = (Vec::new(), PromptStats::default());
    loop {
        match job.next().await? {
            Happening::Sampled { tokens, prompt } => {
                drawn.extend(tokens);
                stats = prompt.unwrap_or(stats);
            }
            Happening::Scored { first, scores } => attempt.reply_scores(first, &scores).await?,
            Happening::Embedded { .. } => {}
            Happening::Finished => return Ok((drawn, stats)),
            Happening::Failed(failure) => return Err(failure),
        }
    }
}

fn first_tokens_message(attempt: &Attempt, tokens: &[SampledToken], prompt: PromptStats) -> Body {
    Body::FirstTokens(FirstTokens {
        key: Some((&attempt.key).into()),
        tokens: tokens.iter().map(Into::into).collect(),
        stats: Some(PrefillStats::from(prompt)),
    })
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
