use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::arena::{KvElement, KvHalf};
use crate::testing::{bits, close, values};
use crate::{KvArena, KvShape};

#[derive(Clone, Copy, Debug)]
struct Case {
    shape: AttentionShape,
    tokens: usize,
    block_size: usize,
    element: KvElement,
    seed: u64,
}

impl Case {
    fn kv_width(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    fn q(&self) -> Vec<f32> {
        values(self.seed, self.tokens * self.width())
    }

    fn keys(&self) -> Vec<f32> {
        values(self.seed ^ 1, self.tokens * self.kv_width())
    }

    fn values(&self) -> Vec<f32> {
        values(self.seed ^ 2, self.tokens * self.kv_width())
    }

    /// Blocks in reverse order, so that a block's number is not its index.
    fn blocks(&self) -> Vec<u32> {
        (0..self.tokens.div_ceil(self.block_size) as u32).rev().collect()
    }

    fn arena(&self) -> std::sync::Arc<KvArena> {
        let blocks = self.blocks();
        let shape = KvShape {
            layers: 1,
            heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
            block_size: self.block_size,
            blocks: blocks.len(),
            element: self.element,
        };
        let arena = KvArena::of_ranks(shape, 1).unwrap().remove(0);
        let row = KvRow { first: 0, count: self.tokens, start: 0, blocks: 0..blocks.len() };
        let rows = KvRows { rows: std::slice::from_ref(&row), blocks: &blocks };
        for (half, all) in [(KvHalf::Keys, self.keys()), (KvHalf::Values, self.values())] {
            for (token, block, slot) in rows.places(0..self.tokens, self.block_size) {
                let values = &all[token * self.kv_width()..][..self.kv_width()];
                KvLayer { arena: &arena, layer: 0 }.store(Isa::PORTABLE, half, block, slot, values);
            }
        }
        arena
    }

    /// All tokens, in steps of `chunk`.
    fn run(&self, isa: Isa, threads: usize, chunk: usize) -> Vec<f32> {
        let (arena, blocks, q) = (self.arena(), self.blocks(), self.q());
        let pool = Pool::new("test", threads).unwrap();
        let mut out = vec![f32::NAN; q.len()];
        for start in (0..self.tokens).step_by(chunk) {
            let count = chunk.min(self.tokens - start);
            let range = start * self.width()..(start + count) * self.width();
            let row = KvRow { first: 0, count, start, blocks: 0..blocks.len() };
            attention(
                isa,
                &pool,
                &self.shape,
                KvRows { rows: &[row], blocks: &blocks },
                &KvLayer { arena: &arena, layer: 0 },
                &q[range.clone()],
                &mut out[range],
            );
        }
        out
    }

    /// What an arena keeps of `values`.
    fn rounded(&self, mut values: Vec<f32>) -> Vec<f32> {
        for head in values.chunks_exact_mut(self.shape.head_dim) {
            let scale = head.iter().fold(0.0f32, |top, value| top.max(value.abs())) / 127.0;
            let round = |value: f32| match self.element {
                KvElement::F32 => value,
                KvElement::Bf16 => bf16::from_f32(value).to_f32(),
                KvElement::Int8 => (value / scale).round() * scale,
            };
            head.iter_mut().for_each(|value| *value = round(*value));
        }
        values
    }

    /// The textbook, in f64.
    fn reference(&self) -> Vec<f32> {
        let (q, k, v) = (self.q(), self.rounded(self.keys()), self.rounded(self.values()));
        let (dim, group) = (self.shape.head_dim, self.shape.heads / self.shape.kv_heads);
        let mut out = Vec::new();
        for position in 0..self.tokens {
            for head in 0..self.shape.heads {
                let q = &q[position * self.width() + head * dim..][..dim];
                let at = |token: usize| token * self.kv_width() + head / group * dim;
                let first = if self.shape.window == 0 { 0 } else { (position + 1).saturating_sub(self.shape.window) };
                let dot = |token: usize| (0..dim).map(|i| f64::from(q[i]) * f64::from(k[at(token) + i])).sum::<f64>();
                let weights: Vec<f64> =
                    (first..=position).map(|token| (dot(token) / (dim as f64).sqrt()).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let value =
                    |i| (first..=position).zip(&weights).map(|(token, w)| w * f64::from(v[at(token) + i])).sum::<f64>();
                out.extend((0..dim).map(|i| (value(i) / sum) as f32));
            }
        }
        out
    }
}

fn case(heads: usize, kv_heads: usize, head_dim: usize, window: usize, tokens: usize) -> Case {
    let shape = AttentionShape { heads, kv_heads, head_dim, window };
    Case { shape, tokens, block_size: 16, element: KvElement::F32, seed: 7 }
}

#[test]
fn agrees_with_the_textbook() {
    for isa in Isa::available() {
        for base in [
            case(1, 1, 4, 0, 1),
            case(4, 2, 16, 0, 70),
            case(7, 1, 20, 0, 33),
            case(4, 4, 64, 16, 90),
            case(2, 1, 128, 5, 40),
        ] {
            for element in [KvElement::F32, KvElement::Bf16, KvElement::Int8] {
                let case = Case { element, ..base };
                close(&format!("{isa} {case:?}"), &case.run(isa, 2, case.tokens), &case.reference(), 2e-6);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn chunks_blocks_and_threads_do_not_change_bits(
        tokens in 1usize..100, window in 0usize..40, chunk in 1usize..50, block in 1usize..5, threads in 1usize..4, seed: u64,
        int8: bool, wide: bool,
    ) {
        let element = if int8 { KvElement::Int8 } else { KvElement::Bf16 };
        let case = if wide { case(7, 1, 32, window, tokens) } else { case(4, 2, 16, window, tokens) };
        let base = Case { seed, element, ..case };
        for isa in Isa::available() {
            let expected = bits(&base.run(isa, 1, tokens));
            let other = Case { block_size: 8 * block, ..base };
            prop_assert_eq!(&bits(&other.run(isa, threads, chunk)), &expected);
            prop_assert_eq!(&bits(&base.run(isa, 1, 1)), &expected);
        }
    }
}

/// What lies in a block behind the sequence's end, or before its window, is never looked at.
#[test]
fn foreign_bytes_do_not_leak_in() {
    check_foreign_bytes(Case { block_size: 32, ..case(2, 1, 16, 8, 40) });
    check_foreign_bytes(Case { block_size: 32, element: KvElement::Bf16, ..case(2, 1, 32, 8, 40) });
}

fn check_foreign_bytes(case: Case) {
    let (arena, blocks, q) = (case.arena(), case.blocks(), case.q());
    let rows = KvRows { rows: &[KvRow { first: 0, count: 1, start: 39, blocks: 0..2 }], blocks: &blocks };
    let last = &q[39 * case.width()..];
    let pool = Pool::new("test", 1).unwrap();
    for isa in Isa::available() {
        let mut clean = vec![0.0; case.width()];
        attention(isa, &pool, &case.shape, rows, &KvLayer { arena: &arena, layer: 0 }, last, &mut clean);
        for position in (0..64).filter(|position| !(32..40).contains(position)) {
            for half in [KvHalf::Keys, KvHalf::Values] {
                let block = blocks[position / case.block_size] as usize;
                let layer = KvLayer { arena: &arena, layer: 0 };
                layer.store(isa, half, block, position % case.block_size, &vec![f32::NAN; case.kv_width()]);
            }
        }
        let mut dirty = vec![0.0; case.width()];
        attention(isa, &pool, &case.shape, rows, &KvLayer { arena: &arena, layer: 0 }, last, &mut dirty);
        assert_eq!(bits(&dirty), bits(&clean), "{isa}");
    }
}

/// Contexts of several spans, which threads share, against the textbook and against chunks that one thread walks.
#[test]
fn long_contexts_are_shared_without_changing_a_bit() {
    for (base, window) in [(case(3, 1, 16, 0, 2 * SPAN + 77), 0), (case(4, 2, 16, 0, SPAN + 3), SPAN - 70)] {
        let case = Case { shape: AttentionShape { window, ..base.shape }, element: KvElement::Bf16, ..base };
        let reference = case.reference();
        for isa in Isa::available() {
            let alone = case.run(isa, 1, case.tokens);
            close(&format!("{isa} {case:?}"), &alone, &reference, 5e-6);
            // The last rows are single tokens, as in decoding.
            for (threads, chunk) in [(5, case.tokens - 1), (3, SPAN / 2 + 1), (2, 2 * SPAN / 3)] {
                assert_eq!(
                    bits(&case.run(isa, threads, chunk)),
                    bits(&alone),
                    "{isa}, {threads} threads, chunks of {chunk}"
                );
            }
        }
    }
}

#[test]
fn queries_are_divided_only_where_threads_would_wait() {
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 16, window: 0 };
    let row = |start| KvRow { first: 0, count: 1, start, blocks: 0..0 };
    let walks = |rows: &[KvRow], threads| {
        let mut plan = Plan { queries: Vec::new(), walks: Vec::new(), sums: Vec::new() };
        plan.make(&shape, rows, threads);
        plan.walks.len()
    };
    assert_eq!(walks(&[row(2047)], 2), 2, "a thread for each KV head");
    assert_eq!(walks(&[row(2047)], 4), 8);
    assert_eq!(walks(&[row(100)], 4), 2, "nothing to divide");
    assert_eq!(walks(&[row(2047), row(10), row(11)], 3), 12);
    assert_eq!(walks(&[row(2047), row(2000)], 4), 4);
}
