//! `POST /v1/embeddings`: a vector per text, made where prompts are computed.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use hyper::{Request, Response};
use openai::{ApiError, EmbeddingsAnswer, EmbeddingsRequest, EmbeddingsResponse, EmbeddingsSource};
use tokio::time::Instant;

use super::completions::tokenise;
use super::generate::{Generating, Order, off_loop};
use super::{Api, Caller, chat, error, json};

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response<Body> {
    let (generating, answer) = match start(&api, caller, request).await {
        Ok(started) => started,
        Err(error) => {
            api.metrics().ended(error::outcome(&error));
            return error::response(&error);
        }
    };
    whole(generating, answer).await.unwrap_or_else(|error| error::response(&error))
}

async fn start(
    api: &Arc<Api>,
    caller: Caller,
    request: Request<Body>,
) -> Result<(Generating, EmbeddingsAnswer), ApiError> {
    let arrived = Instant::now();
    let body = api.body(request).await?;
    let EmbeddingsRequest { generation, source, answer } = EmbeddingsRequest::read(&body, &api.bounds.request)?;
    api.check_model(generation.model.as_deref())?;
    let prompts = match source {
        EmbeddingsSource::Messages(conversation) => {
            vec![chat::prompt(api, body.len(), *conversation, false).await?.tokens]
        }
        EmbeddingsSource::Inputs { inputs, add_special_tokens } => {
            let facts = api.facts();
            inputs.iter().try_for_each(|input| input.check_vocabulary("input", &facts))?;
            let tokenizer = api.tokenizer.clone();
            let tokens = move |input| tokenise(&tokenizer, input, add_special_tokens, None).map(|(tokens, _)| tokens);
            off_loop(body.len(), || inputs.into_iter().map(tokens).collect()).await?
        }
    };
    let embed = Some(api.pooling);
    let (reasoning, shown) = (None, Arc::default());
    let order =
        Order { caller, kind: "embd-", generation, prompts, after_prompt: false, embed, reasoning, shown, arrived };
    Ok((api.launch(order).await?, answer))
}

async fn whole(mut generating: Generating, answer: EmbeddingsAnswer) -> Result<Response<Body>, ApiError> {
    let vectors = generating.vectors().await?;
    let usage = generating.usage();
    Ok(json(&EmbeddingsResponse::new(&generating.head, vectors, answer, usage.prompt_tokens)?))
}
