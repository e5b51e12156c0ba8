//! How shipped KV becomes tokens.
