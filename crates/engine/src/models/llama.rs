//! Llama 2 and 3: optional biases.

use super::file::JsonFile;
use crate::Error;
use crate::models::Family;

pub(super) fn read(file: &JsonFile) -> Result<Family, Error> {
    let attention_bias = file.flag("attention_bias", false)?;
    Ok(Family {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: file.flag("mlp_bias", false)?,
        ..Family::default()
    })
}
