//! All integration tests, one binary: a module says what belongs in it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

/// What hostile clients do to real processes.
mod abuse;
/// The arithmetic of AMX, emulated: a cluster on it, and what rounded inputs cost in accuracy.
mod amx;
/// `docs/bounds.md` against the tables of bounds.
mod bounds;
/// `deploy/` and `docs/` against the binaries: flags, variables, commands, the start script.
mod deploy_flags;
/// Real clusters whose workers die or freeze in the middle.
mod faults;
/// Start-up from rank tables as the original guide does it.
mod guide;
/// Which room may know which.
mod layers;
/// Links that are cut, slow or lie, between real workers and a scheduler in this process.
mod links;
/// What `links` runs on.
mod local_cluster;
/// Every request parameter in every way of serving.
mod matrix;
/// What hostile clients may cost in memory.
mod memory;
/// P and D with real models: every hand-over gives `engine::generate`'s tokens and logprobs, bit for bit.
mod parity;
/// `pdserve up` and HTTP, as a user meets them.
mod product;
/// Weights in fewer bits: what it costs in accuracy, and that nothing else changes.
mod quantized;
/// Who is let in on the ports of real workers.
mod strangers;
/// Texts held to schemas, expressions and grammars.
mod structured;
/// P and D over their real ports, without a scheduler: every hand-over ends in the text of one process, or gives everything back.
mod workers;
