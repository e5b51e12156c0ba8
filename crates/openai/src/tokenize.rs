//! `POST /tokenize` and `POST /detokenize`: text to ids and back, without a model.

use serde::Serialize;
use serde_json::{Map, Value};
use types::TokenId;

use crate::check::{Fields, token_id, wrong};
use crate::generation::outside_vocabulary;
use crate::json::parse_object;
use crate::tools::{Form, list_tools};
use crate::{ApiError, Bounds, Conversation, Endpoint, ModelFacts};

/// What to make ids of.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizeRequest {
    pub model: Option<String>,
    pub source: Source,
    /// Say each token's text as well.
    pub return_token_strs: bool,
}

/// Text as it is, or a conversation for the chat template.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    Prompt { text: String, add_special_tokens: bool },
    Messages(Box<Conversation>),
}

/// Body of the answer to [`TokenizeRequest`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenizeResponse {
    pub count: usize,
    /// `None` until a worker has said it.
    pub max_model_len: Option<u32>,
    pub tokens: Vec<TokenId>,
    pub token_strs: Option<Vec<String>>,
}

/// Ids to make text of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetokenizeRequest {
    pub model: Option<String>,
    pub tokens: Vec<TokenId>,
}

/// Body of the answer to [`DetokenizeRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DetokenizeResponse {
    pub prompt: String,
}

impl TokenizeRequest {
    /// Parses and validates a body.
    pub fn read(body: &[u8], bounds: &Bounds) -> Result<Self, ApiError> {
        let object = parse_object(body, bounds)?;
        let fields = Fields::check(&object, Endpoint::Tokenize, bounds)?;
        Ok(Self {
            model: fields.text("model").map(str::to_owned),
            source: read_source(&fields, bounds)?,
            return_token_strs: fields.bool("return_token_strs").unwrap_or(false),
        })
    }
}

impl DetokenizeRequest {
    /// Refuses token ids that the model does not have.
    pub fn check_vocabulary(&self, model: &ModelFacts) -> Result<(), ApiError> {
        match self.tokens.iter().find(|id| **id >= model.vocab_size) {
            Some(id) => Err(outside_vocabulary("tokens", *id, model)),
            None => Ok(()),
        }
    }

    /// Parses and validates a body.
    pub fn read(body: &[u8], bounds: &Bounds) -> Result<Self, ApiError> {
        let object: Map<String, Value> = parse_object(body, bounds)?;
        let fields = Fields::check(&object, Endpoint::Detokenize, bounds)?;
        let tokens = fields.list("tokens", bounds.json_values)?;
        let tokens = tokens.ok_or_else(|| ApiError::bad_field("tokens", "tokens is required"))?;
        Ok(Self {
            model: fields.text("model").map(str::to_owned),
            tokens: tokens.iter().map(|token| token_id("tokens", token)).collect::<Result<_, _>>()?,
        })
    }
}

fn read_source(fields: &Fields<'_>, bounds: &Bounds) -> Result<Source, ApiError> {
    match (fields.get("prompt"), fields.get("messages")) {
        (Some(Value::String(text)), None) => Ok(Source::Prompt {
            text: text.clone(),
            add_special_tokens: fields.bool("add_special_tokens").unwrap_or(true),
        }),
        (Some(prompt), None) => Err(wrong("prompt", "a string", prompt)),
        (None, Some(_)) => {
            let tools = list_tools(fields, Form::Nested, bounds)?.map(Value::from);
            let conversation = Conversation::read(fields, tools, bounds)?;
            Ok(Source::Messages(Box::new(conversation)))
        }
        (Some(_), Some(_)) => Err(ApiError::bad_field("prompt", "send prompt or messages, not both")),
        (None, None) => Err(ApiError::bad_field("prompt", "prompt or messages is required")),
    }
}
