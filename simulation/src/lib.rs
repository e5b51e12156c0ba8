//! A whole cluster in one thread: production code of every role on a simulated network, under simulated time, with seeded faults.
//!
//! ```text
//! plan (a seed) ─► run: hosts take turns, network delivers, faults come and go ─► check: what must hold during and after
//!                   │ scheduler · prefill · decode: `start`/`serve` as in production, each on a runtime of its own
//!                   └ clients: HTTP over the same network
//! ```
//!
//! Not production code are only the sockets (`net::sim`), the clock, and the model (`worker::fake`, whose tokens depend on every byte
//! of KV that they should depend on and on nothing else). Safety is checked all the time, liveness once the faults have stopped.
//! A run is a function of its seed: one command replays it.

mod ask;
mod check;
mod client;
mod control;
mod grpc;
mod host;
mod links;
mod model;
mod plan;
mod run;
mod tamper;
mod witness;

pub use check::Violation;
pub use model::Model;
pub use plan::{Plan, Sabotage};
pub use run::{Outcome, run};
