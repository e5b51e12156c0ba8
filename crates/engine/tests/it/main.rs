//! The engine as its users call it.

mod refusals;
mod same_bits;
mod support;
