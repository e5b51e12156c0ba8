//! Harness of the integration tests: real clusters, a small HTTP client, and the oracle they are compared with.
//!
//! Every server a test starts listens on loopback on a port that was free, and ends with its guard.

mod client;
mod oracle;
mod process_cluster;
mod random_model;
pub mod raw_h2;
pub mod workers;

pub use client::{Client, Reply, Streamed};
pub use oracle::Oracle;
pub use process_cluster::{Growth, ProcessCluster};
pub use random_model::random_model;

use std::path::{Path, PathBuf};

/// The model directory that ships in the repository.
pub fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../pdserve/model")
}
