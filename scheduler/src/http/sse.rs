//! An answer as server-sent events, in the order that clients rely on.
//!
//! The first item is awaited before the status line goes out, so whatever goes wrong before the first token has its own status; but
//! no longer than a silence may last: from then on comments say that the answer is on its way. After an error inside the stream there
//! is no `[DONE]`: a cut answer must not look like a whole one.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use openai::{ApiError, ChatChunk, ChatPart, CompletionChunk, DONE, PieceOfText, Usage, sse_error, sse_event};
use tokio::time::Instant;

use super::completions::Echo;
use super::generate::{Generating, Next};
use super::reading::Reading;
use crate::answer::Piece;
use crate::deadline::Deadline;

/// Which of the two chunk shapes.
pub(super) enum Shape {
    /// With the text to repeat in front of every choice (empty = none), and how far each choice is read.
    Chat {
        echo: String,
        readings: Vec<Reading>,
    },
    Completion {
        echo: Echo,
    },
}

struct Events {
    generating: Generating,
    shape: Shape,
    /// Characters sent per choice; `None` before its first piece.
    offsets: Vec<Option<usize>>,
}

/// Turns an answer into events.
pub(super) trait Telling: Send + Unpin + 'static {
    /// Where the items come from.
    fn generating(&mut self) -> &mut Generating;

    /// Events before those of the first item.
    fn opening(&mut self) -> String;

    /// The events for what came, and whether more follows.
    fn encode(&mut self, next: Next) -> (String, bool);
}

/// Chat or completion as events; see [`respond`].
pub(super) async fn chunks(generating: Generating, shape: Shape) -> Result<Response<Body>, ApiError> {
    let choices = generating.prompts.len() * generating.n as usize;
    respond(Events { generating, shape, offsets: vec![None; choices] }).await
}

/// A response whose body is events, every frame some whole ones.
///
/// # Errors
/// What ended the request before its first token, if that did not take longer than a silence may last.
pub(super) async fn respond<T: Telling>(mut telling: T) -> Result<Response<Body>, ApiError> {
    let silence = telling.generating().silence();
    let first = tokio::time::timeout(silence, telling.generating().next()).await.ok();
    let due = Instant::now() + if first.is_some() { silence } else { Duration::ZERO };
    let first = first.transpose()?.map(Ok);
    let body = Told { telling: Some(telling), first, opened: false, silence, due, timer: Deadline::new(due) };
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// An answer under way: events, and comment lines while there are none, which clients skip, so that no proxy takes the stream for dead.
struct Told<T> {
    /// `None` after the last event.
    telling: Option<T>,
    /// What came before the body was asked for.
    first: Option<Next>,
    opened: bool,
    silence: Duration,
    /// When a comment is, if nothing comes before.
    due: Instant,
    timer: Deadline,
}

impl<T: Telling> Told<T> {
    /// The next events; `None`: there are no more.
    fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<Option<String>> {
        let Some(telling) = &mut self.telling else { return Poll::Ready(None) };
        let next = match self.first.take() {
            Some(first) => first,
            None => ready!(telling.generating().poll_next(cx)),
        };
        let opening = if self.opened { String::new() } else { telling.opening() };
        self.opened = true;
        let (events, goes_on) = telling.encode(next);
        if !goes_on {
            self.telling = None;
        }
        Poll::Ready(Some(if opening.is_empty() { events } else { opening + &events }))
    }
}

impl<T: Telling> hyper::body::Body for Told<T> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.poll_events(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(events)) => Bytes::from(events),
            Poll::Pending => {
                let due = self.due;
                ready!(self.timer.poll(cx, due));
                Bytes::from_static(b": still there\n\n")
            }
        };
        self.due = Instant::now() + self.silence;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.telling.is_none()
    }
}

impl Telling for Events {
    fn generating(&mut self) -> &mut Generating {
        &mut self.generating
    }

    /// Of a chat: roles.
    fn opening(&mut self) -> String {
        let Shape::Chat { .. } = &self.shape else { return String::new() };
        let role = |index| {
            // The prompt's ids stand on the very first chunk only.
            let prompt = (self.generating.token_ids && index == 0).then(|| self.generating.prompt_of(0));
            sse_event(&ChatChunk::role(&self.generating.head, index, prompt))
        };
        let roles: String = (0..self.offsets.len() as u32).map(role).collect();
        roles + &self.echoed()
    }

    fn encode(&mut self, next: Next) -> (String, bool) {
        match next {
            Ok(Some(piece)) => (self.piece(piece), true),
            Ok(None) => (self.closing(), false),
            Err(error) => (sse_error(&error), false),
        }
    }
}

impl Events {
    /// Before the first piece of a completion's choice: the echoed prompt. Returns the characters of its text, too.
    fn echo(&self, index: u32) -> (String, usize) {
        let Shape::Completion { echo } = &self.shape else { return (String::new(), 0) };
        let text = echo.text(&self.generating, index);
        let prompt = self.generating.token_ids.then(|| self.generating.prompt_of(index));
        if text.is_empty() && prompt.is_none() {
            return (String::new(), 0);
        }
        let piece = PieceOfText { index, text, prompt_token_ids: prompt, ..PieceOfText::default() };
        let chunk = CompletionChunk::text(&self.generating.head, piece);
        let event = match echo.logprobs(&self.generating, index) {
            Some(logprobs) => sse_event(&chunk.with_logprobs(logprobs)),
            None => sse_event(&chunk),
        };
        (event, text.chars().count())
    }

    /// After the roles of a chat: the last message, once per choice.
    fn echoed(&self) -> String {
        let Shape::Chat { echo, .. } = &self.shape else { return String::new() };
        let indices = (0..self.offsets.len() as u32).filter(|_| !echo.is_empty());
        let piece = |index| PieceOfText { index, ..PieceOfText::default() };
        let part = ChatPart::Content(echo.clone());
        indices.map(|index| sse_event(&ChatChunk::part(&self.generating.head, &part, piece(index)))).collect()
    }

    fn piece(&mut self, mut piece: Piece) -> String {
        let at = piece.index as usize;
        let (echo, offset) = match self.offsets.get(at) {
            None => return String::new(),
            Some(None) => self.echo(piece.index),
            Some(Some(offset)) => (String::new(), *offset),
        };
        if let Some(sent) = self.offsets.get_mut(at) {
            *sent = Some(offset + piece.text.chars().count());
        }
        let parts = match &mut self.shape {
            Shape::Chat { readings, .. } => readings.get_mut(at).map(|reading| reading.read(&mut piece)),
            Shape::Completion { .. } => None,
        };
        let shown = PieceOfText {
            index: piece.index,
            text: &piece.text,
            logprobs: self.generating.logprobs.then_some(&piece.logprobs),
            text_offset: offset,
            token_ids: self.generating.token_ids.then_some(&piece.token_ids),
            prompt_token_ids: None,
            finish: piece.finish.as_ref(),
        };
        match parts {
            Some(parts) => self.parts(&parts, shown),
            None => {
                let chunk = CompletionChunk::text(&self.generating.head, shown);
                let event = sse_event(&self.running_usage().into_iter().fold(chunk, CompletionChunk::with_usage));
                if echo.is_empty() { event } else { echo + &event }
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
