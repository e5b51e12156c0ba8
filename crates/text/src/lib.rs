//! Text at the edges of the cluster: tokenizer, chat template, incremental detokeniser, stop strings, grammars, calls and thoughts.
//!
//! Everything is synchronous and cheap to clone; a request's text state (`Detokenizer`, `StopMatcher`) lives in the scheduler and
//! survives a change of worker. A `Matcher` is the one
//! thing here that lives in a worker: it turns a grammar into sets of tokens beside the sampler.

mod calls;
mod decoder;
#[cfg(test)]
mod demo;
mod detokenizer;
mod dialect;
mod error;
mod grammar;
mod python;
mod reasoning;
mod stop;
mod template;
mod tokenizer;
mod words;

pub use calls::{Part, ToolFormat, ToolParser};
pub use detokenizer::Detokenizer;
pub use error::Error;
pub use grammar::{GrammarError, Grammars, Matcher};
pub use reasoning::{Parted, ReasoningFormat, ReasoningParser};
pub use stop::{StopMatcher, Stopped};
pub use template::{ChatTemplate, Message, RenderOptions};
pub use tokenizer::Tokenizer;
