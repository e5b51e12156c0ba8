//! From a validated request to a running one: permit, sampling per prompt, the task that serves it.
//!
//! [`Generating`] is the guard of a client's request: dropping it, because the client left, ends the task and every attempt.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use futures::future::try_join_all;
use hyper::Response;
use kv::ChainRoot;
use openai::{ApiError, ErrorKind, Generation, Head, ModelFacts, PromptToken, StreamOptions, Structured, Usage};
use telemetry::Outcome;
use text::{GrammarError, ReasoningParser, Tokenizer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use types::{Pooling, RequestId, SamplingParams, TokenId};

use super::error::{self, RETRY_SECONDS};
use super::{Api, Caller, unix_seconds};
use crate::answer::{Piece, Style};
use crate::output::{self, Item, Reader, Task, Writer};
use crate::request::{Request, RequestError, serve};

/// Texts up to this are tokenised on the spot; longer ones would hold up everyone else's tokens.
const INLINE_BYTES: usize = 4096;

/// Above this, texts wait for each other.
const LONG_BYTES: usize = 256 << 10;

/// What a client asked for, tokenised.
pub(super) struct Order {
    pub(super) caller: Caller,
    /// First part of the answer's id: such as `cmpl-`.
    pub(super) kind: &'static str,
    pub(super) generation: Generation,
    pub(super) prompts: Vec<Vec<TokenId>>,
    /// The answer's text continues the prompt's.
    pub(super) after_prompt: bool,
    /// Parts what the model thinks from its answer.
    pub(super) reasoning: Option<ReasoningParser>,
    /// Special tokens that are text all the same.
    pub(super) shown: Arc<[TokenId]>,
    /// Vectors of the prompts are wanted, and no text.
    pub(super) embed: Option<Pooling>,
    pub(super) arrived: Instant,
}

/// A piece, the end, or what went wrong.
pub(super) type Next = Result<Option<Piece>, ApiError>;

/// A client's request while it runs.
pub(super) struct Generating {
    reader: Reader,
    pub(super) head: Head,
    pub(super) stream: Option<StreamOptions>,
    pub(super) prompts: Vec<Arc<[TokenId]>>,
    /// Choices per prompt in the answer.
    pub(super) n: u32,
    /// Choices per prompt that are generated.
    best_of: u32,
    /// Choices as far as they are gathered; empty before.
    gathered: Vec<Piece>,
    /// With more of them than are asked for: the answer, once all have ended.
    best: Option<VecDeque<Piece>>,
    pub(super) token_ids: bool,
    pub(super) logprobs: bool,
    /// The prompt's tokens are reported with so many alternatives.
    pub(super) prompt_logprobs: Option<u32>,
    /// Nothing is generated; what comes only says that the prompt is computed.
    prompt_only: bool,
    style: Style,
    completion_tokens: u64,
    /// `None` where the model does not think.
    reasoning_tokens: Option<u64>,
    ending: Ending,
    _permit: OwnedSemaphorePermit,
    _permit_of_key: Option<OwnedSemaphorePermit>,
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
    pub(super) async fn launch(self: &Arc<Self>, mut order: Order) -> Result<Generating, ApiError> {
        let permit_of_key = order.caller.key.as_ref().map(|key| key.permit()).transpose()?;
        let permit = self.admission.admit()?;
        let facts = self.facts();
        order.prompts.iter_mut().try_for_each(|prompt| order.generation.truncate(prompt, &facts))?;
        let prompt_tokens = order.prompts.iter().map(Vec::len).sum();
        order.generation.check_scores(prompt_tokens, &self.bounds.request)?;
        let style = self.style(&order);
        let requests = self.requests(&order, &facts, &style)?;
        if let Some(structured) = &order.generation.structured {
            self.check_grammar(structured).await?;
        }
        let Order { caller, kind, generation, .. } = &order;
        self.metrics().admitted(generation.n);
        let generating = Generating {
            head: Head {
                id: format!("{kind}{}", generation.request_id.as_deref().unwrap_or(&caller.id)),
                created: unix_seconds(),
                model: self.served_name().to_owned(),
            },
            stream: generation.stream,
            prompts: requests.iter().map(|request| request.prompt.clone()).collect(),
            n: generation.n,
            best_of: generation.best_of,
            gathered: Vec::new(),
            best: None,
            token_ids: generation.return_token_ids,
            logprobs: generation.wants_logprobs(),
            prompt_logprobs: generation.prompt_logprobs,
            prompt_only: generation.prompt_only(),
            style,
            completion_tokens: 0,
            reasoning_tokens: order.reasoning.is_some().then_some(0),
            reader: self.begin(requests, generation.stream.is_some()),
            ending: Ending { api: self.clone(), outcome: Outcome::Cancelled },
            _permit: permit,
            _permit_of_key: permit_of_key,
        };
        Ok(generating)
    }

    /// A grammar that the workers could not follow is refused here, before any of them hears of it.
    async fn check_grammar(&self, structured: &Structured) -> Result<(), ApiError> {
        let (grammars, grammar) = (self.grammars.clone(), structured.grammar.clone());
        let compiled = match grammars.known(&grammar) {
            Some(known) => known,
            None => {
                let compiling = tokio::task::spawn_blocking(move || grammars.compile(&grammar));
                compiling.await.map_err(|_| ApiError::new(ErrorKind::Internal, "internal error"))?
            }
        };
        compiled.map(drop).map_err(|error| match error {
            GrammarError::Invalid(_) | GrammarError::Slow => {
                ApiError::bad_field(&structured.field, format!("{}: {error}", structured.field))
            }
            GrammarError::Busy => ApiError::overloaded(error.to_string(), RETRY_SECONDS),
            GrammarError::Unavailable(_) => ApiError::new(ErrorKind::NotImplemented, error.to_string()),
        })
    }

    fn style(&self, order: &Order) -> Style {
        let generation = &order.generation;
        Style {
            tokenizer: self.tokenizer.clone(),
            skip_special: generation.skip_special_tokens,
            shown: order.shown.clone(),
            reasoning: order.reasoning.clone(),
            stop: generation.stop.clone(),
            include_stop: generation.include_stop_str_in_output,
            after_prompt: order.after_prompt,
            token_ids: generation.return_token_ids,
            logprobs: generation.wants_logprobs(),
            tokens_as_ids: generation.return_tokens_as_token_ids,
        }
    }

    /// One request per prompt.
    fn requests(&self, order: &Order, facts: &ModelFacts, style: &Style) -> Result<Vec<Request>, ApiError> {
        let (generation, caller) = (&order.generation, &order.caller);
        let seed = rand::random();
        let cache_salt = cache_salt(caller.key.as_ref().and_then(|key| key.salt()), generation.cache_salt.as_deref());
        let bad_words = bad_words(&self.tokenizer, &generation.bad_words)?;
        // A client's own id may come twice; on the wire every request has its own.
        let unique: u32 = rand::random();
        let request = |(number, prompt): (usize, &Vec<TokenId>)| {
            Ok(Request {
                id: RequestId::from(format!("{}-{unique:08x}.{number}", caller.id)),
                prompt: prompt.as_slice().into(),
                choices: generation.best_of,
                first_index: number as u32 * generation.best_of,
                sampling: SamplingParams {
                    bad_words: bad_words.clone(),
                    ..generation.sampling(prompt.len(), facts, seed)?
                },
                cache_salt: cache_salt.clone(),
                style: style.clone(),
                embed: order.embed,
                arrived: order.arrived,
                attempts: self.bounds.attempts as u32,
                via: None,
            })
        };
        order.prompts.iter().enumerate().map(request).collect()
    }

    /// The client of a stream may read slowly, which must hold up nobody: its work is a task of its own.
    fn begin(self: &Arc<Self>, requests: Vec<Request>, stream: bool) -> Reader {
        let (writer, mut reader) = output::channel(self.bounds.unread_bytes);
        let api = self.clone();
        let work = async move {
            let served = match requests.as_slice() {
                [request] => serve_one(&api, request, &writer).await,
                all => try_join_all(all.iter().map(|request| serve_one(&api, request, &writer))).await.map(drop),
            };
            writer.end(served);
        };
        reader.hold(match stream {
            true => Task::Apart(tokio::spawn(work).abort_handle()),
            false => Task::Within(Box::pin(work)),
        });
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
    /// The next piece of the answer, or the end. Cancel safe.
    pub(super) async fn next(&mut self) -> Next {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// See [`Self::next`].
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if self.best_of == self.n {
            return self.poll_received(cx);
        }
        if self.best.is_none() {
            let all = ready!(self.poll_whole(cx))?;
            self.best = Some(best(all, self.best_of, self.n));
        }
        Poll::Ready(Ok(self.best.as_mut().and_then(VecDeque::pop_front)))
    }

    /// The next piece that was generated, or the end.
    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        Poll::Ready(match ready!(self.reader.poll_next(cx)) {
            Item::Piece(piece) if self.prompt_only => {
                let finish = Some(openai::Finish::length());
                Ok(Some(Piece { index: piece.index, finish, ..Piece::default() }))
            }
            Item::Piece(piece) => {
                self.completion_tokens += u64::from(piece.tokens);
                self.reasoning_tokens = self.reasoning_tokens.map(|tokens| tokens + u64::from(piece.reasoning_tokens));
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
        })
    }

    /// Every choice of the answer whole, in its order.
    pub(super) async fn collect(&mut self) -> Result<Vec<Piece>, ApiError> {
        if self.best_of == self.n {
            return poll_fn(|cx| self.poll_whole(cx)).await;
        }
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await? {
            whole.push(piece);
        }
        Ok(whole)
    }

    /// All that is generated, every choice whole.
    fn poll_whole(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Piece>, ApiError>> {
        if self.gathered.is_empty() {
            let choices = self.prompts.len() as u32 * self.best_of;
            self.gathered = (0..choices).map(|index| Piece { index, ..Piece::default() }).collect();
        }
        while let Some(piece) = ready!(self.poll_received(cx))? {
            if let Some(choice) = self.gathered.get_mut(piece.index as usize) {
                choice.extend(piece);
            }
        }
        Poll::Ready(Ok(mem::take(&mut self.gathered)))
    }

    /// The vectors of all prompts, once they are computed.
    pub(super) async fn vectors(&mut self) -> Result<Vec<Vec<f32>>, ApiError> {
        while poll_fn(|cx| self.poll_received(cx)).await?.is_some() {}
        let missing = || ApiError::new(openai::ErrorKind::Internal, "internal error");
        (0..self.prompts.len() as u32).map(|prompt| self.reader.take_vector(prompt).ok_or_else(missing)).collect()
    }

    /// Silence after which a stream says that it is still there.
    pub(super) fn silence(&self) -> Duration {
        self.ending.api.bounds.silence
    }

    /// So far.
    pub(super) fn usage(&self) -> Usage {
        let prompt: u64 = self.prompts.iter().map(|prompt| prompt.len() as u64).sum();
        let usage = Usage::new(prompt, self.completion_tokens, self.reader.cached_tokens().min(prompt));
        self.reasoning_tokens.map_or(usage, |tokens| usage.with_reasoning(tokens))
    }

    /// The tokens of the prompt that a choice answers, with what was asked of them. Complete once the choice has a piece.
    pub(super) fn prompt_tokens(&self, index: u32) -> Vec<PromptToken> {
        self.style.prompt(self.prompt_of(index), &self.reader.scores(index / self.n.max(1)))
    }

    /// The prompt that a choice answers.
    pub(super) fn prompt_of(&self, index: u32) -> &[TokenId] {
        self.prompts.get((index / self.n.max(1)) as usize).map_or(&[], |prompt| prompt)
    }
}

/// No number is the least likely.
fn likelihood(piece: &Piece) -> f64 {
    if piece.logprob_sum.is_nan() { f64::NEG_INFINITY } else { piece.logprob_sum }
}

/// Of each prompt's choices the `n` with the highest summed logprob, best first, numbered as the answer's.
fn best(all: Vec<Piece>, best_of: u32, n: u32) -> VecDeque<Piece> {
    let (best_of, n) = (best_of.max(1) as usize, n as usize);
    let of_prompt = |(prompt, choices): (usize, &[Piece])| {
        let mut choices = choices.to_vec();
        choices.sort_by(|one, other| likelihood(other).total_cmp(&likelihood(one)));
        let numbered = choices.into_iter().take(n).enumerate();
        numbered.map(|(at, piece)| Piece { index: (prompt * n + at) as u32, ..piece }).collect::<Vec<_>>()
    };
    all.chunks(best_of).enumerate().flat_map(of_prompt).collect()
}

/// The token sequences of words that the answer must not contain: as at the start of a text and, where that is another first token, as
/// after a space. The rule is vLLM's: a word that is cut otherwise is not found.
fn bad_words(tokenizer: &Tokenizer, words: &[String]) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let mut sequences = Vec::new();
    for word in words {
        let word = word.trim_start();
        let encode = |text: &str| {
            tokenizer.encode(text, false).map_err(|error| ApiError::bad_field("bad_words", error.to_string()))
        };
        let (bare, spaced) = (encode(word)?, encode(&format!(" {word}"))?);
        if spaced.len() == bare.len() && spaced.first() != bare.first() {
            sequences.push(spaced);
        }
        sequences.push(bare);
    }
    sequences.retain(|tokens| !tokens.is_empty());
    Ok(sequences)
}

/// Prompts share prefixes under an equal salt only; empty = shared by all. What a client or key is told apart by never travels itself.
fn cache_salt(key: Option<&[u8; 32]>, sent: Option<&str>) -> Vec<u8> {
    let salt = [key.map_or(&[][..], |key| key), sent.unwrap_or_default().as_bytes()].concat();
    if salt.is_empty() { salt } else { ChainRoot::new("cache_salt", &salt).next(None, &[]).0.to_vec() }
}

/// What every endpoint that generates does with its started request: an answer as it comes or whole.
///
/// What goes wrong before the first token has its own status; `stream` and `whole` fail with that only.
pub(super) async fn answer<S>(
    api: &Api,
    started: Result<(Generating, S), ApiError>,
    stream: impl AsyncFnOnce(Generating, S) -> Result<Response<Body>, ApiError>,
    whole: impl AsyncFnOnce(Generating, S) -> Result<Response<Body>, ApiError>,
) -> Response<Body> {
    let (generating, state) = match started {
        Ok(started) => started,
        Err(error) => {
            api.metrics().ended(error::outcome(&error));
            return error::response(&error);
        }
    };
    let answered = match generating.stream {
        Some(_) => stream(generating, state).await,
        None => whole(generating, state).await,
    };
    answered.unwrap_or_else(|error| error::response(&error))
}

/// # Errors
/// The text can never fit into the context of so many tokens, if there is one; it need not be encoded to know that.
pub(super) fn check_length(
    tokenizer: &Tokenizer,
    field: &str,
    bytes: usize,
    context: Option<u32>,
) -> Result<(), ApiError> {
    match context.filter(|&tokens| tokenizer.is_more_than(bytes, tokens)) {
        None => Ok(()),
        Some(tokens) => {
            let message = format!("{field}: {bytes} bytes of text are more than the context's {tokens} tokens can be");
            Err(ApiError::bad_field(field, message))
        }
    }
}

/// Long texts that are worked on at once: encoding takes a hundred times their memory.
static LONG_TEXTS: Semaphore = Semaphore::const_new(2);

/// Runs text work where it holds up nobody.
pub(super) async fn off_loop<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= INLINE_BYTES {
        return work();
    }
    let internal = |_| ApiError::new(ErrorKind::Internal, "internal error");
    let waited = if bytes > LONG_BYTES { LONG_TEXTS.acquire().await.ok() } else { None };
    let done = tokio::task::spawn_blocking(work).await.map_err(internal);
    drop(waited);
    done?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_choices_come_back() {
        let sums = [-3.0, -1.0, f64::NEG_INFINITY, -2.0, -2.0, f64::NAN];
        let all = sums.iter().zip(0..).map(|(&logprob_sum, index)| Piece {
            index,
            logprob_sum,
            tokens: index,
            ..Piece::default()
        });
        let found: Vec<_> = best(all.collect(), 3, 2).into_iter().map(|piece| (piece.index, piece.tokens)).collect();
        assert_eq!(found, [(0, 1), (1, 0), (2, 3), (3, 4)]);
    }

    #[test]
    fn salts_keep_keys_and_clients_apart() {
        let (one, two) = ([1; 32], [2; 32]);
        let ways = [(None, None), (None, Some("a")), (Some(&one), None), (Some(&one), Some("a")), (Some(&two), None)];
        let salts: Vec<_> = ways.iter().map(|&(key, sent)| cache_salt(key, sent)).collect();
        assert!(salts[0].is_empty());
        assert!((0..5).all(|a| (0..a).all(|b| salts[a] != salts[b])), "{salts:?}");
        assert!(salts.iter().all(|salt| !salt.windows(8).any(|part| part == [1; 8])), "{salts:?}");
    }
}
