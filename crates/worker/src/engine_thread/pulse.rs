//! Signs of life of the engine's thread. A long step gives one for each layer, so only one that stands still is silent for long.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use engine::{Batch, StepObserver, StepOutput};
use kv::BlockId;
use tokio::time::Instant;

use crate::Stepper;

/// When the step that runs was last seen to go on.
pub(super) struct Pulse {
    start: Instant,
    /// Milliseconds after `start`, plus one; 0 = nothing is computed.
    beat: AtomicU64,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), beat: AtomicU64::new(0) }
    }

    pub(super) fn beat(&self) {
        self.beat.store(self.now() + 1, Relaxed);
    }

    /// The step is over.
    pub(super) fn rest(&self) {
        self.beat.store(0, Relaxed);
    }

    /// How long the step that runs has given no sign; nothing if none runs.
    pub(super) fn silence(&self) -> Duration {
        match self.beat.load(Relaxed) {
            0 => Duration::ZERO,
            beat => Duration::from_millis((self.now() + 1).saturating_sub(beat)),
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}

/// A stepper whose layers are noted.
pub(super) struct Beating<'a> {
    pub(super) stepper: &'a mut dyn Stepper,
    pub(super) pulse: &'a Pulse,
}

impl Stepper for Beating<'_> {
    fn step(&mut self, batch: &Batch<'_>, observer: &dyn StepObserver) -> Result<StepOutput, engine::Error> {
        self.stepper.step(batch, &Noting { observer, pulse: self.pulse })
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) {
        self.stepper.copy_block(from, to);
    }
}

struct Noting<'a> {
    observer: &'a dyn StepObserver,
    pulse: &'a Pulse,
}

impl StepObserver for Noting<'_> {
    fn layer_done(&self, layer: u32, heads: Range<u32>) {
        self.pulse.beat();
        self.observer.layer_done(layer, heads);
    }
}
