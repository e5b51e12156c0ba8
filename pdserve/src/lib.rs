//! The front door: one binary that holds every role, and `up`, which starts a whole cluster by re-running itself once per role.
//!
//! `pdserve` without a command means `up` with the demo model that is embedded in the binary.

mod bench;
mod certs;
mod chaos;
mod cli;
mod demo;
mod kv;
mod parent;
mod sse;
mod up;
mod web;

pub use chaos::{Fault, FaultProxy, mutate};
pub use cli::{Cli, main};
