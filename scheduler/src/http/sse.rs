//! An answer as server-sent events, in the order that clients rely on.
//!
//! The first item is awaited before the status line goes out, so whatever goes wrong before the first token has its own status.
//! After an error inside the stream there is no `[DONE]`: a cut answer must not look like a whole one.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use hyper::Response;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use openai::{ApiError, ChatChunk, ChatPart, CompletionChunk, DONE, PieceOfText, Usage, sse_error, sse_event};

use super::generate::Generating;
use super::reading::Reading;
use crate::answer::Piece;

/// Which of the two chunk shapes.
pub(super) enum Shape {
    /// With the text to repeat in front of every choice (empty = none), and how far each choice is read.
    Chat { echo: String, readings: Vec<Reading> },
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
        let Shape::Chat { echo, .. } = &self.shape else { return String::new() };
        let indices = (0..self.offsets.len() as u32).filter(|_| !echo.is_empty());
        let piece = |index| PieceOfText { index, ..PieceOfText::default() };
        let part = ChatPart::Content(echo.clone());
        indices.map(|index| sse_event(&ChatChunk::part(&self.generating.head, &part, piece(index)))).collect()
    }

    /// The events for what came, and whether more follows.
    fn encode(&mut self, next: Next) -> (String, bool) {
        match next {
            Ok(Some(piece)) => (self.piece(piece), true),
            Ok(None) => (self.closing(), false),
            Err(error) => (sse_error(&error), false),
        }
    }

    fn piece(&mut self, mut piece: Piece) -> String {
        let at = piece.index as usize;
        let Some(offset) = self.offsets.get_mut(at) else { return String::new() };
        let text_offset = *offset;
        *offset += piece.text.chars().count();
        let parts = match &mut self.shape {
            Shape::Chat { readings, .. } => readings.get_mut(at).map(|reading| reading.read(&mut piece)),
            Shape::Completion { .. } => None,
        };
        let shown = PieceOfText {
            index: piece.index,
            text: &piece.text,
            logprobs: self.generating.logprobs.then_some(&piece.logprobs),
            text_offset,
            token_ids: self.generating.token_ids.then_some(&piece.token_ids),
            prompt_token_ids: None,
            finish: piece.finish.as_ref(),
        };
        match parts {
            Some(parts) => self.parts(&parts, shown),
            None => {
                let chunk = CompletionChunk::text(&self.generating.head, shown);
                sse_event(&self.running_usage().into_iter().fold(chunk, CompletionChunk::with_usage))
            }
        }
    }

    /// A chunk for each part. What is said of the tokens stands on the first, the finish on the last.
    fn parts(&self, parts: &[ChatPart], piece: PieceOfText<'_>) -> String {
        let head = &self.generating.head;
        let mut chunks: Vec<ChatChunk<'_>> = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let first = if at == 0 { piece } else { PieceOfText { index: piece.index, ..PieceOfText::default() } };
            let finish = piece.finish.filter(|_| at + 1 == parts.len());
            chunks.push(ChatChunk::part(head, part, PieceOfText { finish, ..first }));
        }
        let silent = parts.is_empty();
        if silent && (piece.finish.is_some() || piece.logprobs.is_some() || piece.token_ids.is_some()) {
            chunks.push(ChatChunk::silent(head, piece));
        }
        let usage = self.running_usage();
        let event = |chunk| sse_event(&usage.into_iter().fold(chunk, ChatChunk::with_usage));
        chunks.into_iter().map(event).collect()
    }

    /// With `continuous_usage_stats`.
    fn running_usage(&self) -> Option<Usage> {
        let running = self.generating.stream.is_some_and(|options| options.continuous_usage_stats);
        running.then(|| self.generating.usage())
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
