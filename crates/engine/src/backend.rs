//! The operations that a model is made of.
//!
//! A backend is one rank: it holds that rank's shard of every matrix, its KV heads, and the step's running values, which a model only
//! names: the residual stream `h` and its RMS norm `n`, `[token][hidden]`; the heads `q`, `k`, `v` and the attention's result `a`,
//! `[token][head][head_dim]`. What changes `h` also makes the `n` that comes next, while it has the row at hand. A model is a fixed
//! sequence of these calls, so a device can record it once and replay it.

use crate::Error;
use crate::plan::{KvRow, StepPlan};
use crate::weights::Matrix;

pub(crate) trait Backend {
    /// A matrix as this backend keeps it.
    type Matrix;
    /// A vector (norm weights, a bias) as this backend keeps it.
    type Vector;

    fn load_matrix(&mut self, matrix: Matrix, part: Part) -> Result<Self::Matrix, Error>;
    fn load_vector(&mut self, vector: Vec<f32>) -> Result<Self::Vector, Error>;

    /// `h` = rows of `table` for the plan's tokens; `n` = its norm.
    fn embed(&mut self, plan: &StepPlan, table: &Self::Matrix, norm: &Self::Vector);
    /// `q`, `k`, `v` = products of `n`, with biases and norms over each head where the model has them.
    fn project_heads(&mut self, weights: &Heads<Self>);
    /// Rotates `q` and `k` and writes `k` and `v` into the KV of `layer`.
    fn rope_and_store(&mut self, plan: &StepPlan, layer: usize);
    /// From here to the end of the step only the plan's kept tokens are computed: `h` and `q` keep those, in the plan's order.
    fn keep(&mut self, plan: &StepPlan);
    /// `a` = attention of the `q` of `rows`, which are the plan's, over the KV of `layer`, that of the new tokens included.
    fn attend(&mut self, plan: &StepPlan, rows: &[KvRow], layer: usize);
    /// `h += sum over ranks of a * w^T`, plus the bias; `n` = its norm.
    fn add_attended(&mut self, output: &Linear<Self>, norm: &Self::Vector);
    /// `h += sum over ranks of (silu(n * gate^T) * (n * up^T)) * down^T`, with biases; `n` = its norm.
    fn add_gated_mlp(&mut self, mlp: &GatedMlp<Self>, norm: &Self::Vector);
    /// The `n` of these kept tokens, `[token][hidden]`. May be asked again while the step lasts.
    fn hidden(&mut self, tokens: &[usize]) -> &[f32];
    /// Products of the `n` of these kept tokens with this rank's rows of `head`. May be asked again while the step lasts.
    fn logits(&mut self, tokens: &[usize], head: &Self::Matrix);
}

/// What a matrix is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// Rows are looked up.
    Table,
    /// A product whose outputs are shared out among ranks.
    Outputs,
    /// A product whose inputs are shared out among ranks: its sums are cut into the segments of all ranks.
    Inputs,
    /// The product that gives the logits.
    Head,
}

/// A matrix with an optional bias.
pub(crate) struct Linear<B: Backend + ?Sized> {
    pub(crate) weight: B::Matrix,
    pub(crate) bias: Option<B::Vector>,
}

/// Projections to heads; norms are as long as a head.
pub(crate) struct Heads<B: Backend + ?Sized> {
    pub(crate) q: Linear<B>,
    pub(crate) k: Linear<B>,
    pub(crate) v: Linear<B>,
    pub(crate) q_norm: Option<B::Vector>,
    pub(crate) k_norm: Option<B::Vector>,
}

pub(crate) struct GatedMlp<B: Backend + ?Sized> {
    pub(crate) gate: Linear<B>,
    pub(crate) up: Linear<B>,
    pub(crate) down: Linear<B>,
}
