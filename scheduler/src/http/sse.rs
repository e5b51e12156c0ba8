//! An answer as server-sent events, in the order that clients rely on.
//!
//! The first item is awaited before the status line goes out, so whatever goes wrong before the first token has its own status.
//! After an error inside the stream there is no `[DONE]`: a cut answer must not look like a whole one.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use hyper::Response;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use openai::{ApiError, ChatChunk, CompletionChunk, DONE, PieceOfText, sse_error, sse_event};

use super::generate::Generating;
use crate::answer::Piece;

/// Which of the two chunk shapes.
pub(super) enum Shape {
    /// With the text to repeat in front of every choice; empty = none.
    Chat { echo: String },
    /// With the text to repeat in front of every choice, one per prompt; empty = none.
    Completion { echo: Vec<String> },
}

struct Events {
    generating: Generating,
    shape: Shape,
    /// Characters sent per choice.
    offsets: Vec<usize>,
}

type Next = Result<Option<Piece>, ApiError>;

/// # Errors
/// What ended the request before its first token.
pub(super) async fn respond(mut generating: Generating, shape: Shape) -> Result<Response<Body>, ApiError> {
    let first = Ok(generating.next().await?);
    let choices = generating.prompts.len() * generating.n as usize;
    let mut events = Events { generating, shape, offsets: vec![0; choices] };
    let opening = events.opening();
    let stream = futures::stream::unfold(Some((events, Some(first), opening)), |state| async move {
        let (mut events, first, opening) = state?;
        let next = match first {
            Some(next) => next,
            None => events.generating.next().await,
        };
        let (text, goes_on) = events.encode(next);
        let text = opening + &text;
        Some((Ok::<_, Infallible>(Bytes::from(text)), goes_on.then(|| (events, None, String::new()))))
    });
    Ok(response(Body::from_stream(stream)))
}

/// A response whose body is events.
pub(super) fn response(events: Body) -> Response<Body> {
    let mut response = Response::new(events);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl Events {
    /// Before the first token: roles, or the echoed prompts.
    fn opening(&mut self) -> String {
        let mut events = String::new();
        for index in 0..self.offsets.len() as u32 {
            let prompt = self.generating.prompt_of(index);
            let prompt = self.generating.token_ids.then_some(prompt);
            match &self.shape {
                // The prompt's ids stand on the very first chunk only.
                Shape::Chat { .. } => {
                    let prompt = prompt.filter(|_| index == 0);
                    events += &sse_event(&ChatChunk::role(&self.generating.head, index, prompt));
                }
                Shape::Completion { echo } => {
                    let text = echo.get((index / self.generating.n) as usize).map_or("", String::as_str);
                    if text.is_empty() && prompt.is_none() {
                        continue;
                    }
                    let piece = PieceOfText { index, text, prompt_token_ids: prompt, ..PieceOfText::default() };
                    events += &sse_event(&CompletionChunk::text(&self.generating.head, piece));
                    self.offsets[index as usize] = text.chars().count();
                }
            }
        }
        events + &self.echoed()
    }

    /// After the roles of a chat: the last message, once per choice.
    fn echoed(&self) -> String {
        let Shape::Chat { echo } = &self.shape else { return String::new() };
        let indices = (0..self.offsets.len() as u32).filter(|_| !echo.is_empty());
        let piece = |index| PieceOfText { index, text: echo, ..PieceOfText::default() };
        indices.map(|index| sse_event(&ChatChunk::content(&self.generating.head, piece(index)))).collect()
    }

    /// The events for what came, and whether more follows.
    fn encode(&mut self, next: Next) -> (String, bool) {
        match next {
            Ok(Some(piece)) => (self.piece(&piece), true),
            Ok(None) => (self.closing(), false),
            Err(error) => (sse_error(&error), false),
        }
    }

    fn piece(&mut self, piece: &Piece) -> String {
        let Some(offset) = self.offsets.get_mut(piece.index as usize) else { return String::new() };
        let shown = PieceOfText {
            index: piece.index,
            text: &piece.text,
            logprobs: self.generating.logprobs.then_some(&piece.logprobs),
            text_offset: *offset,
            token_ids: self.generating.token_ids.then_some(&piece.token_ids),
            prompt_token_ids: None,
            finish: piece.finish.as_ref(),
        };
        *offset += piece.text.chars().count();
        let running = self.generating.stream.is_some_and(|options| options.continuous_usage_stats);
        let usage = running.then(|| self.generating.usage());
        let head = &self.generating.head;
        match (&self.shape, usage) {
            (Shape::Chat { .. }, None) => sse_event(&ChatChunk::content(head, shown)),
            (Shape::Chat { .. }, Some(usage)) => sse_event(&ChatChunk::content(head, shown).with_usage(usage)),
            (Shape::Completion { .. }, None) => sse_event(&CompletionChunk::text(head, shown)),
            (Shape::Completion { .. }, Some(usage)) => sse_event(&CompletionChunk::text(head, shown).with_usage(usage)),
        }
    }

    fn closing(&self) -> String {
        let head = &self.generating.head;
        let asked = self.generating.stream.is_some_and(|options| options.include_usage);
        let usage = match (&self.shape, asked.then(|| self.generating.usage())) {
            (_, None) => String::new(),
            (Shape::Chat { .. }, Some(usage)) => sse_event(&ChatChunk::usage(head, usage)),
            (Shape::Completion { .. }, Some(usage)) => sse_event(&CompletionChunk::usage(head, usage)),
        };
        usage + DONE
    }
}
