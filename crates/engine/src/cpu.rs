//! The CPU backend: one rank as a group of threads over mapped or packed weights.

mod linear;
mod packs;

use std::sync::Arc;

use kernels::{Angles, AttentionShape, Isa, KvArena, KvLayer, NewHeads, Pool, RmsNorm, Segments};

use crate::backend::{Backend, GatedMlp, Heads, Linear, Part};
use crate::models::ModelConfig;
use crate::plan::{KvRow, StepPlan};
use crate::ranks::AllReduce;
use crate::weights::Matrix;
use crate::{Error, Quantization};
use linear::{CpuMatrix, Product, Rows, bits, gated_products, products};
pub(crate) use packs::{PackPlace, PackedSoFar, Packs};

pub(crate) struct Cpu {
    isa: Isa,
    pool: Arc<Pool>,
    arena: Arc<KvArena>,
    all_reduce: Arc<AllReduce>,
    rank: usize,
    /// This rank's place in the all-reduce's sequence.
    turn: usize,
    shape: AttentionShape,
    eps: f32,
    hidden: usize,
    ranks: usize,
    quantization: Option<Quantization>,
    packs: Packs,
    values: Values,
}

/// The step's running values; see [`crate::backend`]. Kept from step to step, so that a warm step allocates nothing for them.
#[derive(Default)]
struct Values {
    h: Vec<f32>,
    n: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    a: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// What is added to `h` next.
    delta: Vec<f32>,
    /// Some rows of `n`.
    picked: Vec<f32>,
    logits: Vec<f32>,
    /// The input of products.
    rows: Rows,
    /// The input of the product that ends an MLP.
    activated: Rows,
}

/// What a rank is made of.
pub(crate) struct CpuRank<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) isa: Isa,
    pub(crate) pool: Arc<Pool>,
    pub(crate) arena: Arc<KvArena>,
    pub(crate) all_reduce: Arc<AllReduce>,
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
    pub(crate) quantization: Option<Quantization>,
    /// Where the packed weights are shared.
    pub(crate) pack_place: Option<PackPlace>,
}

impl Cpu {
    pub(crate) fn new(rank: CpuRank<'_>) -> Self {
        let CpuRank { config, isa, pool, arena, all_reduce, rank, ranks, quantization, pack_place } = rank;
        Self {
            isa,
            pool,
            arena,
            all_reduce,
            rank,
            turn: 0,
            shape: AttentionShape {
                heads: config.heads / ranks,
                kv_heads: config.kv_heads / ranks,
                head_dim: config.head_dim,
                window: config.family.sliding_window.unwrap_or(0),
            },
            eps: config.rms_norm_eps,
            hidden: config.hidden_size,
            ranks,
            quantization,
            packs: Packs::new(pack_place),
            values: Values::default(),
        }
    }

    /// This rank's part of the last step's logits, `[sampled token][vocabulary part]`.
    pub(crate) fn logits_mut(&mut self) -> &mut Vec<f32> {
        &mut self.values.logits
    }

    /// What loading packed.
    pub(crate) fn packs(&mut self) -> &mut Packs {
        &mut self.packs
    }

    /// `h += sum over ranks of delta`, plus the bias; `n` = its norm.
    fn add_delta(&mut self, bias: Option<&Vec<f32>>, norm: &[f32]) {
        let Values { h, n, delta, .. } = &mut self.values;
        self.all_reduce.sum(self.rank, &mut self.turn, delta);
        n.resize(h.len(), 0.0);
        let norm = RmsNorm { weight: norm, eps: self.eps };
        kernels::add_rms_norm(self.isa, &self.pool, norm, h, delta, bias.map(Vec::as_slice), n);
    }
}

/// A product with its bias.
fn product<'a>(linear: &'a Linear<Cpu>, out: &'a mut Vec<f32>) -> Product<'a> {
    Product { matrix: &linear.weight, bias: linear.bias.as_deref(), out }
}

/// A rank's part of a sum: the bias is added once, after it.
fn partial_product<'a>(linear: &'a Linear<Cpu>, out: &'a mut Vec<f32>) -> Product<'a> {
    Product { matrix: &linear.weight, bias: None, out }
}

impl Backend for Cpu {
    type Matrix = CpuMatrix;
    type Vector = Vec<f32>;

    fn load_matrix(&mut self, matrix: Matrix, part: Part) -> Result<CpuMatrix, Error> {
        let segments = match part {
            Part::Inputs => Segments::of_rank(matrix.whole_cols(), self.rank, self.ranks),
            Part::Table | Part::Outputs | Part::Head => Segments::whole(matrix.whole_cols()),
        };
        CpuMatrix::load(self.isa, &self.pool, matrix, segments, bits(self.quantization, part), &mut self.packs)
    }

    fn load_vector(&mut self, vector: Vec<f32>) -> Result<Vec<f32>, Error> {
        Ok(vector)
    }

    fn embed(&mut self, plan: &StepPlan, table: &CpuMatrix, norm: &Vec<f32>) {
        let Values { h, n, .. } = &mut self.values;
        let view = table.table().expect("a table is loaded as it is stored");
        h.resize(plan.tokens.len() * self.hidden, 0.0);
        for (out, token) in h.chunks_exact_mut(self.hidden).zip(&plan.tokens) {
            view.copy_row(self.isa, *token as usize, out);
        }
        n.clone_from(h);
        kernels::rms_norm(self.isa, &self.pool, RmsNorm { weight: norm, eps: self.eps }, n);
    }

    fn project_heads(&mut self, weights: &Heads<Self>) {
        let Values { n, q, k, v, rows, .. } = &mut self.values;
        let all = [product(&weights.q, q), product(&weights.k, k), product(&weights.v, v)];
        products(self.isa, &self.pool, rows, n, all);
        for (norm, heads) in [(&weights.q_norm, q), (&weights.k_norm, k)] {
            if let Some(norm) = norm {
                kernels::rms_norm(self.isa, &self.pool, RmsNorm { weight: norm, eps: self.eps }, heads);
            }
        }
    }

    fn rope_and_store(&mut self, plan: &StepPlan, layer: usize) {
        let Values { q, k, v, .. } = &mut self.values;
        let (angles, layer) = (Angles { cos: &plan.cos, sin: &plan.sin }, KvLayer { arena: &self.arena, layer });
        let heads = NewHeads { q, k, v };
        kernels::rope_and_store(self.isa, &self.pool, angles, heads, &layer, plan.kv_rows(&plan.rows));
    }

    fn keep(&mut self, plan: &StepPlan) {
        let Values { h, q, .. } = &mut self.values;
        for (values, width) in [(h, self.hidden), (q, self.shape.heads * self.shape.head_dim)] {
            // Kept tokens are in ascending order, so none is overwritten before it has moved.
            for (to, from) in plan.kept.iter().enumerate() {
                values.copy_within(from * width..(from + 1) * width, to * width);
            }
            values.truncate(plan.kept.len() * width);
        }
    }

    fn attend(&mut self, plan: &StepPlan, rows: &[KvRow], layer: usize) {
        let Values { q, a, .. } = &mut self.values;
        a.resize(q.len(), 0.0);
        let rows = plan.kv_rows(rows);
        let layer = KvLayer { arena: &self.arena, layer };
        kernels::attention(self.isa, &self.pool, &self.shape, rows, &layer, q, a);
    }

    fn add_attended(&mut self, output: &Linear<Self>, norm: &Vec<f32>) {
        let Values { a, delta, rows, .. } = &mut self.values;
        products(self.isa, &self.pool, rows, a, [partial_product(output, delta)]);
        self.add_delta(output.bias.as_ref(), norm);
    }

    fn add_gated_mlp(&mut self, mlp: &GatedMlp<Self>, norm: &Vec<f32>) {
        let Values { n, gate, up, delta, rows, activated, .. } = &mut self.values;
        let gated = [product(&mlp.gate, gate), product(&mlp.up, up)];
        gated_products(self.isa, &self.pool, [rows, activated], n, gated, partial_product(&mlp.down, delta));
        self.add_delta(mlp.down.bias.as_ref(), norm);
    }

    fn hidden(&mut self, tokens: &[usize]) -> &[f32] {
        let Values { n, picked, .. } = &mut self.values;
        picked.clear();
        tokens.iter().for_each(|token| picked.extend_from_slice(&n[token * self.hidden..][..self.hidden]));
        picked
    }

    fn logits(&mut self, tokens: &[usize], head: &CpuMatrix) {
        if tokens.is_empty() {
            return self.values.logits.clear();
        }
        self.hidden(tokens);
        let Values { picked, logits, rows, .. } = &mut self.values;
        products(self.isa, &self.pool, rows, picked, [Product { matrix: head, bias: None, out: logits }]);
    }
}
