//! `POST /v1/completions`: one or many prompts, each with n choices.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use hyper::{Request, Response};
use openai::{
    ApiError, CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionResponse, Finish, Prompt,
    ValidCompletion,
};
use text::Tokenizer;
use tokio::time::Instant;
use types::TokenId;

use super::generate::{Generating, Order, answer, off_loop};
use super::sse::{self, Shape};
use super::{Api, Caller, json};

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response<Body> {
    let started = start(&api, caller, request).await;
    answer(&api, started, stream, whole).await
}

/// The running request, and the text to repeat in front of the answers, one per prompt (none without `echo`).
async fn start(api: &Arc<Api>, caller: Caller, request: Request<Body>) -> Result<(Generating, Vec<String>), ApiError> {
    let arrived = Instant::now();
    let body = api.body(request).await?;
    let completion = CompletionRequest::parse(&body, &api.bounds.request)?.validate(&api.bounds.request)?;
    api.check_model(completion.generation.model.as_deref())?;
    let ValidCompletion { generation, prompts, echo, add_special_tokens } = completion;
    let facts = api.facts();
    prompts.iter().try_for_each(|prompt| prompt.check_vocabulary(&facts))?;
    let (tokenizer, skip_special) = (api.tokenizer.clone(), generation.skip_special_tokens);
    let (prompts, texts) = off_loop(body.len(), move || {
        let pairs = prompts.into_iter().map(|prompt| tokenise(&tokenizer, prompt, add_special_tokens, skip_special));
        Ok(pairs.collect::<Result<Vec<_>, _>>()?.into_iter().unzip())
    })
    .await?;
    let echo: Vec<String> = if echo { texts } else { Vec::new() };
    let order = Order {
        caller,
        kind: "cmpl-",
        generation,
        prompts,
        after_prompt: true,
        reasoning: None,
        shown: Arc::default(),
        arrived,
    };
    Ok((api.launch(order).await?, echo))
}

/// A prompt as ids and as text.
pub(super) fn tokenise(
    tokenizer: &Tokenizer,
    prompt: Prompt,
    add_special: bool,
    skip_special: bool,
) -> Result<(Vec<TokenId>, String), ApiError> {
    let (tokens, text) = match prompt {
        Prompt::Text(text) => {
            let tokens = tokenizer.encode(&text, add_special);
            (tokens.map_err(|error| ApiError::bad_field("prompt", error.to_string()))?, text)
        }
        Prompt::Tokens(tokens) => {
            let text = tokenizer.decode(&tokens, skip_special);
            (tokens, text)
        }
    };
    match tokens.is_empty() {
        true => Err(ApiError::bad_field("prompt", "the prompt has no tokens")),
        false => Ok((tokens, text)),
    }
}

async fn stream(generating: Generating, echo: Vec<String>) -> Result<Response<Body>, ApiError> {
    sse::respond(generating, Shape::Completion { echo }).await
}

/// The answer in one body.
async fn whole(mut generating: Generating, echo: Vec<String>) -> Result<Response<Body>, ApiError> {
    let choices = generating.collect().await?.into_iter().map(|piece| {
        let echoed = echo.get((piece.index / generating.n) as usize).map_or("", String::as_str);
        let offset = echoed.chars().count();
        let logprobs = generating.logprobs.then(|| CompletionLogprobs::new(&piece.logprobs, offset));
        let finish = piece.finish.unwrap_or_else(Finish::abort);
        let choice = CompletionChoice::new(piece.index, format!("{echoed}{}", piece.text), logprobs, finish);
        match generating.token_ids {
            true => choice.with_token_ids(generating.prompt_of(piece.index).to_vec(), piece.token_ids),
            false => choice,
        }
    });
    let choices = choices.collect();
    Ok(json(&CompletionResponse::new(&generating.head, choices, generating.usage())))
}
