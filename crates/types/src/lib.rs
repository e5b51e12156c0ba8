//! Shared nouns of pdserve: ids, sampling parameters, stages, the model's identity, rows of bounds.
//!
//! Nothing here parses, waits or allocates by a foreign number; the edges (`openai`, `proto`) convert into these types and validate.

mod bounds;
mod identity;
mod ids;
mod sampling;
mod stage;
mod token_set;

pub use bounds::{Bound, Limit};
pub use identity::{Limits, Mismatch, ModelIdentity};
pub use ids::{Epoch, InstanceId, RequestId, RequestKey, Role, TokenId};
pub use sampling::{
    BeamParams, EarlyStopping, FinishReason, GenerateSpec, Grammar, Pooling, SampledToken, SamplingParams, TokenScore,
};
pub use stage::Stage;
pub use token_set::TokenSet;
