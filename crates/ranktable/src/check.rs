//! How entries must fit together.
/// Bounds on what a table may hold, so that nothing is allocated by a foreign number.
#[derive(Debug)]
pub struct Limits;
