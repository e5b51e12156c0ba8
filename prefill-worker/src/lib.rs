//! How a prompt becomes shipped KV.
