//! Qwen 3: norms on q and k, optional biases, a head size of its own.

use super::file::JsonFile;
use super::qwen2::refuse_sliding_window;
use crate::Error;
use crate::models::Family;

pub(super) fn read(file: &JsonFile) -> Result<Family, Error> {
    refuse_sliding_window(file)?;
    let attention_bias = file.flag("attention_bias", false)?;
    Ok(Family { qkv_bias: attention_bias, output_bias: attention_bias, qk_norm: true, ..Family::default() })
}
