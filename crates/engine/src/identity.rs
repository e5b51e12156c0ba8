//! What P and D must agree on, from the config and the weights.

use kv::KvDtype;
use types::ModelIdentity;

use crate::models::ModelConfig;
use crate::weights::Weights;

/// Bytes read at each end of a tensor: enough to tell models apart, few enough that loading stays fast.
const SAMPLE_BYTES: usize = 4096;

/// `dtype` is that of the embedding.
pub(crate) fn identity(
    config: &ModelConfig,
    weights: &Weights,
    dtype: &str,
    kv_dtype: KvDtype,
    max_model_len: u32,
) -> ModelIdentity {
    ModelIdentity {
        digest: digest(config, weights),
        architecture: config.architecture.clone(),
        dtype: dtype.to_owned(),
        kv_dtype: kv_dtype.as_str().to_owned(),
        layers: config.layers as u32,
        heads: config.heads as u32,
        kv_heads: config.kv_heads as u32,
        head_dim: config.head_dim as u32,
        vocab_size: config.vocab_size as u32,
        rope: config.rope.to_string(),
        sliding_window: config.family.sliding_window.unwrap_or(0) as u32,
        max_model_len,
    }
}

/// Over the facts that decide the arithmetic, and every tensor's name, dtype, shape and both ends.
pub(crate) fn digest(config: &ModelConfig, weights: &Weights) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("pdserve model digest, version 1");
    let family = config.family;
    let facts = format!(
        "{} hidden={} intermediate={} layers={} heads={} kv_heads={} head_dim={} vocab={} eps={:e} tied={} {} {family:?}",
        config.architecture,
        config.hidden_size,
        config.intermediate_size,
        config.layers,
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.vocab_size,
        config.rms_norm_eps,
        config.tie_word_embeddings,
        config.rope,
    );
    update(&mut hasher, facts.as_bytes());
    for (name, stored) in weights.iter() {
        update(&mut hasher, name.as_bytes());
        update(&mut hasher, format!("{:?} {:?}", stored.dtype, stored.shape).as_bytes());
        let bytes = stored.bytes();
        update(&mut hasher, &bytes[..bytes.len().min(SAMPLE_BYTES)]);
        update(&mut hasher, &bytes[bytes.len().saturating_sub(SAMPLE_BYTES)..]);
    }
    hasher.finalize().to_hex().to_string()
}

/// Length first, so that no two sequences of fields hash alike.
fn update(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
