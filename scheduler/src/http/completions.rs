//! `POST /v1/completions`: one or many prompts, each with n choices.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use hyper::{Request, Response};
use openai::{
    ApiError, CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionResponse, Finish, Prompt,
    PromptLogprobs, ValidCompletion,
};
use text::Tokenizer;
use tokio::time::Instant;
use types::TokenId;

use super::generate::{Generating, Order, answer, check_length, off_loop};
use super::sse::{self, Shape};
use super::{Api, Caller, json};
use crate::answer::Piece;

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response<Body> {
    let started = start(&api, caller, request).await;
    answer(&api, started, stream, whole).await
}

/// The running request, and what to repeat in front of its answers.
async fn start(api: &Arc<Api>, caller: Caller, request: Request<Body>) -> Result<(Generating, Echo), ApiError> {
    let arrived = Instant::now();
    let body = api.body(request).await?;
    let completion = CompletionRequest::parse(&body, &api.bounds.request)?.validate(&api.bounds.request)?;
    api.check_model(completion.generation.model.as_deref())?;
    let ValidCompletion { generation, prompts, echo, add_special_tokens } = completion;
    let facts = api.facts();
    for prompt in &prompts {
        prompt.check_vocabulary("prompt", &facts)?;
        if let (Prompt::Text(text), false) = (prompt, generation.truncates()) {
            check_length(&api.tokenizer, "prompt", text.len(), api.max_model_len())?;
        }
    }
    let (tokenizer, skip_special) = (api.tokenizer.clone(), generation.skip_special_tokens);
    let (prompts, texts) = off_loop(body.len(), move || {
        let show = echo.then_some(Shown { skip_special });
        let pairs = prompts.into_iter().map(|prompt| tokenise(&tokenizer, prompt, add_special_tokens, show));
        Ok(pairs.collect::<Result<Vec<_>, _>>()?.into_iter().unzip())
    })
    .await?;
    let echo = Echo { texts, logprobs: generation.echoed_logprobs(echo) };
    let order = Order {
        caller,
        kind: "cmpl-",
        generation,
        prompts,
        after_prompt: true,
        embed: None,
        reasoning: None,
        shown: Arc::default(),
        arrived,
    };
    Ok((api.launch(order).await?, echo))
}

/// The prompts' texts, to be repeated in front of every choice.
pub(super) struct Echo {
    /// One per prompt; empty without `echo`.
    texts: Vec<String>,
    /// Report their tokens as the answer's, with so many alternatives.
    logprobs: Option<u32>,
}

impl Echo {
    /// The text of the prompt that a choice answers.
    pub(super) fn text(&self, generating: &Generating, index: u32) -> &str {
        self.texts.get((index / generating.n.max(1)) as usize).map_or("", String::as_str)
    }

    /// Its tokens' logprobs, once the choice has a piece.
    pub(super) fn logprobs(&self, generating: &Generating, index: u32) -> Option<CompletionLogprobs> {
        let chars = self.text(generating, index).chars().count();
        self.logprobs.map(|top| CompletionLogprobs::of_prompt(&generating.prompt_tokens(index), chars, top))
    }
}

/// The prompt's text is shown to the client.
#[derive(Clone, Copy)]
pub(super) struct Shown {
    pub(super) skip_special: bool,
}

/// A prompt as ids and, where it is shown, as text.
pub(super) fn tokenise(
    tokenizer: &Tokenizer,
    prompt: Prompt,
    add_special: bool,
    shown: Option<Shown>,
) -> Result<(Vec<TokenId>, String), ApiError> {
    let (tokens, text) = match prompt {
        Prompt::Text(text) => {
            let tokens = tokenizer.encode(&text, add_special);
            let tokens = tokens.map_err(|error| ApiError::bad_field("prompt", error.to_string()))?;
            (tokens, if shown.is_some() { text } else { String::new() })
        }
        Prompt::Tokens(tokens) => {
            let text = shown.map(|shown| tokenizer.decode(&tokens, shown.skip_special));
            (tokens, text.unwrap_or_default())
        }
    };
    match tokens.is_empty() {
        true => Err(ApiError::bad_field("prompt", "the prompt has no tokens")),
        false => Ok((tokens, text)),
    }
}

async fn stream(generating: Generating, echo: Echo) -> Result<Response<Body>, ApiError> {
    sse::chunks(generating, Shape::Completion { echo }).await
}

/// The answer in one body.
async fn whole(mut generating: Generating, echo: Echo) -> Result<Response<Body>, ApiError> {
    let pieces = generating.collect().await?;
    let choices = pieces.into_iter().map(|piece| choice(&generating, &echo, piece)).collect();
    Ok(json(&CompletionResponse::new(&generating.head, choices, generating.usage())))
}

fn choice(generating: &Generating, echo: &Echo, piece: Piece) -> CompletionChoice {
    let echoed = echo.text(generating, piece.index);
    let logprobs = generating.logprobs.then(|| {
        let answer = CompletionLogprobs::new(&piece.logprobs, echoed.chars().count());
        match echo.logprobs(generating, piece.index) {
            Some(prompt) => prompt.then(answer),
            None => answer,
        }
    });
    let finish = piece.finish.unwrap_or_else(Finish::abort);
    let mut choice = CompletionChoice::new(piece.index, format!("{echoed}{}", piece.text), logprobs, finish);
    if let Some(top) = generating.prompt_logprobs {
        choice = choice.with_prompt_logprobs(PromptLogprobs::new(&generating.prompt_tokens(piece.index), top));
    }
    match generating.token_ids {
        true => choice.with_token_ids(generating.prompt_of(piece.index).to_vec(), piece.token_ids),
        false => choice,
    }
}
