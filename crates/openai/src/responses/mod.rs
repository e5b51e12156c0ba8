//! `POST /v1/responses`: items in, items out (thoughts, a message, calls), whole or as named events.
//!
//! What an answer said can be gone on from, so it also is the messages that a chat template would be given next time.

mod answer;
mod items;
mod request;

pub use answer::Responding;
pub use request::{Repeated, ResponsesRequest};
