//! The HTTP shapes of the OpenAI interface with the vLLM extras, and their validation into [`types`].
//!
//! A request goes [`CompletionRequest::parse`] (bytes to JSON, bounded) -> `validate` (JSON to [`ValidCompletion`]) ->
//! [`Generation::sampling`] (once the prompt's length is known). Every field stands on one line of the table in `fields.rs`; every
//! bound on one line of [`Bounds`]. What is accepted is honoured: a known field whose feature is not built yet is refused.

mod bounds;
mod chat;
mod check;
mod completion;
mod embeddings;
mod error;
mod fields;
mod generate;
mod generation;
mod json;
mod logprobs;
mod models;
mod openapi;
mod part;
mod response;
mod responses;
mod stream;
mod structured;
mod tokenize;
mod tools;

pub use bounds::{Bound, Bounds};
pub use chat::{ChatMessage, ChatRequest, Conversation, ValidChat};
pub use completion::{CompletionRequest, Prompt, ValidCompletion};
pub use embeddings::{EmbeddingsAnswer, EmbeddingsRequest, EmbeddingsResponse, EmbeddingsSource, Encoding};
pub use error::{ApiError, ErrorKind};
pub use fields::{Endpoint, FIELDS, Field, Kind};
pub use generate::{GenerateRequest, GenerateResponse};
pub use generation::{Generation, ModelFacts, StreamOptions};
pub use logprobs::{
    ChatLogprobs, CompletionLogprobs, PromptLogprobs, PromptScore, PromptToken, TokenChance, TokenLogprob,
};
pub use models::{ModelCard, ModelList};
pub use openapi::openapi;
pub use part::ChatPart;
pub use response::{ChatChoice, ChatResponse, CompletionChoice, CompletionResponse, Finish, Head, StopReason, Usage};
pub use responses::{Repeated, Responding, ResponsesRequest};
pub use stream::{ChatChunk, CompletionChunk, DONE, PieceOfText, sse_error, sse_event};
pub use structured::Structured;
pub use tokenize::{DetokenizeRequest, DetokenizeResponse, Source, TokenizeRequest, TokenizeResponse};
pub use tools::{ToolChoice, Tools};

#[cfg(test)]
mod tests;
