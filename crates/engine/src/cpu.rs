//! The CPU backend: one rank as a group of threads over mapped weights.

use std::sync::Arc;

use kernels::{AttentionShape, Isa, KvArena, KvHalf, Pool, Segments};

use crate::Error;
use crate::backend::{Backend, GatedMlp, Heads, Linear};
use crate::models::ModelConfig;
use crate::plan::{PlanRow, StepPlan};
use crate::ranks::AllReduce;
use crate::weights::Matrix;

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
    /// Where the inputs of the products that ranks share are cut.
    attended: Segments,
    intermediate: Segments,
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
    logits: Vec<f32>,
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
}

impl Cpu {
    pub(crate) fn new(rank: CpuRank<'_>) -> Self {
        let CpuRank { config, isa, pool, arena, all_reduce, rank, ranks } = rank;
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
            attended: Segments::of_rank(config.heads * config.head_dim, rank, ranks),
            intermediate: Segments::of_rank(config.intermediate_size, rank, ranks),
            values: Values::default(),
        }
    }

    /// This rank's part of the last step's logits, `[sampled token][vocabulary part]`.
    pub(crate) fn logits_mut(&mut self) -> &mut Vec<f32> {
        &mut self.values.logits
    }

    /// `h += sum over ranks of delta`, plus the bias.
    fn add_delta(&mut self, bias: Option<&Vec<f32>>) {
        let Values { h, delta, .. } = &mut self.values;
        self.all_reduce.sum(self.rank, &mut self.turn, delta);
        if let Some(bias) = bias {
            self.pool.run_rows(delta, bias.len(), |_, rows| {
                for row in rows.chunks_exact_mut(bias.len()) {
                    row.iter_mut().zip(bias).for_each(|(delta, bias)| *delta += bias);
                }
            });
        }
        kernels::add(&self.pool, h, delta);
    }
}

/// `out = x * weight^T (+ bias)`.
fn product(isa: Isa, pool: &Pool, x: &[f32], linear: &Linear<Cpu>, out: &mut Vec<f32>) {
    let view = linear.weight.view();
    let rows = x.len() / view.cols();
    out.resize(rows * view.rows(), 0.0);
    kernels::matmul(isa, pool, x, &view, &Segments::whole(view.cols()), linear.bias.as_deref(), out);
}

/// As [`product`] for a weight whose inputs the ranks share: cut into segments, and without the bias.
fn partial_product(isa: Isa, pool: &Pool, x: &[f32], weight: &Matrix, segments: &Segments, out: &mut Vec<f32>) {
    let view = weight.view();
    let rows = x.len() / view.cols();
    out.resize(rows * view.rows(), 0.0);
    kernels::matmul(isa, pool, x, &view, segments, None, out);
}

impl Backend for Cpu {
    type Matrix = Matrix;
    type Vector = Vec<f32>;

    fn load_matrix(&mut self, matrix: Matrix) -> Result<Matrix, Error> {
        Ok(matrix)
    }

    fn load_vector(&mut self, vector: Vec<f32>) -> Result<Vec<f32>, Error> {
        Ok(vector)
    }

    fn embed(&mut self, plan: &StepPlan, table: &Matrix) {
        let (h, view) = (&mut self.values.h, table.view());
        h.resize(plan.tokens.len() * self.hidden, 0.0);
        for (out, token) in h.chunks_exact_mut(self.hidden).zip(&plan.tokens) {
            view.copy_row(self.isa, *token as usize, out);
        }
    }

    fn norm(&mut self, weight: &Vec<f32>) {
        let Values { h, n, .. } = &mut self.values;
        n.clone_from(h);
        kernels::rms_norm(self.isa, &self.pool, weight, self.eps, n);
    }

    fn project_heads(&mut self, weights: &Heads<Self>) {
        let Values { n, q, k, v, .. } = &mut self.values;
        product(self.isa, &self.pool, n, &weights.q, q);
        product(self.isa, &self.pool, n, &weights.k, k);
        product(self.isa, &self.pool, n, &weights.v, v);
        for (norm, heads) in [(&weights.q_norm, q), (&weights.k_norm, k)] {
            if let Some(norm) = norm {
                kernels::rms_norm(self.isa, &self.pool, norm, self.eps, heads);
            }
        }
    }

    fn rope_and_store(&mut self, plan: &StepPlan, layer: usize) {
        let Values { q, k, v, .. } = &mut self.values;
        let half = self.shape.head_dim / 2;
        kernels::rope(self.isa, &self.pool, self.shape.heads, &plan.cos, &plan.sin, half, q);
        kernels::rope(self.isa, &self.pool, self.shape.kv_heads, &plan.cos, &plan.sin, half, k);
        let (width, block_size) = (self.shape.kv_heads * self.shape.head_dim, self.arena.shape().block_size);
        let mut stored = self.arena.write(layer);
        for row in &plan.rows {
            for token in 0..row.count {
                let position = row.start + token;
                let (block, slot) = (plan.blocks(row)[position / block_size] as usize, position % block_size);
                let at = (row.first + token) * width;
                stored.store(KvHalf::Keys, block, slot, &k[at..at + width]);
                stored.store(KvHalf::Values, block, slot, &v[at..at + width]);
            }
        }
    }

    fn keep_sampled(&mut self, plan: &StepPlan) {
        let Values { h, q, .. } = &mut self.values;
        for (values, width) in [(h, self.hidden), (q, self.shape.heads * self.shape.head_dim)] {
            // Sampled tokens are in ascending order, so none is overwritten before it has moved.
            for (to, from) in plan.sampled.iter().enumerate() {
                values.copy_within(from * width..(from + 1) * width, to * width);
            }
            values.truncate(plan.sampled.len() * width);
        }
    }

    fn attend(&mut self, plan: &StepPlan, rows: &[PlanRow], layer: usize) {
        let Values { q, a, .. } = &mut self.values;
        a.resize(q.len(), 0.0);
        let rows: Vec<_> = rows.iter().map(|row| plan.attention(row)).collect();
        kernels::attention(self.isa, &self.pool, &self.shape, &rows, &self.arena.read(layer), q, a);
    }

    fn add_attended(&mut self, output: &Linear<Self>) {
        let Values { a, delta, .. } = &mut self.values;
        partial_product(self.isa, &self.pool, a, &output.weight, &self.attended, delta);
        self.add_delta(output.bias.as_ref());
    }

    fn add_gated_mlp(&mut self, mlp: &GatedMlp<Self>) {
        let Values { n, gate, up, delta, .. } = &mut self.values;
        product(self.isa, &self.pool, n, &mlp.gate, gate);
        product(self.isa, &self.pool, n, &mlp.up, up);
        kernels::silu_mul(self.isa, &self.pool, gate, up);
        partial_product(self.isa, &self.pool, gate, &mlp.down.weight, &self.intermediate, delta);
        self.add_delta(mlp.down.bias.as_ref());
    }

    fn logits(&mut self, norm: &Vec<f32>, head: &Matrix) {
        self.norm(norm);
        let Values { n, logits, .. } = &mut self.values;
        logits.resize(n.len() / self.hidden * head.rows(), 0.0);
        kernels::matmul(self.isa, &self.pool, n, &head.view(), &Segments::whole(self.hidden), None, logits);
    }
}
