//! `POST /generate`, vLLM's plain server: whole texts that begin with the prompt, or a stream of ever longer ones.
//!
//! A stream that fails is cut in the middle of its body, since it has no record for errors: a cut answer must not look like a whole one.

use std::io;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response};
use openai::{ApiError, GenerateRequest, GenerateResponse, Prompt};
use tokio::time::Instant;

use super::completions::{Shown, tokenise};
use super::generate::{Generating, Order, answer, off_loop};
use super::{Api, Caller, json};
use crate::answer::Piece;
use crate::args::Delimiter;
use crate::config::Protocol;

/// Every choice's text so far, prompt included.
struct Texts {
    texts: Vec<String>,
    delimiter: &'static str,
}

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response<Body> {
    let started = start(&api, caller, request).await;
    answer(&api, started, stream, whole).await
}

async fn start(api: &Arc<Api>, caller: Caller, request: Request<Body>) -> Result<(Generating, Texts), ApiError> {
    let arrived = Instant::now();
    let body = api.body(request).await?;
    let GenerateRequest { prompt, generation } = GenerateRequest::read(&body, &api.bounds.request)?;
    let (tokenizer, shown) = (api.tokenizer.clone(), Shown { skip_special: generation.skip_special_tokens });
    let tokenise = move || tokenise(&tokenizer, Prompt::Text(prompt), true, Some(shown));
    let (tokens, prompt) = off_loop(body.len(), tokenise).await?;
    let texts = Texts { texts: vec![prompt; generation.n as usize], delimiter: delimiter(api.protocol) };
    let prompts = vec![tokens];
    let order = Order {
        caller,
        kind: "generate-",
        generation,
        prompts,
        after_prompt: true,
        embed: None,
        reasoning: None,
        shown: Arc::default(),
        arrived,
    };
    Ok((api.launch(order).await?, texts))
}

fn delimiter(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Plain { delimiter: Delimiter::Newline } => "\n",
        Protocol::Plain { delimiter: Delimiter::Nul } | Protocol::OpenAi => "\0",
    }
}

async fn whole(mut generating: Generating, mut texts: Texts) -> Result<Response<Body>, ApiError> {
    generating.collect().await?.iter().for_each(|piece| texts.add(piece));
    Ok(json(&GenerateResponse { text: &texts.texts }))
}

/// # Errors
/// What ended the request before its first token.
async fn stream(mut generating: Generating, texts: Texts) -> Result<Response<Body>, ApiError> {
    let first = Ok(generating.next().await?);
    let records = futures::stream::unfold(Some((generating, texts, Some(first))), |state| async move {
        let (mut generating, mut texts, first) = state?;
        let next = match first {
            Some(next) => next,
            None => generating.next().await,
        };
        match next {
            Ok(Some(piece)) => {
                texts.add(&piece);
                Some((Ok(texts.record()), Some((generating, texts, None))))
            }
            Ok(None) => None,
            Err(error) => Some((Err(io::Error::other(error)), None)),
        }
    });
    let mut response = Response::new(Body::from_stream(records));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

impl Texts {
    fn add(&mut self, piece: &Piece) {
        if let Some(text) = self.texts.get_mut(piece.index as usize) {
            text.push_str(&piece.text);
        }
    }

    fn record(&self) -> Bytes {
        let mut record = serde_json::to_string(&GenerateResponse { text: &self.texts }).unwrap_or_default();
        record.push_str(self.delimiter);
        Bytes::from(record)
    }
}
