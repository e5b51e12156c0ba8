//! Text at the edges of the cluster: tokenizer, chat template, incremental detokeniser, stop strings.
//!
//! Everything is synchronous and cheap to clone; a request's text state (`Detokenizer`, `StopMatcher`) lives in the scheduler and
//! survives a change of worker.

mod decoder;
#[cfg(test)]
mod demo;
mod detokenizer;
mod dialect;
mod error;
mod python;
mod stop;
mod template;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use error::Error;
pub use stop::{StopMatcher, Stopped};
pub use template::{ChatTemplate, Message, RenderOptions};
pub use tokenizer::Tokenizer;
