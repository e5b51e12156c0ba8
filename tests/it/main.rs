//! All integration tests, one binary: a module says what belongs in it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

/// P and D with real models: every hand-over gives `engine::generate`'s tokens and logprobs, bit for bit.
mod parity;
/// P and D over their real ports, without a scheduler: every hand-over ends in the text of one process, or gives everything back.
mod workers;
