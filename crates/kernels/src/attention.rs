//! Causal attention over paged keys and values.
//!
//! One order per query: tokens are walked in tiles of 32 counted from position 0, whatever the block size; each tile rescales what was
//! summed before it (online softmax). A query's tiles depend on its position and the window alone, so chunks, neighbours and
//! threads cannot change a bit.

#![expect(unsafe_code, reason = "vector loads within scratch that is sized here")]

use std::cell::RefCell;

use crate::Pool;
use crate::arena::{KvElement, KvHalf, LayerRead};
use crate::matmul::{self, Bf16, F32, Product};
use crate::pool::SharedMut;
use crate::simd::{Isa, Kernel, MAX_LANES, Simd};

/// Tokens per step of the online softmax: keys and values of one head stay in the first-level cache up to a head size of 128.
const TILE: usize = 32;

/// Query vectors that share one pass over the tokens.
const QUERIES: usize = 64;

/// Heads of one rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttentionShape {
    pub heads: usize,
    /// Divides `heads`; query head `h` reads KV head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// A query sees this many tokens, itself included; 0 = all before it.
    pub window: usize,
}

/// New tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRow<'a> {
    /// Index of its first token in the batch.
    pub first: usize,
    /// Number of new tokens.
    pub count: usize,
    /// Position of its first new token.
    pub start: usize,
    /// `blocks[i]` holds the positions from `i * block_size` on; must reach `start + count`.
    pub blocks: &'a [u32],
}

/// `out[token][head] = softmax(q . k / sqrt(head_dim)) . v` for every row; `q` and `out` are `[token][head][head_dim]`. The keys and
/// values of the new tokens are already in `layer`. Panics if a row does not fit the buffers or the arena.
pub fn attention(
    isa: Isa,
    pool: &Pool,
    shape: &AttentionShape,
    rows: &[AttentionRow<'_>],
    layer: &LayerRead<'_>,
    q: &[f32],
    out: &mut [f32],
) {
    let kv = *layer.shape();
    assert!(shape.kv_heads == kv.heads && shape.head_dim == kv.head_dim, "{shape:?} on {kv:?}");
    assert!(shape.heads.is_multiple_of(shape.kv_heads) && q.len() == out.len(), "{shape:?}");
    let width = shape.heads * shape.head_dim;
    let group = shape.heads / shape.kv_heads;
    let tokens = (QUERIES / group).max(1);
    let mut tasks = Vec::new();
    for row in rows {
        assert!((row.first + row.count) * width <= q.len(), "row of {} tokens at {}", row.count, row.first);
        assert!(
            row.start + row.count <= row.blocks.len() * kv.block_size,
            "{} blocks hold too little",
            row.blocks.len()
        );
        for from in (0..row.count).step_by(tokens) {
            let count = tokens.min(row.count - from);
            tasks.extend((0..shape.kv_heads).map(|kv_head| Queries { row, from, count, kv_head }));
        }
    }
    let out = SharedMut::new(out);
    pool.run(tasks.len(), |index| {
        SCRATCH.with_borrow_mut(|scratch| {
            isa.run(Task { shape, layer, queries: &tasks[index], q, out: &out, group, scratch });
        });
    });
}

thread_local! {
    /// Kept between tasks, so that a warm step allocates nothing for it.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Some tokens of a row, one KV head and the query heads that read it.
struct Queries<'a> {
    row: &'a AttentionRow<'a>,
    from: usize,
    count: usize,
    kv_head: usize,
}

struct Task<'a> {
    shape: &'a AttentionShape,
    layer: &'a LayerRead<'a>,
    queries: &'a Queries<'a>,
    q: &'a [f32],
    /// This task writes its tokens' and heads' part and nothing else.
    out: &'a SharedMut<'a, f32>,
    group: usize,
    scratch: &'a mut Vec<f32>,
}

/// Parts of the scratch. Vectors of one head are `stride` floats apart, a multiple of every vector length.
struct Parts<'a> {
    stride: usize,
    /// `[query][stride]`, scaled.
    q: &'a mut [f32],
    /// `[TILE][stride]`
    k: &'a mut [f32],
    /// `[TILE][stride]`
    v: &'a mut [f32],
    /// `[query][TILE]`: scores, then weights.
    s: &'a mut [f32],
    /// `[query][stride]`: weighted values, relative to `max`.
    acc: &'a mut [f32],
    /// `[query]`
    max: &'a mut [f32],
    /// `[query]`: sum of the weights, relative to `max`.
    sum: &'a mut [f32],
}

impl<'a> Parts<'a> {
    fn cut(scratch: &'a mut Vec<f32>, queries: usize, head_dim: usize) -> Self {
        let stride = head_dim.next_multiple_of(MAX_LANES);
        let (vectors, tile) = (queries * stride, TILE * stride);
        scratch.clear();
        scratch.resize(2 * vectors + 2 * tile + queries * (TILE + 2), 0.0);
        let (q, rest) = scratch.split_at_mut(vectors);
        let (acc, rest) = rest.split_at_mut(vectors);
        let (k, rest) = rest.split_at_mut(tile);
        let (v, rest) = rest.split_at_mut(tile);
        let (s, rest) = rest.split_at_mut(queries * TILE);
        let (max, sum) = rest.split_at_mut(queries);
        max.fill(f32::NEG_INFINITY);
        Self { stride, q, k, v, s, acc, max, sum }
    }
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Task { shape, queries, group, .. } = self;
        let (dim, window) = (shape.head_dim, shape.window);
        let first = queries.row.start + queries.from;
        let last = first + queries.count - 1;
        let lowest = seen_from(first, window);
        let mut parts = Parts::cut(self.scratch, queries.count * group, dim);
        let scale = 1.0 / (dim as f32).sqrt();
        for query in 0..queries.count * group {
            let at = place(shape, queries, group, query);
            let to = &mut parts.q[query * parts.stride..][..dim];
            to.iter_mut().zip(&self.q[at..at + dim]).for_each(|(to, q)| *to = q * scale);
        }
        for tile in lowest / TILE..=last / TILE {
            let base = tile * TILE;
            let end = (base + TILE).min(last + 1);
            for position in base.max(lowest)..end {
                let at = (position - base) * parts.stride;
                // SAFETY: `attention` has checked the row's blocks; the CPU has `S`.
                unsafe {
                    let stored = Stored { layer: self.layer, queries, dim, position };
                    stored.widen::<S>(KvHalf::Keys, &mut parts.k[at..at + dim]);
                    stored.widen::<S>(KvHalf::Values, &mut parts.v[at..at + dim]);
                }
            }
            // SAFETY: the parts have the sizes that `Parts` documents; the CPU has `S`.
            unsafe { scores::<S>(&mut parts, queries.count * group, end - base) };
            for query in 0..queries.count * group {
                let position = first + query / group;
                let from = seen_from(position, window).max(base);
                let to = (position + 1).min(base + TILE);
                if from < to {
                    // SAFETY: as above, and `from..to` lies within the tile.
                    unsafe { absorb::<S>(&mut parts, query, from - base, to - base) };
                }
            }
        }
        for query in 0..queries.count * group {
            let sum = parts.sum[query];
            let acc = &parts.acc[query * parts.stride..][..dim];
            // SAFETY: no other task has these tokens and heads.
            let out = unsafe { self.out.slice(place(shape, queries, group, query), dim) };
            out.iter_mut().zip(acc).for_each(|(out, acc)| *out = acc / sum);
        }
    }
}

/// The first position that the query at `position` sees.
#[inline(always)]
fn seen_from(position: usize, window: usize) -> usize {
    if window == 0 { 0 } else { (position + 1).saturating_sub(window) }
}

/// Where a query's vector lies in `q` and `out`.
#[inline(always)]
fn place(shape: &AttentionShape, queries: &Queries<'_>, group: usize, query: usize) -> usize {
    let token = queries.row.first + queries.from + query / group;
    let head = queries.kv_head * group + query % group;
    (token * shape.heads + head) * shape.head_dim
}

/// One position of the sequence, as the arena keeps it.
struct Stored<'a> {
    layer: &'a LayerRead<'a>,
    queries: &'a Queries<'a>,
    dim: usize,
    position: usize,
}

impl Stored<'_> {
    /// # Safety
    /// The CPU has `S`.
    #[inline(always)]
    unsafe fn widen<S: Simd>(&self, half: KvHalf, out: &mut [f32]) {
        let shape = self.layer.shape();
        let block = self.queries.row.blocks[self.position / shape.block_size] as usize;
        let size = self.dim * shape.element.size();
        let slot = self.position % shape.block_size;
        let token = self.layer.tokens(half, block, slot..slot + 1);
        let head = &token[self.queries.kv_head * size..][..size];
        // SAFETY: `head` holds `dim` elements, as many as `out`.
        unsafe {
            match shape.element {
                KvElement::F32 => matmul::widen::<S, F32>(head.as_ptr(), out),
                KvElement::Bf16 => matmul::widen::<S, Bf16>(head.as_ptr(), out),
            }
        }
    }
}

/// `s[query][token] = q[query] . k[token]` for the first `tokens` of the tile. Padding is zero on both sides.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
unsafe fn scores<S: Simd>(parts: &mut Parts<'_>, queries: usize, tokens: usize) {
    let stride = parts.stride;
    let mut query = 0;
    while query < queries {
        // SAFETY: `queries` vectors in `q`, TILE in `k`, and TILE scores per query in `s`.
        unsafe {
            let product = Product {
                x: parts.q.as_ptr().add(query * stride),
                x_stride: stride,
                w: parts.k.as_ptr().cast(),
                w_stride: stride * 4,
                k: stride,
                to: parts.s.as_mut_ptr().add(query * TILE),
                to_stride: TILE,
            };
            query += product.some_rows::<S, F32>(queries - query, tokens);
        }
    }
}

/// Takes tokens `from..to` of the tile into a query's running softmax.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
unsafe fn absorb<S: Simd>(parts: &mut Parts<'_>, query: usize, from: usize, to: usize) {
    let s = &mut parts.s[query * TILE..][..TILE];
    s[..from].fill(f32::NEG_INFINITY);
    s[to..].fill(f32::NEG_INFINITY);
    // SAFETY: TILE is a multiple of LANES, as is `stride`; `acc` and `v` hold whole vectors of `stride` floats.
    unsafe {
        let mut top = S::splat(f32::NEG_INFINITY);
        for i in (0..TILE).step_by(S::LANES) {
            top = S::max(top, S::load(s.as_ptr().add(i)));
        }
        let max = S::max_lane(top).max(parts.max[query]);
        let correction = S::exp(S::splat(parts.max[query] - max));
        let mut sum = S::splat(0.0);
        for i in (0..TILE).step_by(S::LANES) {
            let weight = S::exp(S::sub(S::load(s.as_ptr().add(i)), S::splat(max)));
            S::store(s.as_mut_ptr().add(i), weight);
            sum = S::add(sum, weight);
        }
        parts.sum[query] = parts.sum[query] * S::max_lane(correction) + S::sum(sum);
        parts.max[query] = max;
        let acc = parts.acc.as_mut_ptr().add(query * parts.stride);
        let mut i = 0;
        while i + 4 * S::LANES <= parts.stride {
            weigh::<S, 4>(
                acc.add(i),
                correction,
                &s[from..to],
                parts.v.as_ptr().add(from * parts.stride + i),
                parts.stride,
            );
            i += 4 * S::LANES;
        }
        while i < parts.stride {
            weigh::<S, 1>(
                acc.add(i),
                correction,
                &s[from..to],
                parts.v.as_ptr().add(from * parts.stride + i),
                parts.stride,
            );
            i += S::LANES;
        }
    }
}

/// `acc = acc * correction + sum of weights[j] * v[j]` over `N` vectors of a head.
///
/// # Safety
/// `N` vectors at `acc`, and at `v` for each weight, `stride` floats apart; the CPU has `S`.
#[inline(always)]
unsafe fn weigh<S: Simd, const N: usize>(
    acc: *mut f32,
    correction: S::V,
    weights: &[f32],
    v: *const f32,
    stride: usize,
) {
    // SAFETY: passed on.
    unsafe {
        let mut sums = [S::splat(0.0); N];
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = S::mul(S::load(acc.add(n * S::LANES)), correction);
        }
        for (j, weight) in weights.iter().enumerate() {
            let weight = S::splat(*weight);
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = S::mul_add(weight, S::load(v.add(j * stride + n * S::LANES)), *sum);
            }
        }
        for (n, sum) in sums.iter().enumerate() {
            S::store(acc.add(n * S::LANES), *sum);
        }
    }
}

#[cfg(test)]
mod tests;
