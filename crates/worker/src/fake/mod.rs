//! A pretended engine for tests: it moves and reads back real KV bytes, and its next token is a pure function of the history it finds
//! there. A block that was shared, copied, shipped, evicted or addressed wrongly changes the tokens, and [`oracle`] says what they
//! must be.

mod beams;
mod engine;
mod instance;
mod script;
mod world;

pub use beams::beams;
pub use engine::{
    FakeEngine, FakeStore, MAX_MODEL_LEN, Pace, VOCAB, oracle, oracle_beams, oracle_scores, oracle_vector,
    oracle_within, spec,
};
pub use instance::{config, loaded, simulated};
pub use script::check_plan;
pub use world::{Kind, Size, World};
