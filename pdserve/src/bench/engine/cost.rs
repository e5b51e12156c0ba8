//! What a step has to compute and to read: the numerators of GFLOP/s and GB/s.

use engine::ModelConfig;
use kv::KvDtype;

/// Costs of one model, per layer summed over layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// Weights of all linear layers but the output head.
    linear: f64,
    /// Weights of the output head.
    head: f64,
    /// Products of queries with keys, and of weights with values, per token and token of context: 2 x layers x heads x head_dim.
    attention: f64,
    /// Keys and values of one token.
    kv_values: f64,
    bytes: ElementBytes,
    window: f64,
}

/// Bytes that one element takes, its share of scales included.
#[derive(Debug, Clone, Copy)]
pub(super) struct ElementBytes {
    pub(super) linear: f64,
    pub(super) head: f64,
    pub(super) kv: f64,
}

impl ElementBytes {
    /// `dtype` as a [`types::ModelIdentity`] names it.
    pub(super) fn of(dtype: &str, kv: KvDtype, head_dim: usize) -> Self {
        let scaled = |bytes: f64, group: f64| bytes + 2.0 / group;
        let [linear, head] = match dtype {
            "int8" => [scaled(1.0, 128.0); 2],
            "int4" => [scaled(0.5, 32.0), scaled(1.0, 128.0)],
            "f32" => [4.0; 2],
            _ => [2.0; 2],
        };
        Self { linear, head, kv: kv.head_bytes(head_dim) as f64 / head_dim as f64 }
    }
}

/// Rows of one step: each computes `new` tokens after `before` others and samples from the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) rows: u32,
    pub(crate) before: u32,
    pub(crate) new: u32,
}

impl Cost {
    pub(super) fn new(model: &ModelConfig, bytes: ElementBytes) -> Self {
        let (queries, keys) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
        let layer = model.hidden_size * (2 * queries + 2 * keys) + 3 * model.hidden_size * model.intermediate_size;
        Self {
            linear: (model.layers * layer) as f64,
            head: (model.vocab_size * model.hidden_size) as f64,
            attention: (2 * model.layers * queries) as f64,
            kv_values: (2 * model.layers * keys) as f64,
            bytes,
            window: model.family.sliding_window.map_or(f64::INFINITY, |window| window as f64),
        }
    }

    /// Multiplications and additions of the linear layers, the attention and the head.
    pub(super) fn flop(&self, work: Work) -> f64 {
        let tokens = f64::from(work.rows) * f64::from(work.new);
        // Each token sees those before it and itself.
        let seen: f64 = (work.before..work.before + work.new).map(|at| f64::from(at + 1).min(self.window)).sum();
        2.0 * (self.linear * tokens + self.head * f64::from(work.rows) + self.attention * f64::from(work.rows) * seen)
    }

    /// Bytes that must be read at least once: every weight, and the KV that each row attends to.
    pub(super) fn bytes(&self, work: Work) -> f64 {
        let seen = f64::from(work.before + work.new).min(self.window);
        let ElementBytes { linear, head, kv } = self.bytes;
        self.linear * linear + self.head * head + f64::from(work.rows) * seen * self.kv_values * kv
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The demo model: 6 layers, 256 wide, 8 heads and 4 KV heads of 32, 704 in the middle, 2048 ids.
    fn cost() -> Cost {
        let model = ModelConfig::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("model")).unwrap();
        Cost::new(&model, ElementBytes::of("bf16", KvDtype::Bf16, model.head_dim))
    }

    #[test]
    fn costs_are_those_counted_by_hand() {
        let linear = 6.0 * (256.0 * 256.0 * 2.0 + 256.0 * 128.0 * 2.0 + 3.0 * 256.0 * 704.0);
        let head = 2048.0 * 256.0;
        let kv = 6.0 * 2.0 * 4.0 * 32.0 * 2.0;
        let attention = 2.0 * 6.0 * 8.0 * 32.0;
        for (work, flop, bytes) in [
            (Work { rows: 1, before: 0, new: 1 }, linear + head + attention, kv),
            (Work { rows: 1, before: 9, new: 1 }, linear + head + 10.0 * attention, 10.0 * kv),
            (Work { rows: 3, before: 9, new: 1 }, 3.0 * (linear + head + 10.0 * attention), 30.0 * kv),
            (Work { rows: 1, before: 0, new: 4 }, 4.0 * linear + head + 10.0 * attention, 4.0 * kv),
        ] {
            assert_eq!(cost().flop(work), 2.0 * flop, "{work:?}");
            assert_eq!(cost().bytes(work), 2.0 * (linear + head) + bytes, "{work:?}");
        }
    }
}
