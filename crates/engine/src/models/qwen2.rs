//! Qwen 2 and 2.5: biases on q, k and v.

use super::file::JsonFile;
use crate::Error;
use crate::models::Family;

pub(super) fn read(file: &JsonFile) -> Result<Family, Error> {
    refuse_sliding_window(file)?;
    Ok(Family { qkv_bias: true, ..Family::default() })
}

/// Qwen's window differs from layer to layer. Published models leave it off and keep an unused `sliding_window`.
pub(super) fn refuse_sliding_window(file: &JsonFile) -> Result<(), Error> {
    if file.flag("use_sliding_window", false)? {
        return Err(file.unsupported("use_sliding_window", "false"));
    }
    Ok(())
}
