//! `POST /v1/embeddings`: texts or token ids in, one vector each out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::check::{Fields, wrong};
use crate::completion::read_prompts;
use crate::fields::find;
use crate::json::parse_object;
use crate::{ApiError, Bounds, Conversation, Endpoint, Generation, Head, Prompt};

/// A request that can be served.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingsRequest {
    pub generation: Generation,
    pub source: EmbeddingsSource,
    pub answer: EmbeddingsAnswer,
}

/// What to make vectors of.
#[derive(Clone, Debug, PartialEq)]
pub enum EmbeddingsSource {
    /// At least one, none empty.
    Inputs { inputs: Vec<Prompt>, add_special_tokens: bool },
    /// One text: a conversation in the words of the chat template.
    Messages(Box<Conversation>),
}

/// How the vectors are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingsAnswer {
    pub encoding: Encoding,
    /// Leading numbers of each vector that are kept; `None` = all.
    pub dimensions: Option<u32>,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Float,
    /// Of the numbers as little-endian f32.
    Base64,
}

/// The body of the answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EmbeddingsResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    data: Vec<Embedding>,
    usage: EmbeddingsUsage,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Embedding {
    index: usize,
    object: &'static str,
    embedding: Vector,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct EmbeddingsUsage {
    prompt_tokens: u64,
    total_tokens: u64,
    completion_tokens: u64,
}

impl EmbeddingsRequest {
    /// Parses and validates a body.
    pub fn read(body: &[u8], bounds: &Bounds) -> Result<Self, ApiError> {
        let mut object = parse_object(body, bounds)?;
        // What this endpoint does not know must not reach the code that it shares with others.
        object.retain(|name, _| find(Endpoint::Embeddings, name).is_some());
        let fields = Fields::check(&object, Endpoint::Embeddings, bounds)?;
        let mut generation = Generation::read(&fields, bounds)?;
        // The workers keep room for a token.
        generation.max_tokens = Some(1);
        Ok(Self {
            generation,
            source: read_source(&fields, bounds)?,
            answer: EmbeddingsAnswer { encoding: read_encoding(&fields)?, dimensions: fields.count("dimensions") },
        })
    }
}

fn read_source(fields: &Fields<'_>, bounds: &Bounds) -> Result<EmbeddingsSource, ApiError> {
    match (fields.get("input"), fields.get("messages")) {
        (Some(_), None) => Ok(EmbeddingsSource::Inputs {
            inputs: read_prompts(fields, "input", bounds)?,
            add_special_tokens: fields.bool("add_special_tokens").unwrap_or(true),
        }),
        (None, Some(_)) => {
            let mut conversation = Conversation::read(fields, None, bounds)?;
            // No answer follows.
            conversation.add_generation_prompt = fields.bool("add_generation_prompt").unwrap_or(false);
            Ok(EmbeddingsSource::Messages(Box::new(conversation)))
        }
        (Some(_), Some(_)) => Err(ApiError::bad_field("input", "send input or messages, not both")),
        (None, None) => Err(ApiError::bad_field("input", "input or messages is required")),
    }
}

fn read_encoding(fields: &Fields<'_>) -> Result<Encoding, ApiError> {
    match fields.get("encoding_format").map(|format| (format, format.as_str())) {
        None | Some((_, Some("float"))) => Ok(Encoding::Float),
        Some((_, Some("base64"))) => Ok(Encoding::Base64),
        Some((format, _)) => Err(wrong("encoding_format", "float or base64", format)),
    }
}

impl EmbeddingsResponse {
    /// `vectors` in the order of the inputs, as the workers computed them.
    ///
    /// # Errors
    /// More dimensions are asked for than the model has.
    pub fn new(
        head: &Head,
        vectors: Vec<Vec<f32>>,
        asked: EmbeddingsAnswer,
        prompt_tokens: u64,
    ) -> Result<Self, ApiError> {
        let Head { id, created, model } = head.clone();
        let embedding = |(index, vector): (usize, Vec<f32>)| {
            let vector = unit(cut(vector, asked.dimensions)?);
            let embedding = match asked.encoding {
                Encoding::Float => Vector::Float(vector),
                Encoding::Base64 => Vector::Base64(
                    STANDARD.encode(vector.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>()),
                ),
            };
            Ok(Embedding { index, object: "embedding", embedding })
        };
        let data = vectors.into_iter().enumerate().map(embedding).collect::<Result<_, _>>()?;
        let usage = EmbeddingsUsage { prompt_tokens, total_tokens: prompt_tokens, completion_tokens: 0 };
        Ok(Self { id, object: "list", created, model, data, usage })
    }
}

fn cut(mut vector: Vec<f32>, dimensions: Option<u32>) -> Result<Vec<f32>, ApiError> {
    let wanted = dimensions.map_or(vector.len(), |dimensions| dimensions as usize);
    if wanted > vector.len() {
        let message = format!("dimensions must be at most the model's {}, got {wanted}", vector.len());
        return Err(ApiError::bad_field("dimensions", message));
    }
    vector.truncate(wanted);
    Ok(vector)
}

/// The vector at length 1, so that a dot product is a cosine.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_cut_then_brought_to_length_one() {
        let head = Head { id: "embd-1".into(), created: 5, model: "m".into() };
        let answer = |encoding, dimensions| {
            let asked = EmbeddingsAnswer { encoding, dimensions };
            EmbeddingsResponse::new(&head, vec![vec![3.0, 4.0, 12.0]], asked, 7)
                .map(|response| serde_json::to_value(response).unwrap())
        };
        let whole = answer(Encoding::Float, None).unwrap();
        assert_eq!(whole["data"][0]["embedding"], serde_json::json!([3.0f32 / 13.0, 4.0f32 / 13.0, 12.0f32 / 13.0]));
        let cut = answer(Encoding::Float, Some(2)).unwrap();
        assert_eq!(cut["data"][0]["embedding"], serde_json::json!([0.6f32, 0.8f32]));
        let base64 = answer(Encoding::Base64, Some(2)).unwrap();
        let bytes = STANDARD.decode(base64["data"][0]["embedding"].as_str().unwrap()).unwrap();
        assert_eq!(bytes, [0.6f32.to_le_bytes(), 0.8f32.to_le_bytes()].concat());
        assert_eq!(whole["usage"], serde_json::json!({"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0}));
        let error = answer(Encoding::Float, Some(4)).unwrap_err();
        assert_eq!(error.to_string(), "dimensions must be at most the model's 3, got 4");
        assert_eq!(unit(vec![0.0, 0.0]), [0.0, 0.0]);
    }
}
