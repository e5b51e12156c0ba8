//! Answers that come in pieces: server-sent events in the order and with the keys that clients rely on.
//!
//! Chat: [`ChatChunk::role`] per choice, [`ChatChunk::part`]..., the last with a finish, [`ChatChunk::usage`] if asked, [`DONE`].
//! Completions: the same without roles. `choices` is empty in the usage chunk only.

use serde::Serialize;
use types::TokenId;

use crate::response::{Finish, Head, StopReason, Usage};
use crate::{ApiError, ChatLogprobs, ChatPart, CompletionLogprobs, TokenLogprob};

/// The event that ends a stream.
pub const DONE: &str = "data: [DONE]\n\n";

/// Most events of a token are shorter.
const EVENT_BYTES: usize = 256;

/// One event: `data: <json>` and an empty line.
pub fn sse_event(chunk: &impl Serialize) -> String {
    let mut event = Vec::with_capacity(EVENT_BYTES);
    event.extend(b"data: ");
    serde_json::to_writer(&mut event, chunk).expect("chunks are strings, numbers and lists, which always serialise");
    event.extend(b"\n\n");
    String::from_utf8(event).expect("JSON is UTF-8")
}

/// The event for an error inside a running stream; [`DONE`] does not follow, so that a cut answer never looks like a whole one.
pub fn sse_error(error: &ApiError) -> String {
    format!("data: {}\n\n", error.body())
}

/// What one choice got since its last chunk.
#[derive(Clone, Copy, Debug, Default)]
pub struct PieceOfText<'a> {
    pub index: u32,
    pub text: &'a str,
    /// When asked for: the tokens of this piece.
    pub logprobs: Option<&'a [TokenLogprob]>,
    /// Characters of this choice sent in earlier chunks (completions' `text_offset`).
    pub text_offset: usize,
    /// With `return_token_ids`: new ids.
    pub token_ids: Option<&'a [TokenId]>,
    /// With `return_token_ids`, on the first chunk of a prompt only.
    pub prompt_token_ids: Option<&'a [TokenId]>,
    /// On the choice's last chunk.
    pub finish: Option<&'a Finish>,
}

/// A chunk of `POST /v1/completions`.
#[derive(Debug, Serialize)]
pub struct CompletionChunk<'a> {
    #[serde(flatten)]
    envelope: Envelope<'a>,
    choices: Vec<CompletionPiece<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// A chunk of `POST /v1/chat/completions`.
#[derive(Debug, Serialize)]
pub struct ChatChunk<'a> {
    #[serde(flatten)]
    envelope: Envelope<'a>,
    choices: Vec<ChatPiece<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
}

#[derive(Debug, Serialize)]
struct Envelope<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
}

#[derive(Debug, Serialize)]
struct CompletionPiece<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<&'a StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [TokenId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
}

#[derive(Debug, Serialize)]
struct ChatPiece<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    /// Outer `None` leaves the key out: it stands on the last chunk only, where it may be null.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Option<&'a StopReason>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [TokenId]>,
}

#[derive(Debug, Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    /// The same under its older name.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta<'a>; 1]>,
}

/// A call's head (id, type, name, no arguments), or more of its arguments.
#[derive(Debug, Serialize)]
struct CallDelta<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta<'a>,
}

#[derive(Debug, Serialize)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

impl<'a> Delta<'a> {
    fn of(part: &'a ChatPart) -> Self {
        match part {
            ChatPart::Content(text) => Self { content: Some(text), ..Self::default() },
            ChatPart::Reasoning(text) => {
                Self { reasoning: Some(text), reasoning_content: Some(text), ..Self::default() }
            }
            ChatPart::Call { index, id, name } => {
                let function = FunctionDelta { name: Some(name), arguments: "" };
                let call = CallDelta { index: *index, id: Some(id), r#type: Some("function"), function };
                Self { tool_calls: Some([call]), ..Self::default() }
            }
            ChatPart::Arguments { index, text } => {
                let function = FunctionDelta { name: None, arguments: text };
                let call = CallDelta { index: *index, id: None, r#type: None, function };
                Self { tool_calls: Some([call]), ..Self::default() }
            }
        }
    }
}

impl<'a> CompletionChunk<'a> {
    pub fn text(head: &'a Head, piece: PieceOfText<'a>) -> Self {
        let choice = CompletionPiece {
            index: piece.index,
            text: piece.text,
            logprobs: piece.logprobs.map(|tokens| CompletionLogprobs::new(tokens, piece.text_offset)),
            finish_reason: piece.finish.map(Finish::reason),
            stop_reason: piece.finish.and_then(Finish::stop),
            token_ids: piece.token_ids,
            prompt_token_ids: piece.prompt_token_ids,
        };
        Self { envelope: Envelope::new(head, "text_completion"), choices: vec![choice], usage: None }
    }

    /// The logprobs of an echoed prompt.
    pub fn with_logprobs(mut self, logprobs: CompletionLogprobs) -> Self {
        if let [choice] = &mut self.choices[..] {
            choice.logprobs = Some(logprobs);
        }
        self
    }

    /// The chunk for `include_usage`.
    pub fn usage(head: &'a Head, usage: Usage) -> Self {
        Self { envelope: Envelope::new(head, "text_completion"), choices: Vec::new(), usage: Some(usage) }
    }

    /// Running usage, for `continuous_usage_stats`.
    pub fn with_usage(mut self, usage: Usage) -> Self {
        self.usage = Some(usage);
        self
    }
}

impl<'a> ChatChunk<'a> {
    /// A choice's first chunk.
    pub fn role(head: &'a Head, index: u32, prompt_token_ids: Option<&'a [TokenId]>) -> Self {
        let delta = Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
        let choice =
            ChatPiece { index, delta, logprobs: None, finish_reason: None, stop_reason: None, token_ids: None };
        Self { prompt_token_ids, ..Self::new(head, vec![choice]) }
    }

    /// A part of the answer. Neither `text` nor `prompt_token_ids` of the piece is looked at.
    pub fn part(head: &'a Head, part: &'a ChatPart, piece: PieceOfText<'a>) -> Self {
        Self::delta(head, Delta::of(part), piece)
    }

    /// Tokens or an end without text: an empty delta, so that nobody counts it as text.
    pub fn silent(head: &'a Head, piece: PieceOfText<'a>) -> Self {
        Self::delta(head, Delta::default(), piece)
    }

    fn delta(head: &'a Head, delta: Delta<'a>, piece: PieceOfText<'a>) -> Self {
        let choice = ChatPiece {
            index: piece.index,
            delta,
            logprobs: piece.logprobs.map(ChatLogprobs::new),
            finish_reason: piece.finish.map(Finish::reason),
            stop_reason: piece.finish.map(Finish::stop),
            token_ids: piece.token_ids,
        };
        Self::new(head, vec![choice])
    }

    /// The chunk for `include_usage`.
    pub fn usage(head: &'a Head, usage: Usage) -> Self {
        Self::new(head, Vec::new()).with_usage(usage)
    }

    /// Running usage, for `continuous_usage_stats`.
    pub fn with_usage(mut self, usage: Usage) -> Self {
        self.usage = Some(usage);
        self
    }

    fn new(head: &'a Head, choices: Vec<ChatPiece<'a>>) -> Self {
        Self { envelope: Envelope::new(head, "chat.completion.chunk"), choices, usage: None, prompt_token_ids: None }
    }
}

impl<'a> Envelope<'a> {
    fn new(head: &'a Head, object: &'static str) -> Self {
        Self { id: &head.id, object, created: head.created, model: &head.model }
    }
}
