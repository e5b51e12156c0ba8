//! Models of known shapes with random weights: as heavy as real ones, and there on any machine within seconds.
//!
//! The same shape has the same bytes everywhere. Text that such a model writes is noise; speed does not depend on that.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use half::bf16;
use safetensors::tensor::{Dtype, View, serialize_to_file};
use serde_json::{Value, json};

use crate::demo;

/// Changes whenever what is written does, so that an older copy in the cache is not used.
const VERSION: u32 = 1;
/// Standard deviation of the weights, as models are initialised.
const DEVIATION: f64 = 0.02;
/// Longest sequence.
const POSITIONS: u32 = 32_768;

/// Write a model folder with random weights (once; it is kept in the cache) and print where it is.
///
/// Example: pdserve bench serve mixed -- --model "$(pdserve bench model 0.5b)"
#[derive(Parser, Debug)]
pub(crate) struct Args {
    /// Whose shape the model has
    #[arg(value_enum)]
    shape: Shape,
}

/// A known model's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// Qwen2-0.5B: 0.99 GB in bf16
    #[value(name = "0.5b")]
    Half,
    /// Llama-3.2-1B: 2.5 GB in bf16
    #[value(name = "1b")]
    One,
}

struct Sizes {
    architecture: &'static str,
    model_type: &'static str,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    vocab: usize,
    rope_theta: f64,
    qkv_bias: bool,
}

const HALF: Sizes = Sizes {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    hidden: 896,
    layers: 24,
    heads: 14,
    kv_heads: 2,
    head_dim: 64,
    intermediate: 4864,
    vocab: 151_936,
    rope_theta: 1e6,
    qkv_bias: true,
};

const ONE: Sizes = Sizes {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    hidden: 2048,
    layers: 16,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    intermediate: 8192,
    vocab: 128_256,
    rope_theta: 5e5,
    qkv_bias: false,
};

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    println!("{}", materialise(args.shape)?.display());
    Ok(())
}

/// The model's directory in the cache, written unless it is there.
pub(crate) fn materialise(shape: Shape) -> anyhow::Result<PathBuf> {
    let (name, sizes) = match shape {
        Shape::Half => ("bench-0.5b", HALF),
        Shape::One => ("bench-1b", ONE),
    };
    let cache = demo::cache_dir();
    let target = cache.join(format!("{name}-{VERSION}"));
    if target.is_dir() {
        return Ok(target);
    }
    eprintln!("writing {} ...", target.display());
    let staging = cache.join(format!(".{name}-{}", std::process::id()));
    write(&sizes, &staging).inspect_err(|_| {
        fs::remove_dir_all(&staging).ok();
    })?;
    if let Err(error) = fs::rename(&staging, &target) {
        fs::remove_dir_all(&staging).ok();
        // Another process may have been quicker; that is as good.
        if !target.is_dir() {
            return Err(error).with_context(|| format!("cannot create {}", target.display()));
        }
    }
    Ok(target)
}

fn write(sizes: &Sizes, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let quantiles = Quantiles::new();
    let weights = dir.join("model.safetensors");
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = serialize_to_file(tensors(sizes, &quantiles), Some(format), &weights);
    written.with_context(|| format!("cannot write {}", weights.display()))?;
    for (name, content) in [
        ("config.json", config(sizes)),
        ("generation_config.json", json!({ "eos_token_id": sizes.vocab - 1, "do_sample": false })),
        ("tokenizer.json", tokenizer(sizes)),
        ("tokenizer_config.json", json!({ "clean_up_tokenization_spaces": false })),
    ] {
        let path = dir.join(name);
        fs::write(&path, content.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn config(sizes: &Sizes) -> Value {
    json!({
        "architectures": [sizes.architecture], "model_type": sizes.model_type, "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim, "intermediate_size": sizes.intermediate, "vocab_size": sizes.vocab,
        "tie_word_embeddings": true, "rope_theta": sizes.rope_theta, "rms_norm_eps": 1e-6,
        "max_position_embeddings": POSITIONS, "hidden_act": "silu", "torch_dtype": "bfloat16",
        "eos_token_id": sizes.vocab - 1,
    })
}

/// One word per id, just enough for a server to start and to show that tokens came.
fn tokenizer(sizes: &Sizes) -> Value {
    let vocab: serde_json::Map<_, _> = (0..sizes.vocab).map(|id| (format!("t{id}"), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "t0" },
    })
}

fn tensors<'a>(sizes: &Sizes, quantiles: &'a Quantiles) -> Vec<(String, Tensor<'a>)> {
    let (queries, keys) = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![sizes.vocab, sizes.hidden]),
        ("model.norm.weight".to_owned(), vec![sizes.hidden]),
    ];
    for layer in 0..sizes.layers {
        let mut add =
            |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        for (name, rows) in [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)] {
            add(&format!("self_attn.{name}.weight"), &[rows, sizes.hidden]);
            if sizes.qkv_bias {
                add(&format!("self_attn.{name}.bias"), &[rows]);
            }
        }
        add("self_attn.o_proj.weight", &[sizes.hidden, queries]);
        add("mlp.gate_proj.weight", &[sizes.intermediate, sizes.hidden]);
        add("mlp.up_proj.weight", &[sizes.intermediate, sizes.hidden]);
        add("mlp.down_proj.weight", &[sizes.hidden, sizes.intermediate]);
        add("input_layernorm.weight", &[sizes.hidden]);
        add("post_attention_layernorm.weight", &[sizes.hidden]);
    }
    let tensor = |(seed, (name, shape)): (usize, (String, Vec<usize>))| {
        let content =
            if name.ends_with("norm.weight") { Content::Ones } else { Content::Random(seed as u64, quantiles) };
        (name, Tensor { shape, content })
    };
    shapes.into_iter().enumerate().map(tensor).collect()
}

/// A bf16 tensor whose bytes are made when they are written.
struct Tensor<'a> {
    shape: Vec<usize>,
    content: Content<'a>,
}

enum Content<'a> {
    Ones,
    Random(u64, &'a Quantiles),
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        match &self.content {
            Content::Ones => {
                bytes.chunks_exact_mut(2).for_each(|value| value.copy_from_slice(&bf16::ONE.to_le_bytes()))
            }
            Content::Random(seed, quantiles) => quantiles.fill(*seed, &mut bytes),
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        2 * self.shape.iter().product::<usize>()
    }
}

/// The normal distribution as a table: 16 random bits pick one of its 65,536 quantiles.
struct Quantiles {
    values: Vec<[u8; 2]>,
}

impl Quantiles {
    fn new() -> Self {
        let value = |index: u32| bf16::from_f64(DEVIATION * inverse_normal((f64::from(index) + 0.5) / 65_536.0));
        Self { values: (0..1 << 16).map(|index| value(index).to_le_bytes()).collect() }
    }

    /// Fills with bf16 values that follow from the seed alone (xorshift64*).
    fn fill(&self, seed: u64, bytes: &mut [u8]) {
        let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for four in bytes.chunks_mut(8) {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let random = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
            for (index, value) in four.chunks_exact_mut(2).enumerate() {
                value.copy_from_slice(&self.values[usize::from((random >> (16 * index)) as u16)]);
            }
        }
    }
}

/// The value that a standard normal variable stays below with probability `p`, to three digits (Abramowitz and Stegun 26.2.23).
fn inverse_normal(p: f64) -> f64 {
    let tail = (-2.0 * p.min(1.0 - p).ln()).sqrt();
    let above = 2.515517 + tail * (0.802853 + tail * 0.010328);
    let below = 1.0 + tail * (1.432788 + tail * (0.189269 + tail * 0.001308));
    (tail - above / below).copysign(p - 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: Sizes =
        Sizes { hidden: 64, layers: 2, heads: 4, kv_heads: 2, head_dim: 16, intermediate: 128, vocab: 512, ..HALF };

    #[test]
    fn weights_are_normal_and_follow_from_the_seed() {
        let quantiles = Quantiles::new();
        let draw = |seed| {
            let mut bytes = vec![0; 200_000];
            quantiles.fill(seed, &mut bytes);
            bytes
        };
        let values: Vec<f64> =
            draw(1).chunks_exact(2).map(|bytes| bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64()).collect();
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let deviation = (values.iter().map(|value| value * value).sum::<f64>() / count).sqrt();
        assert!(mean.abs() < 2e-4, "{mean}");
        assert!((deviation / DEVIATION - 1.0).abs() < 0.02, "{deviation}");
        let within = values.iter().filter(|value| value.abs() < DEVIATION).count() as f64 / count;
        assert!((within - 0.6827).abs() < 0.01, "{within}");
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn quantiles_are_those_of_the_normal_distribution() {
        for (p, expected) in [(0.5, 0.0), (0.841_345, 1.0), (0.158_655, -1.0), (0.975, 1.959_96), (0.001, -3.090_23)] {
            assert!((inverse_normal(p) - expected).abs() < 1e-3, "{p}");
        }
    }

    #[test]
    fn a_written_model_is_one_that_loads() {
        let dir = tempfile::tempdir().unwrap();
        for sizes in [TINY, Sizes { qkv_bias: false, architecture: "LlamaForCausalLM", model_type: "llama", ..TINY }] {
            write(&sizes, dir.path()).unwrap();
            let config = engine::EngineConfig {
                model_dir: dir.path().to_owned(),
                tensor_parallel_size: 1,
                threads: 1,
                block_size: 16,
                quantization: None,
                pack_cache: None,
                kv_dtype: None,
                kv_bytes: None,
                max_model_len: Some(64),
                max_num_seqs: 1,
                max_num_batched_tokens: 64,
            };
            let engine = engine::Engine::load(&config, &mut |_| {}).unwrap();
            assert_eq!(engine.identity().vocab_size as usize, sizes.vocab);
        }
    }
}
