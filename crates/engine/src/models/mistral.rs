//! Mistral: a sliding window over every layer, or none.

use super::file::JsonFile;
use crate::Error;
use crate::models::{Family, POSITIONS_MAX};

pub(super) fn read(file: &JsonFile) -> Result<Family, Error> {
    Ok(Family { sliding_window: file.count_or_none("sliding_window", 1..=POSITIONS_MAX)?, ..Family::default() })
}
