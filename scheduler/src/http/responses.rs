//! `POST /v1/responses`: text in, one message out, whole or as named events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use bytes::Bytes;
use hyper::{Request, Response};
use openai::{ApiError, Responding, ResponsesRequest};
use tokio::time::Instant;

use super::generate::{Generating, Order, answer};
use super::{Api, Caller, chat, json, sse};

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response<Body> {
    let started = start(&api, caller, request).await;
    answer(&api, started, stream, whole).await
}

async fn start(api: &Arc<Api>, caller: Caller, request: Request<Body>) -> Result<(Generating, Responding), ApiError> {
    let arrived = Instant::now();
    let body = api.body(request).await?;
    let ResponsesRequest { generation, conversation, repeated } = ResponsesRequest::read(&body, &api.bounds.request)?;
    api.check_model(generation.model.as_deref())?;
    let prompts = vec![chat::prompt(api, body.len(), conversation).await?];
    let order = Order { caller, kind: "resp_", generation, prompts, after_prompt: false, arrived };
    let generating = api.launch(order).await?;
    let responding = Responding::new(generating.head.clone(), repeated);
    Ok((generating, responding))
}

async fn whole(mut generating: Generating, mut responding: Responding) -> Result<Response<Body>, ApiError> {
    for piece in generating.collect().await? {
        responding.add(&piece.text, piece.finish);
    }
    Ok(json(&responding.body(generating.usage())))
}

/// # Errors
/// What ended the request before its first token.
async fn stream(mut generating: Generating, mut responding: Responding) -> Result<Response<Body>, ApiError> {
    let first = Ok(generating.next().await?);
    let opening = responding.opening();
    let events = futures::stream::unfold(Some((generating, responding, Some(first), opening)), |state| async move {
        let (mut generating, mut responding, first, opening) = state?;
        let next = match first {
            Some(next) => next,
            None => generating.next().await,
        };
        let (events, goes_on) = match next {
            Ok(Some(piece)) => (responding.delta(&piece.text, piece.finish), true),
            Ok(None) => (responding.closing(generating.usage()), false),
            Err(error) => (responding.failed(&error), false),
        };
        let events = Bytes::from(opening + &events);
        Some((Ok::<_, Infallible>(events), goes_on.then(|| (generating, responding, None, String::new()))))
    });
    Ok(sse::response(Body::from_stream(events)))
}
