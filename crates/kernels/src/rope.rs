//! The last thing that happens to new queries, keys and values before attention: rotation by position, and the way into the KV.
//!
//! Tokens are shared out among threads. A token's keys are stored while the rotated ones are still in the first-level cache.

#![expect(unsafe_code, reason = "vector loads within slices, and tokens of two slices at once")]

use crate::Pool;
use crate::arena::{KvHalf, KvLayer, KvRows};
use crate::pool::SharedMut;
use crate::simd::{Isa, Kernel, Simd};

/// Heads of new tokens, `[token][head][head_dim]`.
#[derive(Debug)]
pub struct NewHeads<'a> {
    pub q: &'a mut [f32],
    pub k: &'a mut [f32],
    pub v: &'a [f32],
}

/// By what new tokens are rotated, `[token][head_dim / 2]`.
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

impl Angles<'_> {
    /// Those of one token, `half` of them.
    fn of(&self, token: usize, half: usize) -> Self {
        let [cos, sin] = [self.cos, self.sin].map(|all| &all[token * half..][..half]);
        Self { cos, sin }
    }
}

/// Rotates each head of `q` and `k` by its token's angles, pairs being `i` and `i + head_dim / 2`, and writes `k` and `v` to where
/// `rows`, which name every token, have it in `layer`. Panics if the lengths do not agree or a row does not fit the arena.
pub fn rope_and_store(
    isa: Isa,
    pool: &Pool,
    angles: Angles<'_>,
    NewHeads { q, k, v }: NewHeads<'_>,
    layer: &KvLayer<'_>,
    rows: KvRows<'_>,
) {
    let shape = layer.arena.shape();
    let (half, kv_width) = (shape.head_dim / 2, shape.heads * shape.head_dim);
    let tokens = v.len() / kv_width;
    let q_width = q.len() / tokens.max(1);
    let lens = [q.len(), k.len(), v.len(), angles.cos.len(), angles.sin.len()];
    let expected = [q_width, kv_width, kv_width, half, half].map(|width| tokens * width);
    assert_eq!(lens, expected, "queries, keys, values, cosines and sines of {tokens} tokens");
    let k = SharedMut::new(k);
    pool.run_rows(q, q_width, |first, q| {
        let count = q.len() / q_width;
        // SAFETY: the same tokens as those of `q`, which are this task's own.
        let k = unsafe { k.slice(first * kv_width, count * kv_width) };
        for (token, block, slot) in rows.places(first..first + count, shape.block_size) {
            let angles = angles.of(token, half);
            isa.run(Rotate { row: &mut q[(token - first) * q_width..][..q_width], angles });
            let k = &mut k[(token - first) * kv_width..][..kv_width];
            isa.run(Rotate { row: k, angles });
            layer.store(isa, KvHalf::Keys, block, slot, k);
            layer.store(isa, KvHalf::Values, block, slot, &v[token * kv_width..][..kv_width]);
        }
    });
}

struct Rotate<'a> {
    /// `[head][head_dim]`
    row: &'a mut [f32],
    /// Half a head long.
    angles: Angles<'a>,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Angles { cos, sin } = self.angles;
        let half = cos.len();
        for head in self.row.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for i in (0..half).step_by(S::LANES) {
                // SAFETY: `i < half`, and at most `half - i` lanes are touched in slices of `half` floats.
                unsafe {
                    let cos = S::load_upto(cos.as_ptr().add(i), half - i);
                    let sin = S::load_upto(sin.as_ptr().add(i), half - i);
                    let a = S::load_upto(low.as_ptr().add(i), half - i);
                    let b = S::load_upto(high.as_ptr().add(i), half - i);
                    S::store_upto(low.as_mut_ptr().add(i), S::sub(S::mul(a, cos), S::mul(b, sin)), half - i);
                    S::store_upto(high.as_mut_ptr().add(i), S::add(S::mul(b, cos), S::mul(a, sin)), half - i);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{check_levels, values};
    use crate::{KvArena, KvElement, KvRow, KvShape};

    const HALF: usize = 10;
    const Q_HEADS: usize = 3;
    const KV_HEADS: usize = 2;
    const BLOCK: usize = 16;

    /// Two sequences, the second of which begins in the middle of a block: so many that threads share them.
    const TOKENS: usize = 600;
    const ROWS: [KvRow; 2] = [
        KvRow { first: 0, count: 201, start: 0, blocks: 0..13 },
        KvRow { first: 201, count: 399, start: 5, blocks: 13..39 },
    ];

    /// A block's number is not its index.
    fn blocks() -> Vec<u32> {
        (0..39).rev().collect()
    }

    fn arena(element: KvElement) -> Arc<KvArena> {
        let shape = KvShape { layers: 2, heads: KV_HEADS, head_dim: 2 * HALF, block_size: BLOCK, blocks: 39, element };
        KvArena::of_ranks(shape, 1).unwrap().remove(0)
    }

    /// Bytes of the keys or values of a token of the batch.
    fn stored(arena: &KvArena, half: KvHalf, token: usize) -> Vec<u8> {
        let row = &ROWS[usize::from(token >= ROWS[1].first)];
        let (position, blocks) = (row.start + token - row.first, &blocks()[row.blocks.clone()]);
        let slot = position % BLOCK;
        let place = arena.shape().place(1, half, blocks[position / BLOCK] as usize, slot..slot + 1);
        let mut bytes = vec![0; place.len()];
        arena.memory().read(place.start, &mut bytes);
        bytes
    }

    /// A batch and what becomes of it.
    struct Batch {
        cos: Vec<f32>,
        sin: Vec<f32>,
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
    }

    impl Batch {
        fn new() -> Self {
            let angles: Vec<f32> = values(4, TOKENS * HALF).iter().map(|v| v * 10.0).collect();
            let [cos, sin] = [f32::cos, f32::sin].map(|of| angles.iter().map(|angle| of(*angle)).collect());
            let heads = |seed, heads| values(seed, TOKENS * heads * 2 * HALF);
            Self { cos, sin, q: heads(1, Q_HEADS), k: heads(2, KV_HEADS), v: heads(3, KV_HEADS) }
        }

        fn run(&mut self, isa: Isa, pool: &Pool, arena: &KvArena) {
            let Self { cos, sin, q, k, v } = self;
            let (layer, rows, blocks) = (KvLayer { arena, layer: 1 }, &ROWS, blocks());
            rope_and_store(
                isa,
                pool,
                Angles { cos, sin },
                NewHeads { q, k, v },
                &layer,
                KvRows { rows, blocks: &blocks },
            );
        }
    }

    /// Rotated one value after the other.
    fn rotated(Batch { cos, sin, .. }: &Batch, heads: usize, x: &[f32]) -> Vec<f32> {
        let mut x = x.to_vec();
        for (i, head) in x.chunks_exact_mut(2 * HALF).enumerate() {
            for j in 0..HALF {
                let at = i / heads * HALF + j;
                let (a, b) = (head[j], head[j + HALF]);
                head[j] = a * cos[at] - b * sin[at];
                head[j + HALF] = b * cos[at] + a * sin[at];
            }
        }
        x
    }

    #[test]
    fn rope_turns_pairs() {
        let batch = Batch::new();
        let expected = [rotated(&batch, Q_HEADS, &batch.q), rotated(&batch, KV_HEADS, &batch.k)].concat();
        check_levels("rope", &expected, 1e-6, |isa, pool| {
            let mut batch = Batch::new();
            batch.run(isa, pool, &arena(KvElement::F32));
            [batch.q, batch.k].concat()
        });
    }

    /// Bit for bit what storing a token alone gives, for tokens of each sequence, block and thread.
    #[test]
    fn rotated_keys_and_values_find_their_block() {
        for element in [KvElement::F32, KvElement::Bf16, KvElement::Int8] {
            for (isa, threads) in Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                let (mut batch, arena, single) = (Batch::new(), arena(element), arena(element));
                batch.run(isa, &Pool::new("test", threads).unwrap(), &arena);
                for token in 0..TOKENS {
                    for (half, heads) in [(KvHalf::Keys, &batch.k), (KvHalf::Values, &batch.v)] {
                        let heads = &heads[token * KV_HEADS * 2 * HALF..][..KV_HEADS * 2 * HALF];
                        KvLayer { arena: &single, layer: 0 }.store(isa, half, 0, 0, heads);
                        let mut alone = vec![0; arena.shape().token_bytes()];
                        single.memory().read(single.shape().place(0, half, 0, 0..1).start, &mut alone);
                        let what = format!("{half:?} of token {token} as {element:?} on {isa}, {threads} threads");
                        assert_eq!(stored(&arena, half, token), alone, "{what}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "queries, keys, values, cosines and sines of 600 tokens")]
    fn angles_of_other_tokens_are_refused() {
        let mut batch = Batch::new();
        batch.sin.pop();
        batch.run(Isa::PORTABLE, &Pool::new("test", 1).unwrap(), &arena(KvElement::F32));
    }
}
