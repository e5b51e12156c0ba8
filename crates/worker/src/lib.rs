//! The chassis both workers sit on: engine thread, identity, health, drain.

mod args;
mod runner;

pub use args::WorkerArgs;
#[cfg(any(test, feature = "fake"))]
pub use runner::fake;
pub use runner::{
    Event, Failure, Goal, Happening, Job, KvWatcher, Plan, Planner, PromptStats, QueueStats, QueueView, Runner,
    RunnerConfig, SeqId, SeqView, Stepped, Stepper,
};
