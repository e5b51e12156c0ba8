//! Logs, metric names and traces shared by every process.
