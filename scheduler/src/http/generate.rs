//! From a validated request to a running one: permit, sampling per prompt, the task that serves it.
//!
//! [`Generating`] is the guard of a client's request: dropping it, because the client left, ends the task and every attempt.

use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use kv::ChainRoot;
use openai::{ApiError, Generation, Head, StreamOptions, Usage};
use telemetry::Outcome;
use tokio::sync::OwnedSemaphorePermit;
use types::{RequestId, TokenId};

use super::{Api, ClientId, error, unix_seconds};
use crate::answer::{Piece, Style};
use crate::output::{self, Item, Reader, Writer};
use crate::request::{Request, RequestError, serve};

/// Texts up to this are tokenised on the spot; longer ones would hold up everyone else's tokens.
const INLINE_BYTES: usize = 4096;

/// What a client asked for, tokenised.
pub(super) struct Order {
    pub(super) id: ClientId,
    /// First part of the answer's id: `cmpl` or `chatcmpl`.
    pub(super) kind: &'static str,
    pub(super) generation: Generation,
    pub(super) prompts: Vec<Vec<TokenId>>,
    /// The answer's text continues the prompt's.
    pub(super) after_prompt: bool,
    pub(super) arrived: Instant,
}

/// A client's request while it runs.
pub(super) struct Generating {
    reader: Reader,
    pub(super) head: Head,
    pub(super) stream: Option<StreamOptions>,
    pub(super) prompts: Vec<Arc<[TokenId]>>,
    /// Choices per prompt.
    pub(super) n: u32,
    pub(super) token_ids: bool,
    pub(super) logprobs: bool,
    completion_tokens: u64,
    ending: Ending,
    _permit: OwnedSemaphorePermit,
}

/// Counts a request once, however it ends; without a word it was cancelled.
struct Ending {
    api: Arc<Api>,
    outcome: Outcome,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.api.metrics().ended(self.outcome);
    }
}

impl Api {
    /// Starts to serve. Nothing has been sent to the client yet.
    pub(super) fn launch(self: &Arc<Self>, order: Order) -> Result<Generating, ApiError> {
        let permit = self.admission.admit()?;
        let requests = self.requests(&order)?;
        let Order { id, kind, generation, .. } = order;
        self.metrics().admitted(generation.n);
        let generating = Generating {
            head: Head {
                id: format!("{kind}-{}", generation.request_id.as_deref().unwrap_or(&id.0)),
                created: unix_seconds(),
                model: self.served_name().to_owned(),
            },
            stream: generation.stream,
            prompts: requests.iter().map(|request| request.prompt.clone()).collect(),
            n: generation.n,
            token_ids: generation.return_token_ids,
            logprobs: generation.wants_logprobs(),
            completion_tokens: 0,
            reader: self.spawn(requests),
            ending: Ending { api: self.clone(), outcome: Outcome::Cancelled },
            _permit: permit,
        };
        Ok(generating)
    }

    /// One request per prompt.
    fn requests(&self, order: &Order) -> Result<Vec<Request>, ApiError> {
        let generation = &order.generation;
        let (facts, seed) = (self.facts(), rand::random());
        let style = Style {
            tokenizer: self.tokenizer.clone(),
            skip_special: generation.skip_special_tokens,
            stop: generation.stop.clone(),
            include_stop: generation.include_stop_str_in_output,
            after_prompt: order.after_prompt,
            token_ids: generation.return_token_ids,
            logprobs: generation.wants_logprobs(),
        };
        let cache_salt = generation.cache_salt.as_deref().map(hashed).unwrap_or_default();
        // A client's own id may come twice; on the wire every request has its own.
        let unique: u32 = rand::random();
        let request = |(number, prompt): (usize, &Vec<TokenId>)| {
            Ok(Request {
                id: RequestId::from(format!("{}-{unique:08x}.{number}", order.id.0)),
                prompt: prompt.as_slice().into(),
                choices: generation.n,
                first_index: number as u32 * generation.n,
                sampling: generation.sampling(prompt.len(), &facts, seed)?,
                cache_salt: cache_salt.clone(),
                style: style.clone(),
                arrived: order.arrived,
                attempts: self.bounds.attempts,
                via: None,
            })
        };
        order.prompts.iter().enumerate().map(request).collect()
    }

    fn spawn(self: &Arc<Self>, requests: Vec<Request>) -> Reader {
        let (writer, mut reader) = output::channel(self.bounds.unread_bytes);
        let api = self.clone();
        let task = tokio::spawn(async move {
            let served = try_join_all(requests.iter().map(|request| serve_one(&api, request, &writer))).await;
            writer.end(served.map(|_| ()));
        });
        reader.hold(task.abort_handle());
        reader
    }
}

async fn serve_one(api: &Api, request: &Request, writer: &Writer) -> Result<(), RequestError> {
    if request.sampling.max_tokens == 0 {
        // Only the prompt is wanted back (echo).
        let nothing = |choice| Piece {
            index: request.first_index + choice,
            finish: Some(openai::Finish::length()),
            ..Piece::default()
        };
        return (0..request.choices).try_for_each(|choice| writer.push(nothing(choice)));
    }
    Box::pin(serve(&api.cluster, &api.admission, api.metrics(), request, writer)).await
}

impl Generating {
    /// The next piece, or the end.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        match self.reader.next().await {
            Item::Piece(piece) => {
                self.completion_tokens += u64::from(piece.tokens);
                Ok(Some(piece))
            }
            Item::End(Ok(())) => {
                self.ending.outcome = Outcome::Finished;
                Ok(None)
            }
            Item::End(Err(error)) => {
                let error = ApiError::from(error);
                self.ending.outcome = error::outcome(&error);
                Err(error)
            }
        }
    }

    /// Every choice whole, in the order of the answer.
    pub(super) async fn collect(&mut self) -> Result<Vec<Piece>, ApiError> {
        let choices = self.prompts.len() as u32 * self.n;
        let mut whole: Vec<Piece> = (0..choices).map(|index| Piece { index, ..Piece::default() }).collect();
        while let Some(piece) = self.next().await? {
            if let Some(choice) = whole.get_mut(piece.index as usize) {
                choice.extend(piece);
            }
        }
        Ok(whole)
    }

    /// So far.
    pub(super) fn usage(&self) -> Usage {
        let prompt: u64 = self.prompts.iter().map(|prompt| prompt.len() as u64).sum();
        Usage::new(prompt, self.completion_tokens, self.reader.cached_tokens().min(prompt))
    }

    /// The prompt that a choice answers.
    pub(super) fn prompt_of(&self, index: u32) -> &[TokenId] {
        self.prompts.get((index / self.n.max(1)) as usize).map_or(&[], |prompt| prompt)
    }
}

/// A client's salt never travels itself.
fn hashed(salt: &str) -> Vec<u8> {
    ChainRoot::new("cache_salt", salt.as_bytes()).next(None, &[]).0.to_vec()
}

/// Runs text work where it holds up nobody.
pub(super) async fn off_loop<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= INLINE_BYTES {
        return work();
    }
    let internal = |_| ApiError::new(openai::ErrorKind::Internal, "internal error");
    tokio::task::spawn_blocking(work).await.map_err(internal)?
}
