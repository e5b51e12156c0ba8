//! What is refused before it is queued.

use kv::BlockPool;
use proto::control::FailCode;
use types::GenerateSpec;

use super::{Failure, Goal, Job, Runner};

/// Jobs that may wait or run; more are refused, so that the scheduler looks elsewhere.
const JOBS_MAX: usize = 4096;

impl Runner {
    /// Refuses what could never end well.
    pub(super) fn check(&self, job: &Job) -> Result<(), Failure> {
        let bad = |message: String| Err(Failure::new(FailCode::FailBadRequest, message));
        if self.jobs.contains_key(&job.key) {
            return bad(format!("{} is already running here", job.key));
        }
        if self.jobs.len() >= JOBS_MAX {
            let message = format!("{} requests are queued, the limit is {JOBS_MAX}", self.jobs.len());
            return Err(Failure::new(FailCode::FailQueueFull, message));
        }
        let spec = &job.spec;
        if spec.sampling.grammar.is_some() != job.matcher.is_some() {
            return bad("a grammar and its matcher come together".to_owned());
        }
        let foreign = |token: &&u32| **token >= self.config.vocab_size;
        if let Some(token) = spec.prompt.iter().chain(&spec.output).find(foreign) {
            return bad(format!("token {token} is outside the vocabulary of {}", self.config.vocab_size));
        }
        if let Goal::Continue { table, first } = &job.goal {
            if table.capacity_tokens() < spec.context_len() {
                return bad(format!("KV for {} of {} tokens", table.capacity_tokens(), spec.context_len()));
            }
            if let Some(token) = first.iter().find(|token| token.id >= self.config.vocab_size) {
                return bad(format!(
                    "first token {} is outside the vocabulary of {}",
                    token.id, self.config.vocab_size
                ));
            }
        }
        let decodes = !matches!(job.goal, Goal::FirstTokens { .. } | Goal::Embed { .. });
        check_fits(spec, decodes, self.config.max_model_len, &self.pool)
    }
}

/// Refuses a job that could not end even if it were alone on this instance. `decodes`: it stays after its first tokens.
pub fn check_fits(spec: &GenerateSpec, decodes: bool, max_model_len: u32, pool: &BlockPool) -> Result<(), Failure> {
    let too_long = |message: String| Err(Failure::new(FailCode::FailTooLong, message));
    let context = spec.context_len();
    if context >= max_model_len as usize {
        return too_long(format!("{context} tokens leave no room to answer in a context of {max_model_len}"));
    }
    // KV of the last drawn token is never needed.
    let grown = (spec.prompt.len() + spec.sampling.max_tokens as usize).min(max_model_len as usize) - 1;
    let needed = if decodes { grown.max(context) } else { context }.div_ceil(pool.block_size() as usize);
    let total = pool.stats().total as usize;
    if needed > total {
        return too_long(format!("needs {needed} KV blocks of {} tokens, there are {total}", pool.block_size()));
    }
    Ok(())
}
