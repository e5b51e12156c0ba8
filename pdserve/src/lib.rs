//! The front door: one binary with every role, and up to start them all.
