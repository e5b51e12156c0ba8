//! The one transformer decoder that all families are, over any backend.
//!
//! Each rank has its heads, its part of the MLP and of the vocabulary; norms and the embedding are whole on every rank.

use std::ops::Range;

use crate::backend::{Backend, GatedMlp, Heads, Linear, Part};
use crate::models::ModelConfig;
use crate::plan::StepPlan;
use crate::weights::Weights;
use crate::{Error, StepObserver};

/// One rank's part of a model.
pub(crate) struct Decoder<B: Backend> {
    embedding: B::Matrix,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    head: B::Matrix,
    /// This rank's KV heads.
    kv_heads: Range<u32>,
}

struct Layer<B: Backend> {
    attention_norm: B::Vector,
    heads: Heads<B>,
    output: Linear<B>,
    mlp_norm: B::Vector,
    mlp: GatedMlp<B>,
}

impl<B: Backend> Decoder<B> {
    /// Computes the plan's tokens; the backend then holds this rank's part of the logits. Of the last layer, tokens
    /// that are neither sampled nor probed need no more than their keys and values.
    pub(crate) fn forward(&self, backend: &mut B, plan: &StepPlan, observer: &dyn StepObserver) {
        backend.embed(plan, &self.embedding, self.norm_before(0));
        for (index, layer) in self.layers.iter().enumerate() {
            backend.project_heads(&layer.heads);
            backend.rope_and_store(plan, index);
            observer.layer_done(index as u32, self.kv_heads.clone());
            let is_last = index + 1 == self.layers.len();
            if is_last {
                if plan.kept.is_empty() {
                    return;
                }
                backend.keep(plan);
            }
            backend.attend(plan, if is_last { &plan.ends } else { &plan.rows }, index);
            backend.add_attended(&layer.output, &layer.mlp_norm);
            backend.add_gated_mlp(&layer.mlp, self.norm_before(index + 1));
        }
        self.logits(backend, &plan.sampled);
    }

    /// The norm of what this layer reads; past the last layer, the model's own.
    fn norm_before(&self, layer: usize) -> &B::Vector {
        self.layers.get(layer).map_or(&self.norm, |layer| &layer.attention_norm)
    }

    /// The last hidden states, after the last norm, of these tokens, counted among those that the last `forward` kept.
    pub(crate) fn hidden<'a>(&self, backend: &'a mut B, tokens: &[usize]) -> &'a [f32] {
        backend.hidden(tokens)
    }

    /// This rank's part of the logits of these tokens, counted among those that the last `forward` kept.
    pub(crate) fn logits(&self, backend: &mut B, tokens: &[usize]) {
        backend.logits(tokens, &self.head);
    }

    /// Takes rank `rank` of `ranks`; `ranks` divides KV heads and intermediate size.
    pub(crate) fn load(
        config: &ModelConfig,
        weights: &Weights,
        rank: usize,
        ranks: usize,
        backend: &mut B,
    ) -> Result<Self, Error> {
        let mut loader = Loader { config, weights, rank, ranks, backend };
        let layers = (0..config.layers).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = weights.matrix("model.embed_tokens.weight", vocab, hidden)?;
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => weights.matrix("lm_head.weight", vocab, hidden)?,
        };
        let vocabulary = part(vocab, rank, ranks);
        let kv_heads = part(config.kv_heads, rank, ranks);
        Ok(Self {
            layers,
            norm: loader.vector("model.norm.weight", 0..hidden, hidden)?,
            embedding: loader.backend.load_matrix(embedding, Part::Table)?,
            head: loader.backend.load_matrix(head.shard(vocabulary, 0..hidden), Part::Head)?,
            kv_heads: kv_heads.start as u32..kv_heads.end as u32,
        })
    }
}

/// Neighbouring part `rank` of `0..whole`.
pub(crate) fn part(whole: usize, rank: usize, ranks: usize) -> Range<usize> {
    rank * whole / ranks..(rank + 1) * whole / ranks
}

struct Loader<'a, B> {
    config: &'a ModelConfig,
    weights: &'a Weights,
    rank: usize,
    ranks: usize,
    backend: &'a mut B,
}

impl<B: Backend> Loader<'_, B> {
    fn layer(&mut self, index: usize) -> Result<Layer<B>, Error> {
        let prefix = format!("model.layers.{index}.");
        let hidden = self.config.hidden_size;
        Ok(Layer {
            attention_norm: self.vector(&format!("{prefix}input_layernorm.weight"), 0..hidden, hidden)?,
            heads: self.heads(&format!("{prefix}self_attn."))?,
            output: {
                let (config, name) = (self.config, format!("{prefix}self_attn.o_proj"));
                self.inputs(&name, config.heads * config.head_dim, config.family.output_bias)?
            },
            mlp_norm: self.vector(&format!("{prefix}post_attention_layernorm.weight"), 0..hidden, hidden)?,
            mlp: self.mlp(&format!("{prefix}mlp."))?,
        })
    }

    fn heads(&mut self, prefix: &str) -> Result<Heads<B>, Error> {
        let ModelConfig { heads, kv_heads, head_dim, family, .. } = *self.config;
        let mut norm = |name: &str| match family.qk_norm {
            true => self.vector(&format!("{prefix}{name}.weight"), 0..head_dim, head_dim).map(Some),
            false => Ok(None),
        };
        let (q_norm, k_norm) = (norm("q_norm")?, norm("k_norm")?);
        Ok(Heads {
            q: self.outputs(&format!("{prefix}q_proj"), heads * head_dim, family.qkv_bias)?,
            k: self.outputs(&format!("{prefix}k_proj"), kv_heads * head_dim, family.qkv_bias)?,
            v: self.outputs(&format!("{prefix}v_proj"), kv_heads * head_dim, family.qkv_bias)?,
            q_norm,
            k_norm,
        })
    }

    fn mlp(&mut self, prefix: &str) -> Result<GatedMlp<B>, Error> {
        let (width, bias) = (self.config.intermediate_size, self.config.family.mlp_bias);
        Ok(GatedMlp {
            gate: self.outputs(&format!("{prefix}gate_proj"), width, bias)?,
            up: self.outputs(&format!("{prefix}up_proj"), width, bias)?,
            down: self.inputs(&format!("{prefix}down_proj"), width, bias)?,
        })
    }

    /// A projection of `hidden` whose outputs are shared out.
    fn outputs(&mut self, name: &str, outputs: usize, bias: bool) -> Result<Linear<B>, Error> {
        let hidden = self.config.hidden_size;
        let mine = part(outputs, self.rank, self.ranks);
        let matrix = self.weights.matrix(&format!("{name}.weight"), outputs, hidden)?.shard(mine.clone(), 0..hidden);
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), mine, outputs)).transpose()?;
        Ok(Linear { weight: self.backend.load_matrix(matrix, Part::Outputs)?, bias })
    }

    /// A projection to `hidden` whose inputs are shared out. Its bias is added once, after the ranks are summed.
    fn inputs(&mut self, name: &str, inputs: usize, bias: bool) -> Result<Linear<B>, Error> {
        let hidden = self.config.hidden_size;
        let mine = part(inputs, self.rank, self.ranks);
        let matrix = self.weights.matrix(&format!("{name}.weight"), hidden, inputs)?.shard(0..hidden, mine);
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), 0..hidden, hidden)).transpose()?;
        Ok(Linear { weight: self.backend.load_matrix(matrix, Part::Inputs)?, bias })
    }

    /// Elements `mine` of a vector of length `whole`.
    fn vector(&mut self, name: &str, mine: Range<usize>, whole: usize) -> Result<B::Vector, Error> {
        let vector = self.weights.vector(name, whole)?;
        self.backend.load_vector(vector[mine].to_vec())
    }
}
