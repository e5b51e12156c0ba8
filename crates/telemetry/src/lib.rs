//! Logs, metrics and trace ids shared by every process.
//!
//! Stages and fields are logged, prompts, answers and keys never. All metric names stand in `metrics.rs`.

mod logging;
mod metrics;
#[cfg(feature = "otlp")]
mod otlp;
#[cfg(not(feature = "otlp"))]
#[path = "otlp_off.rs"]
mod otlp;
mod seldom;
mod trace;

pub use logging::{Error, init};
pub use metrics::{
    CONTENT_TYPE, Direction, GaugeGuard, HandOver, KvPlane, Outcome, SchedulerMetrics, WorkerLoad, WorkerMetrics,
};
pub use otlp::{Exporter, continue_trace};
pub use seldom::Seldom;
pub use trace::{BadTraceparent, TraceContext};
