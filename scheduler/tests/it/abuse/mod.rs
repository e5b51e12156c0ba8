//! What hostile clients do to the public port, by the ids of our abuse scenarios. `tests/it` has those that need real
//! processes (`memory.rs` a1, a4, a8; `abuse.rs` a9, a12 to a14; `strangers.rs` a11), `crates/worker` and `crates/transfer` those of their
//! ports (a11).

mod bodies; // a1 to a5, a15
mod connections; // a7 to a10, a16
