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
mod ports;
mod shares;
mod sse;
mod up;
mod web;

pub use chaos::{Fault, FaultProxy, mutate};
pub use cli::{Cli, main};
pub use ports::hold_port;

/// Of all roles: most of what a scheduler does for a token or a request is to allocate a little, and to hand it to another thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
