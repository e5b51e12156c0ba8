//! The oracle: one process, one sequence at a time, no cluster and no prefix cache.

use kv::BlockPool;
use types::{GenerateSpec, SampledToken};

use crate::{Engine, Error};

/// Generates every choice of `spec`, computing the prompt in steps of `chunk` tokens. One inner list per choice, in order.
pub fn generate(
    _engine: &mut Engine,
    _pool: &BlockPool,
    _spec: &GenerateSpec,
    _chunk: usize,
) -> Result<Vec<Vec<SampledToken>>, Error> {
    unimplemented!()
}
