//! Bookkeeping of KV blocks: pool, tables, hash chain, prefix index. No bytes.
