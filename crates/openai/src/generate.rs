//! `POST /generate` of vLLM's plain server: a prompt and sampling parameters in, texts that begin with the prompt out.

use serde::Serialize;
use serde_json::Value;

use crate::check::{Fields, wrong};
use crate::completion::MAX_TOKENS_DEFAULT;
use crate::error::Shown;
use crate::fields::find;
use crate::json::parse_object;
use crate::{ApiError, Bounds, Endpoint, Generation};

/// A request that can be served.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    pub prompt: String,
    pub generation: Generation,
}

/// The body, and each record of a stream: all texts so far, prompt included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GenerateResponse<'a> {
    pub text: &'a [String],
}

impl GenerateRequest {
    /// Parses and validates a body. Unlike the OpenAI endpoints this one knows all its fields, so others are refused.
    pub fn read(body: &[u8], bounds: &Bounds) -> Result<Self, ApiError> {
        let object = parse_object(body, bounds)?;
        if let Some(name) = object.keys().find(|name| find(Endpoint::Generate, name).is_none()) {
            let name = Shown::text(name);
            return Err(ApiError::bad_field(&name, format!("{name:?} is not a parameter of /generate")));
        }
        let fields = Fields::check(&object, Endpoint::Generate, bounds)?;
        let prompt = match fields.get("prompt") {
            Some(Value::String(prompt)) if !prompt.is_empty() => prompt.clone(),
            Some(Value::String(_)) => return Err(ApiError::bad_field("prompt", "prompt must not be empty")),
            Some(prompt) => return Err(wrong("prompt", "a string", prompt)),
            None => return Err(ApiError::bad_field("prompt", "prompt is required")),
        };
        let mut generation = Generation::read(&fields, bounds)?;
        // Here a null asks for the rest of the context, and only a missing field for the default.
        if !object.contains_key("max_tokens") {
            generation.max_tokens = Some(MAX_TOKENS_DEFAULT);
        }
        Ok(Self { prompt, generation })
    }
}
