//! `POST /tokenize` and `POST /detokenize`: what the model will be given, without asking it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use hyper::{Request, Response};
use openai::{ApiError, DetokenizeRequest, DetokenizeResponse, Source, TokenizeRequest, TokenizeResponse};

use super::generate::off_loop;
use super::{Api, chat, error, json};

pub(super) async fn tokenize(State(api): State<Arc<Api>>, request: Request<Body>) -> Response<Body> {
    match tokens(&api, request).await {
        Ok(body) => json(&body),
        Err(error) => error::response(&error),
    }
}

pub(super) async fn detokenize(State(api): State<Arc<Api>>, request: Request<Body>) -> Response<Body> {
    match text(&api, request).await {
        Ok(body) => json(&body),
        Err(error) => error::response(&error),
    }
}

async fn tokens(api: &Api, request: Request<Body>) -> Result<TokenizeResponse, ApiError> {
    let body = api.body(request).await?;
    let TokenizeRequest { model, source, return_token_strs } = TokenizeRequest::read(&body, &api.bounds.request)?;
    api.check_model(model.as_deref())?;
    let tokenizer = api.tokenizer.clone();
    let tokens = match source {
        Source::Messages(conversation) => chat::prompt(api, body.len(), *conversation, false).await?.tokens,
        Source::Prompt { text, add_special_tokens } => {
            let encode = move || tokenizer.encode(&text, add_special_tokens);
            let encode = move || encode().map_err(|error| ApiError::bad_field("prompt", error.to_string()));
            off_loop(body.len(), encode).await?
        }
    };
    let text_of = |&token| api.tokenizer.token_text(token);
    Ok(TokenizeResponse {
        count: tokens.len(),
        max_model_len: api.max_model_len(),
        token_strs: return_token_strs.then(|| tokens.iter().map(text_of).collect()),
        tokens,
    })
}

async fn text(api: &Api, request: Request<Body>) -> Result<DetokenizeResponse, ApiError> {
    let body = api.body(request).await?;
    let asked = DetokenizeRequest::read(&body, &api.bounds.request)?;
    api.check_model(asked.model.as_deref())?;
    asked.check_vocabulary(&api.facts())?;
    let tokenizer = api.tokenizer.clone();
    let prompt = off_loop(body.len(), move || Ok(tokenizer.decode(&asked.tokens, false))).await?;
    Ok(DetokenizeResponse { prompt })
}
