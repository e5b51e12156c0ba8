//! What the whole room promises: requests in, answers out.

mod mutants;
mod numbers;
mod requests;
mod shapes;

use crate::{
    ApiError, Bounds, ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingsRequest, EmbeddingsSource, Endpoint,
    GenerateRequest, ModelFacts, ResponsesRequest, TokenizeRequest, ValidChat, ValidCompletion,
};

const FACTS: ModelFacts = ModelFacts { vocab_size: 1000, max_model_len: 4096 };

fn completion(body: &str) -> Result<ValidCompletion, ApiError> {
    CompletionRequest::parse(body.as_bytes(), &Bounds::default())?.validate(&Bounds::default())
}

fn chat(body: &str) -> Result<ValidChat, ApiError> {
    ChatRequest::parse(body.as_bytes(), &Bounds::default())?.validate(&Bounds::default())
}

/// A minimal body with one more field, given as JSON text.
fn with(endpoint: Endpoint, field: &str, json: &str) -> String {
    match endpoint {
        Endpoint::Completions if field == "prompt" => format!(r#"{{"prompt": {json}}}"#),
        // Unknown fields are for those endpoints that ignore them.
        Endpoint::Generate if field == "nothing" => r#"{"prompt": "x"}"#.to_owned(),
        Endpoint::Generate if field == "prompt" => format!(r#"{{"prompt": {json}}}"#),
        Endpoint::Completions | Endpoint::Generate => format!(r#"{{"prompt": "x", "{field}": {json}}}"#),
        Endpoint::Responses if field == "input" => format!(r#"{{"input": {json}}}"#),
        Endpoint::Responses => format!(r#"{{"input": "x", "{field}": {json}}}"#),
        Endpoint::Embeddings if ["input", "messages"].contains(&field) => format!(r#"{{"{field}": {json}}}"#),
        Endpoint::Tokenize if ["prompt", "messages"].contains(&field) => format!(r#"{{"{field}": {json}}}"#),
        Endpoint::Detokenize if field == "tokens" => format!(r#"{{"tokens": {json}}}"#),
        Endpoint::Detokenize => format!(r#"{{"tokens": [1], "{field}": {json}}}"#),
        Endpoint::Chat if field == "messages" => format!(r#"{{"messages": {json}}}"#),
        Endpoint::Chat | Endpoint::Tokenize | Endpoint::Embeddings => {
            format!(r#"{{"messages": [{{"role": "user", "content": "x"}}], "{field}": {json}}}"#)
        }
    }
}

/// Everything that validation decided, in comparable form.
fn decided(endpoint: Endpoint, body: &str) -> Result<String, ApiError> {
    match endpoint {
        Endpoint::Completions => completion(body).map(|valid| format!("{valid:?}")),
        Endpoint::Chat => chat(body).map(|valid| format!("{valid:?}")),
        Endpoint::Responses => {
            ResponsesRequest::read(body.as_bytes(), &Bounds::default()).map(|valid| format!("{valid:?}"))
        }
        Endpoint::Embeddings => {
            EmbeddingsRequest::read(body.as_bytes(), &Bounds::default()).map(|valid| format!("{valid:?}"))
        }
        Endpoint::Generate => {
            GenerateRequest::read(body.as_bytes(), &Bounds::default()).map(|valid| format!("{valid:?}"))
        }
        Endpoint::Tokenize => {
            TokenizeRequest::read(body.as_bytes(), &Bounds::default()).map(|valid| format!("{valid:?}"))
        }
        Endpoint::Detokenize => {
            DetokenizeRequest::read(body.as_bytes(), &Bounds::default()).map(|valid| format!("{valid:?}"))
        }
    }
}

/// Validates, and resolves the sampling of a short prompt.
fn resolved(endpoint: Endpoint, body: &str) -> Result<types::SamplingParams, ApiError> {
    let (generation, prompt) = match endpoint {
        Endpoint::Completions => completion(body).map(|valid| (valid.generation, valid.prompts.into_iter().next()))?,
        Endpoint::Chat => chat(body).map(|valid| (valid.generation, None))?,
        Endpoint::Responses => (ResponsesRequest::read(body.as_bytes(), &Bounds::default())?.generation, None),
        Endpoint::Embeddings => {
            let valid = EmbeddingsRequest::read(body.as_bytes(), &Bounds::default())?;
            let inputs = match valid.source {
                EmbeddingsSource::Inputs { inputs, .. } => inputs,
                EmbeddingsSource::Messages(_) => Vec::new(),
            };
            (valid.generation, inputs.into_iter().next())
        }
        Endpoint::Generate => (GenerateRequest::read(body.as_bytes(), &Bounds::default())?.generation, None),
        // Without sampling: any valid one stands for it.
        Endpoint::Tokenize | Endpoint::Detokenize => {
            return decided(endpoint, body).and_then(|_| resolved(Endpoint::Completions, r#"{"prompt": "x"}"#));
        }
    };
    let name = if endpoint == Endpoint::Embeddings { "input" } else { "prompt" };
    prompt.map_or(Ok(()), |prompt| prompt.check_vocabulary(name, &FACTS))?;
    generation.sampling(10, &FACTS, 7)
}
