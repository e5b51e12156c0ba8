//! The CPU-only api-server: OpenAI in, a prefill and a decode instance chosen, text streamed out.
//!
//! `request` tells the story of one request from top to bottom; `cluster` and `connection` know which instances are alive;
//! `pairing` prices them; `http` is the door.

mod args;
mod config;

use std::net::SocketAddr;

pub use args::{Args, LocalPrefill};
pub use config::{Bounds, Config, ConfigError, Target, Timings};

/// A scheduler that serves. Dropping it stops it at once; [`Running::shutdown`] drains it first.
pub struct Running {
    pub address: SocketAddr,
}

impl Running {
    /// Stops taking requests, lets those in flight finish within `Timings::drain`, then stops.
    pub async fn shutdown(self) {
        unimplemented!()
    }
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Arguments that do not fit together, a model directory that cannot be read, a port in use.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let running = start(Config::from_args(&args)?).await?;
    running.shutdown().await;
    Ok(())
}

/// Serves in this process; returns once the port is bound.
///
/// # Errors
/// A model directory that cannot be read, a port in use.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    let _ = config;
    unimplemented!()
}
