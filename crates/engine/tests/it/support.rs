//! Models and engines for the tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::{Engine, EngineConfig, Error};
use kv::BlockPool;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// A golden case of the workspace.
pub(crate) fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case)
}

/// Two threads, blocks of 16, 256 positions, room for all tests.
pub(crate) fn config(dir: &Path) -> EngineConfig {
    EngineConfig {
        model_dir: dir.to_owned(),
        tensor_parallel_size: 1,
        threads: 2,
        block_size: 16,
        quantization: None,
        pack_cache: None,
        kv_dtype: None,
        kv_bytes: Some(8 << 20),
        max_model_len: Some(256),
        max_num_seqs: 8,
        max_num_batched_tokens: 256,
    }
}

pub(crate) fn load(config: &EngineConfig) -> Result<(Engine, BlockPool), Error> {
    let engine = Engine::load(config, &mut |_| ())?;
    let limits = engine.limits();
    Ok((engine, BlockPool::new(limits.blocks_total, limits.block_size)))
}

/// A Llama with a bias on every projection and eight KV heads: what no golden case has. Sizes are odd on purpose.
pub(crate) fn biased_llama(dir: &Path, dtype: Dtype) {
    let (hidden, heads, head_dim, intermediate, vocab) = (36, 16, 6, 56, 91);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": intermediate,
        "num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": head_dim,
        "vocab_size": vocab, "max_position_embeddings": 256, "attention_bias": true, "mlp_bias": true,
        "eos_token_id": [1, 2],
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut shapes = llama_shapes(vocab, hidden, heads * head_dim, 8 * head_dim, intermediate, 2);
    let biases: Vec<_> = shapes
        .iter()
        .filter_map(|(name, shape)| Some((format!("{}_proj.bias", name.strip_suffix("_proj.weight")?), vec![shape[0]])))
        .collect();
    shapes.extend(biases);
    write_random(&dir.join("model.safetensors"), &shapes, 0.4, dtype);
}

/// One layer as wide as those of Qwen2-0.5B, with weights about as large, and a small vocabulary, whose size is returned.
pub(crate) fn wide_llama(dir: &Path) -> u32 {
    let (hidden, heads, kv_heads, head_dim, intermediate, vocab) = (896, 14, 2, 64, 4864, 2048);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": intermediate,
        "num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "vocab_size": vocab, "max_position_embeddings": 256, "eos_token_id": 1,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let shapes = llama_shapes(vocab, hidden, heads * head_dim, kv_heads * head_dim, intermediate, 1);
    write_random(&dir.join("model.safetensors"), &shapes, 0.05, Dtype::F32);
    vocab as u32
}

fn llama_shapes(
    vocab: usize,
    hidden: usize,
    queries: usize,
    keys: usize,
    intermediate: usize,
    layers: usize,
) -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("lm_head.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..layers {
        let prefix = format!("model.layers.{layer}.");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            shapes.push((format!("{prefix}{norm}.weight"), vec![hidden]));
        }
        for (name, outputs, inputs) in [
            ("self_attn.q_proj", queries, hidden),
            ("self_attn.k_proj", keys, hidden),
            ("self_attn.v_proj", keys, hidden),
            ("self_attn.o_proj", hidden, queries),
            ("mlp.gate_proj", intermediate, hidden),
            ("mlp.up_proj", intermediate, hidden),
            ("mlp.down_proj", hidden, intermediate),
        ] {
            shapes.push((format!("{prefix}{name}.weight"), vec![outputs, inputs]));
        }
    }
    shapes
}

/// Values between -`most` and `most`, in f32 or bf16; weights of norms as far from 1.
fn write_random(path: &Path, shapes: &[(String, Vec<usize>)], most: f32, dtype: Dtype) {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * most
    };
    let bytes: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(name, shape)| {
            let base = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            let mut stored = || match dtype {
                Dtype::BF16 => half::bf16::from_f32(base + next()).to_le_bytes().to_vec(),
                _ => (base + next()).to_le_bytes().to_vec(),
            };
            (0..shape.iter().product()).flat_map(|_: usize| stored()).collect()
        })
        .collect();
    let views: BTreeMap<&str, TensorView<'_>> = shapes
        .iter()
        .zip(&bytes)
        .map(|((name, shape), bytes)| (name.as_str(), TensorView::new(dtype, shape.clone(), bytes).unwrap()))
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A copy of the golden case `llama` whose `config.json` has `key` set to `value` (null removes it).
pub(crate) fn changed_llama(dir: &Path, key: &str, value: Value) {
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llama").join(file), dir.join(file)).unwrap();
    }
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    match value {
        Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
        value => config[key] = value,
    }
    std::fs::write(path, config.to_string()).unwrap();
}
