//! `/v1/responses`: items in, items out, whole or as named events; kept for a while, so that clients can go on from an answer.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use hyper::{Request, Response};
use openai::{ApiError, ChatMessage, ErrorKind, Responding, ResponsesRequest};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::chat::Prompt;
use super::generate::{Generating, Next, Order, answer};
use super::reading::Reading;
use super::sse::Telling;
use super::{Api, Caller, chat, error, json as json_body, sse};
use crate::answer::Piece;
use crate::stored::{Answer, Name};

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response<Body> {
    let started = start(&api, caller, request).await;
    answer(&api, started, stream, whole).await
}

/// The answer of this id, if it is this caller's and still there.
pub(super) async fn read(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Response<Body> {
    match stored(&api, &caller, &id) {
        Ok(answer) => json_body(&answer.body),
        Err(error) => error::response(&error),
    }
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Response<Body> {
    match api.stored.remove(&name(&caller, &id), Instant::now()) {
        true => json_body(&json!({ "id": id, "object": "response", "deleted": true })),
        false => error::response(&not_stored(&id)),
    }
}

fn name(caller: &Caller, id: &str) -> Name {
    (caller.key.as_ref().map(|key| key.digest()), id.to_owned())
}

fn stored(api: &Api, caller: &Caller, id: &str) -> Result<Arc<Answer>, ApiError> {
    api.stored.get(&name(caller, id), Instant::now()).ok_or_else(|| not_stored(id))
}

fn not_stored(id: &str) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    let message = format!("no answer {shown:?} is stored here; answers are kept for a while, unless store is false");
    ApiError::new(ErrorKind::NotFound, message)
}

/// An answer on its way.
struct Answering {
    reading: Reading,
    responding: Responding,
    keep: Option<Keep>,
}

/// What storing the answer needs.
struct Keep {
    api: Arc<Api>,
    name: Name,
    messages: Vec<ChatMessage>,
}

async fn start(api: &Arc<Api>, caller: Caller, request: Request<Body>) -> Result<(Generating, Answering), ApiError> {
    let arrived = Instant::now();
    let body = api.body(request).await?;
    let mut asked = ResponsesRequest::read(&body, &api.bounds.request)?;
    api.check_model(asked.generation.model.as_deref())?;
    if let Some(previous) = asked.previous.clone() {
        let earlier = stored(api, &caller, &previous);
        let earlier = earlier.map_err(|error| ApiError { param: Some("previous_response_id".to_owned()), ..error })?;
        asked.go_on_from(&earlier.messages, &api.bounds.request)?;
    }
    let reading = Reading::new(&api.dialect, asked.tools.as_ref(), true)?;
    let Prompt { tokens, thoughts } = chat::prompt(api, body.len(), asked.conversation(), false).await?;
    let ResponsesRequest { mut generation, messages, tools, store, repeated, .. } = asked;
    // An id that a client or a proxy says twice must not replace an answer that is kept.
    generation.request_id.get_or_insert_with(|| uuid::Uuid::new_v4().simple().to_string());
    let order = Order {
        caller: caller.clone(),
        kind: "resp_",
        reasoning: thoughts.filter(|_| !generation.is_constrained()),
        shown: api.dialect.marks(&api.tokenizer, tools.is_some()),
        generation,
        prompts: vec![tokens],
        after_prompt: false,
        embed: None,
        arrived,
    };
    let generating = api.launch(order).await?;
    let keep = store.then(|| Keep { api: api.clone(), name: name(&caller, &generating.head.id), messages });
    let responding = Responding::new(generating.head.clone(), repeated);
    Ok((generating, Answering { reading, responding, keep }))
}

impl Answering {
    /// Takes what came; the events for it.
    fn add(&mut self, mut piece: Piece) -> String {
        let parts = self.reading.read(&mut piece);
        self.responding.add(parts, piece.finish)
    }

    /// Takes the end; the last events, and the whole answer, which is kept before the client has it.
    fn close(&mut self, generating: &Generating) -> (String, Value) {
        let events = self.responding.close(generating.usage());
        let body = self.responding.body(generating.usage());
        if let Some(Keep { api, name, mut messages }) = self.keep.take() {
            messages.push(self.responding.message());
            api.stored.put(name, Answer { body: body.clone(), messages }, Instant::now());
        }
        (events, body)
    }
}

async fn whole(mut generating: Generating, mut answering: Answering) -> Result<Response<Body>, ApiError> {
    for piece in generating.collect().await? {
        answering.add(piece);
    }
    let (_, body) = answering.close(&generating);
    Ok(json_body(&body))
}

async fn stream(generating: Generating, answering: Answering) -> Result<Response<Body>, ApiError> {
    sse::respond(Events { generating, answering }).await
}

/// An answer as named events.
struct Events {
    generating: Generating,
    answering: Answering,
}

impl Telling for Events {
    fn generating(&mut self) -> &mut Generating {
        &mut self.generating
    }

    fn opening(&mut self) -> String {
        self.answering.responding.opening()
    }

    fn encode(&mut self, next: Next) -> (String, bool) {
        match next {
            Ok(Some(piece)) => (self.answering.add(piece), true),
            Ok(None) => (self.answering.close(&self.generating).0, false),
            Err(error) => (self.answering.responding.fail(&error), false),
        }
    }
}
