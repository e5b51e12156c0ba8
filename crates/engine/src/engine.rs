//! A loaded model and its KV memory.

use std::sync::Arc;

use kv::{BlockId, KvStore};
use types::{Limits, ModelIdentity, TokenId};

use crate::{Batch, EngineConfig, Error, LoadProgress, MemoryPlan, StepObserver, StepOutput};

/// A model with its KV memory, ready to step.
pub struct Engine {}

impl Engine {
    /// Loads the model, telling `progress` how far it is.
    pub fn load(_config: &EngineConfig, _progress: &mut dyn FnMut(LoadProgress)) -> Result<Engine, Error> {
        unimplemented!()
    }

    /// What P and D must agree on.
    pub fn identity(&self) -> &ModelIdentity {
        unimplemented!()
    }

    pub fn limits(&self) -> Limits {
        unimplemented!()
    }

    pub fn eos_token_ids(&self) -> &[TokenId] {
        unimplemented!()
    }

    /// The KV of all ranks together; may be read and written from other threads while a step runs.
    pub fn kv_store(&self) -> Arc<dyn KvStore> {
        unimplemented!()
    }

    pub fn memory(&self) -> MemoryPlan {
        unimplemented!()
    }

    /// Computes `batch`. An error means that nothing was computed.
    pub fn step(&mut self, _batch: &Batch<'_>, _observer: &dyn StepObserver) -> Result<StepOutput, Error> {
        unimplemented!()
    }

    /// Copies a block in every layer and rank (copy-on-write). Ids outside the store are ignored.
    pub fn copy_block(&self, _from: BlockId, _to: BlockId) {
        unimplemented!()
    }
}
