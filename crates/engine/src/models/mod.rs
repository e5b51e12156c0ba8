//! What a model is, read from its directory.
//!
//! All families are one [`decoder`] with different flags; a family's file says how its `config.json` sets them. A key that would
//! change the arithmetic and that we do not know how to follow is refused, never ignored.

pub(crate) mod decoder;
pub(crate) mod file;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod rope;

use std::path::Path;

use types::TokenId;

pub use rope::{Llama3Scaling, Rope};

use crate::Error;
use file::JsonFile;

/// `config.json` and `generation_config.json`, checked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// As in `architectures`, for example `LlamaForCausalLM`.
    pub architecture: String,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: u32,
    pub rms_norm_eps: f32,
    pub rope: Rope,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    pub family: Family,
    /// From `generation_config.json`, else `config.json`; may be empty.
    pub eos_token_ids: Vec<TokenId>,
}

/// In what the families differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Family {
    /// Biases on the q, k and v projections.
    pub qkv_bias: bool,
    /// A bias on the attention's output projection.
    pub output_bias: bool,
    /// Biases on the three MLP projections.
    pub mlp_bias: bool,
    /// RMS norms over each head of q and k before the rotation.
    pub qk_norm: bool,
    /// Tokens that a token sees, itself included; `None` = all before it.
    pub sliding_window: Option<usize>,
}

type ReadFamily = fn(&JsonFile) -> Result<Family, Error>;

/// Every architecture that we serve.
const FAMILIES: [(&str, ReadFamily); 4] = [
    ("LlamaForCausalLM", llama::read),
    ("MistralForCausalLM", mistral::read),
    ("Qwen2ForCausalLM", qwen2::read),
    ("Qwen3ForCausalLM", qwen3::read),
];

/// Largest width, number of layers, and vocabulary: far above any known model, and low enough that no product overflows.
const WIDTH_MAX: usize = 1 << 20;
const LAYERS_MAX: usize = 1 << 10;
const VOCAB_MAX: usize = 1 << 24;
const POSITIONS_MAX: usize = 1 << 26;

impl ModelConfig {
    /// Reads the configuration of the model in `dir`.
    pub fn load(dir: &Path) -> Result<Self, Error> {
        let file = JsonFile::read(&dir.join("config.json"))?;
        let (architecture, read_family) = architecture(&file)?;
        refuse_unknown_arithmetic(&file)?;
        let hidden_size = file.count("hidden_size", 1..=WIDTH_MAX)?;
        let heads = file.count("num_attention_heads", 1..=WIDTH_MAX)?;
        let kv_heads = file.count_or_none("num_key_value_heads", 1..=heads)?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(file.unsupported("num_key_value_heads", format!("a divisor of num_attention_heads ({heads})")));
        }
        let family = read_family(&file)?;
        check_layer_types(&file, family.sliding_window.is_some())?;
        Ok(Self {
            architecture: architecture.to_owned(),
            hidden_size,
            intermediate_size: file.count("intermediate_size", 1..=WIDTH_MAX)?,
            layers: file.count("num_hidden_layers", 1..=LAYERS_MAX)?,
            heads,
            kv_heads,
            head_dim: head_dim(&file, hidden_size, heads)?,
            vocab_size: file.count("vocab_size", 1..=VOCAB_MAX)?,
            max_position_embeddings: file.count("max_position_embeddings", 1..=POSITIONS_MAX)? as u32,
            rms_norm_eps: file.positive("rms_norm_eps", Some(1e-6))? as f32,
            rope: Rope::read(&file)?,
            tie_word_embeddings: file.flag("tie_word_embeddings", false)?,
            family,
            eos_token_ids: eos_token_ids(dir, &file)?,
        })
    }
}

fn architecture(file: &JsonFile) -> Result<(&'static str, ReadFamily), Error> {
    let named = file.get("architectures").and_then(|list| list.get(0)).and_then(|name| name.as_str());
    let known = FAMILIES.iter().find(|(name, _)| Some(*name) == named);
    known.copied().ok_or_else(|| file.unsupported("architectures", FAMILIES.map(|(name, _)| name).join(", ")))
}

fn refuse_unknown_arithmetic(file: &JsonFile) -> Result<(), Error> {
    if file.get("quantization_config").is_some() {
        return Err(file.unsupported("quantization_config", "bf16, f16 and f32 weights without quantization"));
    }
    if file.get("hidden_act").is_some() && file.text("hidden_act") != Some("silu") {
        return Err(file.unsupported("hidden_act", "silu"));
    }
    Ok(())
}

fn head_dim(file: &JsonFile, hidden_size: usize, heads: usize) -> Result<usize, Error> {
    let given = file.count_or_none("head_dim", 2..=WIDTH_MAX)?;
    if given.is_none() && !hidden_size.is_multiple_of(heads) {
        return Err(
            file.unsupported("hidden_size", format!("a multiple of num_attention_heads ({heads}), or a head_dim"))
        );
    }
    let head_dim = given.unwrap_or(hidden_size / heads);
    if head_dim % 2 != 0 || heads.saturating_mul(head_dim) > WIDTH_MAX {
        let key = if given.is_some() { "head_dim" } else { "hidden_size" };
        return Err(file.unsupported(key, format!("an even head size, and at most {WIDTH_MAX} over all heads")));
    }
    Ok(head_dim)
}

/// `layer_types`, where present, must say the same for every layer.
fn check_layer_types(file: &JsonFile, windowed: bool) -> Result<(), Error> {
    let Some(list) = file.get("layer_types") else { return Ok(()) };
    let wanted = if windowed { "sliding_attention" } else { "full_attention" };
    match list.as_array() {
        Some(list) if list.iter().all(|kind| kind == wanted) => Ok(()),
        _ => Err(file.unsupported("layer_types", format!("{wanted} in every layer"))),
    }
}

fn eos_token_ids(dir: &Path, config: &JsonFile) -> Result<Vec<TokenId>, Error> {
    let path = dir.join("generation_config.json");
    if path.exists() {
        let ids = JsonFile::read(&path)?.token_ids("eos_token_id")?;
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    config.token_ids("eos_token_id")
}

#[cfg(test)]
mod tests;
