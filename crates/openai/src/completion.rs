//! `POST /v1/completions`: one or many prompts as text or token ids.

use serde_json::{Map, Value};
use types::TokenId;

use crate::check::{Fields, at_most, token_id, wrong};
use crate::generation::outside_vocabulary;
use crate::json::parse_object;
use crate::{ApiError, Bounds, Endpoint, Generation, ModelFacts};

/// `max_tokens` of a completion that does not say, as in OpenAI's interface.
pub(crate) const MAX_TOKENS_DEFAULT: u32 = 16;

/// A body as it was sent: a JSON object within the bounds on size and nesting.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    fields: Map<String, Value>,
}

/// A completion request that can be served. Choice index = prompt number x n + choice.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidCompletion {
    pub generation: Generation,
    /// At least one, none empty.
    pub prompts: Vec<Prompt>,
    /// Answer with the prompt's text in front.
    pub echo: bool,
    pub add_special_tokens: bool,
}

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

impl CompletionRequest {
    pub fn parse(body: &[u8], bounds: &Bounds) -> Result<Self, ApiError> {
        Ok(Self { fields: parse_object(body, bounds)? })
    }

    pub fn validate(&self, bounds: &Bounds) -> Result<ValidCompletion, ApiError> {
        let fields = Fields::check(&self.fields, Endpoint::Completions, bounds)?;
        let mut generation = Generation::read(&fields, bounds)?;
        let prompts = read_prompts(&fields, "prompt", bounds)?;
        at_most(
            "prompt",
            "sequences (prompts x best_of)",
            prompts.len() * generation.best_of as usize,
            bounds.choices,
        )?;
        if generation.stream.is_some() && generation.template.beam.is_some() {
            let message = "use_beam_search finds its texts at the end; send stream false";
            return Err(ApiError::bad_field("stream", message));
        }
        let echo = fields.bool("echo").unwrap_or(false);
        generation.template.logprobs = fields.count("logprobs");
        if echo {
            // The echoed prompt's tokens are reported as the answer's are.
            generation.template.prompt_logprobs = generation.prompt_logprobs.max(generation.template.logprobs);
        }
        let max_tokens = generation.max_tokens.get_or_insert(MAX_TOKENS_DEFAULT);
        if *max_tokens == 0 && !echo {
            return Err(ApiError::bad_field("max_tokens", "max_tokens must be at least 1 without echo, got 0"));
        }
        let add_special_tokens = fields.bool("add_special_tokens").unwrap_or(true);
        Ok(ValidCompletion { generation, prompts, echo, add_special_tokens })
    }
}

impl Prompt {
    /// Refuses token ids that the model does not have. `name` is the field's.
    pub fn check_vocabulary(&self, name: &str, model: &ModelFacts) -> Result<(), ApiError> {
        let Self::Tokens(ids) = self else { return Ok(()) };
        match ids.iter().find(|id| **id >= model.vocab_size) {
            Some(id) => Err(outside_vocabulary(name, *id, model)),
            None => Ok(()),
        }
    }
}

/// The prompts of this field.
pub(crate) fn read_prompts(fields: &Fields<'_>, name: &str, bounds: &Bounds) -> Result<Vec<Prompt>, ApiError> {
    let value = fields.get(name).ok_or_else(|| ApiError::bad_field(name, format!("{name} is required")))?;
    let prompts = match value {
        Value::Array(items) if items.first().is_some_and(Value::is_number) => vec![read_prompt(name, value)?],
        Value::Array(items) => {
            at_most(name, "prompts", items.len(), bounds.prompts)?;
            items
                .iter()
                .enumerate()
                .map(|(at, item)| read_prompt(&format!("{name}[{at}]"), item))
                .collect::<Result<_, _>>()?
        }
        _ => vec![read_prompt(name, value)?],
    };
    if prompts.is_empty() {
        return Err(ApiError::bad_field(name, format!("{name} must not be empty")));
    }
    Ok(prompts)
}

/// One string or one list of token ids.
fn read_prompt(name: &str, value: &Value) -> Result<Prompt, ApiError> {
    let prompt = match value {
        Value::String(text) => Prompt::Text(text.clone()),
        Value::Array(ids) => Prompt::Tokens(ids.iter().map(|id| token_id(name, id)).collect::<Result<_, _>>()?),
        _ => return Err(wrong(name, "a string or a list of token ids", value)),
    };
    match &prompt {
        Prompt::Text(text) if text.is_empty() => Err(ApiError::bad_field(name, format!("{name} must not be empty"))),
        Prompt::Tokens(ids) if ids.is_empty() => Err(ApiError::bad_field(name, format!("{name} must not be empty"))),
        _ => Ok(prompt),
    }
}
