//! Cluster harness and the integration tests, one binary.

pub mod workers;
