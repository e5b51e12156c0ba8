//! The chassis both workers sit on: engine thread, identity, health, drain.

mod args;

pub use args::WorkerArgs;
