//! The chassis both workers sit on: engine thread, identity, health, drain.
//!
//! ```text
//! args ─► config ─► running: load, bind, serve, drain
//!                      │ server: one port ─► control: the scheduler's stream ─► RoleService (P or D), a task per attempt
//!                      └ engine_thread: one thread ─► runner: the pure core ─► Planner (P or D)
//! ```
//!
//! Whatever an attempt holds is a guard inside its task, so ending the task, for whatever reason, gives everything back.

mod args;
mod config;
mod control;
mod cores;
mod engine_thread;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod ledger;
mod place;
mod runner;
mod running;
mod server;

pub use args::WorkerArgs;
pub use config::{Config, ConfigError};
pub use control::{Attempt, AttemptJob, Compiling, Introduction, Order, RoleService};
pub use cores::CpuList;
pub use engine_thread::{EngineHandle, EngineStats, RunningJob};
pub use place::Tables;
pub use runner::{
    Event, FULL_STEP, Failure, Goal, Growth, Happening, Job, KvWatcher, Plan, Planner, PromptStats, QueueStats,
    QueueView, Runner, RunnerConfig, SeqId, SeqView, Stepped, Stepper, check_fits,
};
pub use running::{Loaded, Running, run};
pub use server::port_bounds;
pub use telemetry::Direction;
