//! Moves KV blocks from a prefill to a decode instance.
