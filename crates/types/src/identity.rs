//! What P and D must agree on, compared field by field so that a refusal names the field with both values.

use std::fmt;

/// The model as an instance loaded it. Two instances may exchange KV only if these are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelIdentity {
    /// Over config, tensor names, shapes and sampled weight bytes.
    pub digest: String,
    pub architecture: String,
    /// Dtype of the weights as stored, for example `bf16`.
    pub dtype: String,
    pub kv_dtype: String,
    pub layers: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub vocab_size: u32,
    /// Every rope parameter in one line.
    pub rope: String,
    /// 0 = none.
    pub sliding_window: u32,
    pub max_model_len: u32,
}

/// What may differ between instances of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Limits {
    pub block_size: u32,
    pub blocks_total: u32,
    pub tensor_parallel_size: u32,
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: u32,
    /// The instruction-set level of the arithmetic, for example `avx512`. Levels round differently, so a text that moves from one to
    /// another may go on differently.
    pub instructions: String,
}

/// One field on which two sides differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub field: &'static str,
    pub ours: String,
    pub theirs: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ours is {}, theirs is {}", self.field, self.ours, self.theirs)
    }
}

impl ModelIdentity {
    /// Every field on which `self` (ours) and `theirs` differ; empty means compatible.
    pub fn mismatches(&self, theirs: &ModelIdentity) -> Vec<Mismatch> {
        let mut found = Vec::new();
        let mut compare = |field, ours: &dyn fmt::Display, theirs: &dyn fmt::Display| {
            let (ours, theirs) = (ours.to_string(), theirs.to_string());
            if ours != theirs {
                found.push(Mismatch { field, ours, theirs });
            }
        };
        compare("architecture", &self.architecture, &theirs.architecture);
        compare("layers", &self.layers, &theirs.layers);
        compare("heads", &self.heads, &theirs.heads);
        compare("kv_heads", &self.kv_heads, &theirs.kv_heads);
        compare("head_dim", &self.head_dim, &theirs.head_dim);
        compare("vocab_size", &self.vocab_size, &theirs.vocab_size);
        compare("dtype", &self.dtype, &theirs.dtype);
        compare("kv_dtype", &self.kv_dtype, &theirs.kv_dtype);
        compare("rope", &self.rope, &theirs.rope);
        compare("sliding_window", &self.sliding_window, &theirs.sliding_window);
        compare("max_model_len", &self.max_model_len, &theirs.max_model_len);
        compare("digest", &self.digest, &theirs.digest);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> ModelIdentity {
        ModelIdentity {
            digest: "d".into(),
            architecture: "llama".into(),
            dtype: "bf16".into(),
            kv_dtype: "bf16".into(),
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            vocab_size: 256,
            rope: "theta=10000".into(),
            sliding_window: 0,
            max_model_len: 128,
        }
    }

    #[test]
    fn equal_identities_agree() {
        assert!(identity().mismatches(&identity()).is_empty());
    }

    #[test]
    fn a_mismatch_names_field_and_both_values() {
        let other = ModelIdentity { rope: "theta=500000".into(), ..identity() };
        let found = identity().mismatches(&other);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].to_string(), "rope: ours is theta=10000, theirs is theta=500000");
    }
}
