//! The error body every endpoint answers with, and the few ways to make one.
//!
//! A body is at most 4 KiB and shows at most a few characters of what the client sent.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// The `type` of an error, which fixes its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    BadRequest,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    TooLarge,
    UrlTooLong,
    UnsupportedMediaType,
    TooManyRequests,
    Internal,
    NotImplemented,
    Unavailable,
    Timeout,
}

impl ErrorKind {
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::TooLarge => 413,
            Self::UrlTooLong => 414,
            Self::UnsupportedMediaType => 415,
            Self::TooManyRequests => 429,
            Self::Internal => 500,
            Self::NotImplemented => 501,
            Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequestError",
            Self::Unauthorized => "AuthenticationError",
            Self::NotFound => "NotFoundError",
            Self::MethodNotAllowed => "MethodNotAllowedError",
            Self::TooLarge => "RequestEntityTooLargeError",
            Self::UrlTooLong => "RequestUriTooLongError",
            Self::UnsupportedMediaType => "UnsupportedMediaTypeError",
            Self::TooManyRequests => "RateLimitError",
            Self::Internal => "InternalServerError",
            Self::NotImplemented => "NotImplementedError",
            Self::Unavailable => "ServiceUnavailableError",
            Self::Timeout => "TimeoutError",
        }
    }
}

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub kind: ErrorKind,
    pub message: String,
    /// The request field at fault.
    pub param: Option<String>,
    /// Seconds for the `Retry-After` header (429 and 503).
    pub retry_after: Option<u32>,
}

/// Bytes of an error body at most.
const BODY_BYTES_MAX: usize = 4096;

#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: u16,
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, retry_after: None }
    }

    /// 400 that names the field at fault.
    pub fn bad_field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(ErrorKind::BadRequest, message) }
    }

    /// 400 for what has no field, such as broken JSON.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadRequest, message)
    }

    /// 400 for a field whose feature is not built: unconstrained or plain text in its place would be silently wrong.
    pub fn not_supported(param: &str, what: &str) -> Self {
        Self::bad_field(param, format!("{param}: {what} is not supported yet"))
    }

    /// 404 for a model that is not served here.
    pub fn unknown_model(asked: &str, served: &str) -> Self {
        let message = format!("The model `{}` does not exist; this server serves `{served}`.", Shown::text(asked));
        Self { param: Some("model".into()), ..Self::new(ErrorKind::NotFound, message) }
    }

    /// 400 in the words that clients search for. `completion` is what the request asked for, 0 when it left that open.
    pub fn context_length(max_model_len: u32, prompt: usize, completion: u32) -> Self {
        let asked = prompt as u64 + u64::from(completion);
        let message = format!(
            "This model's maximum context length is {max_model_len} tokens. However, you requested {asked} tokens ({prompt} in the prompt, \
             {completion} in the completion). Please reduce the length of the prompt or of the completion."
        );
        Self::bad_request(message)
    }

    /// 429: come back later.
    pub fn overloaded(message: impl Into<String>, retry_after: u32) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(ErrorKind::TooManyRequests, message) }
    }

    /// 503: nothing is wrong with the request, try again.
    pub fn unavailable(message: impl Into<String>, retry_after: u32) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(ErrorKind::Unavailable, message) }
    }

    pub fn status(&self) -> u16 {
        self.kind.status()
    }

    /// `{"error": {...}}`, at most 4 KiB: a longer message is cut.
    pub fn body(&self) -> String {
        let mut message = self.message.as_str();
        loop {
            let inner =
                Inner { message, r#type: self.kind.as_str(), param: self.param.as_deref(), code: self.status() };
            let body = serde_json::to_string(&Body { error: inner }).expect("strings and numbers always serialise");
            if body.len() <= BODY_BYTES_MAX || message.is_empty() {
                return body;
            }
            let half = (0..=message.len() / 2).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message = &message[..half];
        }
    }
}

/// A client's value as an error may show it: numbers as they are, of anything else its kind and size.
pub(crate) struct Shown<'a>(pub(crate) &'a Value);

impl Shown<'_> {
    /// The first characters of a text.
    pub(crate) fn text(text: &str) -> String {
        const CHARS: usize = 48;
        let mut shown: String = text.chars().take(CHARS).collect();
        if shown.len() < text.len() {
            shown.push('…');
        }
        shown
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => f.write_str("null"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Number(value) => write!(f, "{value}"),
            // It may be a prompt, and errors are logged by who gets them.
            Value::String(text) => write!(f, "a string of {} characters", text.chars().count()),
            Value::Array(items) => write!(f, "a list of {}", items.len()),
            Value::Object(entries) => write!(f, "an object of {}", entries.len()),
        }
    }
}
