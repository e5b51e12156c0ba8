//! The engine as its users call it.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod amx;
mod packed;
mod refusals;
mod same_bits;
mod support;
