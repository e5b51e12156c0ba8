//! Causal attention over paged keys and values.
//!
//! One order per query: tokens are walked in tiles of 64 counted from position 0, whatever the block size; each tile rescales what was
//! summed before it (online softmax). A query's tiles depend on its position and the window alone, so chunks, neighbours and
//! threads cannot change a bit.

#![expect(unsafe_code, reason = "vector loads within scratch that is sized here")]

use std::cell::RefCell;
use std::ops::Range;

use crate::Pool;
use crate::arena::{KvElement, KvHalf, KvLayer, KvRow};
use crate::matmul::{self, Bf16, F32};
use crate::pool::SharedMut;
use crate::simd::{Isa, Kernel, MAX_LANES, Simd};

/// Tokens per step of the online softmax: keys and values of one head stay in the first-level cache up to a head size of 64.
const TILE: usize = 64;

/// Query vectors that share one pass over the tokens: enough to make little of preparing a tile.
const QUERIES: usize = 128;

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

/// `out[token][head] = softmax(q . k / sqrt(head_dim)) . v` for every row; `q` and `out` are `[token][head][head_dim]`. The keys and
/// values of the new tokens are already in `layer`. Panics if a row does not fit the buffers or the arena.
pub fn attention(
    isa: Isa,
    pool: &Pool,
    shape: &AttentionShape,
    rows: &[KvRow<'_>],
    layer: &KvLayer<'_>,
    q: &[f32],
    out: &mut [f32],
) {
    let kv = *layer.arena.shape();
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
    row: &'a KvRow<'a>,
    from: usize,
    count: usize,
    kv_head: usize,
}

struct Task<'a> {
    shape: &'a AttentionShape,
    layer: &'a KvLayer<'a>,
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
    /// `[stride][TILE]`: keys, one column for each token.
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
    /// `[query]`: what `acc` is to be multiplied by, because `max` has moved.
    correction: &'a mut [f32],
    /// `[MAX_LANES][stride]`: keys on their way into `k`.
    rows: &'a mut [f32],
}

impl<'a> Parts<'a> {
    fn cut(scratch: &'a mut Vec<f32>, queries: usize, head_dim: usize) -> Self {
        let stride = head_dim.next_multiple_of(MAX_LANES);
        let (vectors, tile) = (queries * stride, TILE * stride);
        let floats = 2 * vectors + 2 * tile + queries * (TILE + 3) + MAX_LANES * stride;
        if scratch.len() < floats {
            scratch.resize(floats, 0.0);
        }
        let mut rest = &mut scratch[..floats];
        let mut part = |count: usize| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(count);
            rest = tail;
            part
        };
        let (q, acc, k, v, s) = (part(vectors), part(vectors), part(tile), part(tile), part(queries * TILE));
        let (max, sum, correction, rows) = (part(queries), part(queries), part(queries), part(MAX_LANES * stride));
        // What is left from before would be seen: sums begin at zero, and the padding of heads must not count.
        [&mut *q, acc, sum, rows].into_iter().for_each(|part| part.fill(0.0));
        max.fill(f32::NEG_INFINITY);
        Self { stride, q, k, v, s, acc, max, sum, correction, rows }
    }
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Task { shape, queries, group, .. } = self;
        let (dim, window, count) = (shape.head_dim, shape.window, queries.count * group);
        let first = queries.row.start + queries.from;
        let last = first + queries.count - 1;
        let lowest = seen_from(first, window);
        let stored = Stored { layer: self.layer, queries };
        let mut parts = Parts::cut(self.scratch, count, dim);
        let scale = 1.0 / (dim as f32).sqrt();
        for query in 0..count {
            let at = place(shape, queries, group, query);
            let to = &mut parts.q[query * parts.stride..][..dim];
            to.iter_mut().zip(&self.q[at..at + dim]).for_each(|(to, q)| *to = q * scale);
        }
        for tile in lowest / TILE..=last / TILE {
            let base = tile * TILE;
            let seen = base.max(lowest)..(base + TILE).min(last + 1);
            // SAFETY: `attention` has checked the row's blocks, and the parts have the sizes that `Parts` documents; the CPU has `S`.
            unsafe {
                stored.load::<S>(&mut parts, dim, base, seen.clone());
                score::<S>(&mut parts, count, seen.end - base);
                for query in 0..count {
                    let position = first + query / group;
                    let from = seen_from(position, window).max(base) - base;
                    weigh::<S>(&mut parts, query, from..(base + TILE).min(position + 1).saturating_sub(base));
                }
                add_values::<S>(&mut parts, count, seen.start - base..seen.end - base);
            }
        }
        for query in 0..count {
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

/// The keys and values that a task's queries read.
struct Stored<'a> {
    layer: &'a KvLayer<'a>,
    queries: &'a Queries<'a>,
}

impl Stored<'_> {
    /// Loads the positions `seen` of the tile that begins at `base`. Other places of the tile keep what they have.
    ///
    /// # Safety
    /// The row's blocks hold the positions; the CPU has `S`.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, parts: &mut Parts<'_>, dim: usize, base: usize, seen: Range<usize>) {
        let stride = parts.stride;
        for start in (base..seen.end).step_by(S::LANES) {
            // SAFETY: passed on; LANES columns from a multiple of LANES on are within the tile, and `rows` holds as many keys.
            unsafe {
                for position in start.max(seen.start)..(start + S::LANES).min(seen.end) {
                    let at = (position - start) * stride;
                    self.widen::<S>(KvHalf::Keys, position, &mut parts.rows[at..at + dim]);
                    let at = (position - base) * stride;
                    self.widen::<S>(KvHalf::Values, position, &mut parts.v[at..at + dim]);
                }
                for i in (0..stride).step_by(S::LANES) {
                    let mut keys = [S::splat(0.0); MAX_LANES];
                    for (row, keys) in keys.iter_mut().enumerate().take(S::LANES) {
                        *keys = S::load(parts.rows.as_ptr().add(row * stride + i));
                    }
                    S::transpose(&mut keys);
                    for (column, keys) in keys.iter().enumerate().take(S::LANES) {
                        S::store(parts.k.as_mut_ptr().add((i + column) * TILE + start - base), *keys);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Stored::load`].
    #[inline(always)]
    unsafe fn widen<S: Simd>(&self, half: KvHalf, position: usize, out: &mut [f32]) {
        let KvLayer { arena, layer } = *self.layer;
        let shape = arena.shape();
        let block = self.queries.row.blocks[position / shape.block_size] as usize;
        let slot = position % shape.block_size;
        let head = arena.head(layer, half, block, slot, self.queries.kv_head);
        // SAFETY: `head` holds `dim` elements, as many as `out`.
        unsafe {
            match shape.element {
                KvElement::F32 => matmul::widen::<S, F32>(head, out),
                KvElement::Bf16 => matmul::widen::<S, Bf16>(head, out),
                KvElement::Int8 => widen_int8(head, out),
            }
        }
    }
}

/// # Safety
/// A byte for each of `out` and four more can be read.
#[inline(always)]
unsafe fn widen_int8(head: *const u8, out: &mut [f32]) {
    // SAFETY: as the caller grants.
    unsafe {
        let scale = head.add(out.len()).cast::<f32>().read_unaligned();
        for (at, out) in out.iter_mut().enumerate() {
            *out = f32::from(head.add(at).read() as i8) * scale;
        }
    }
}

/// `s[query][token] = q[query] . k[token]` for the first `tokens` of the tile (and some behind them), each dot product one element after
/// the other.
///
/// # Safety
/// The parts are as documented; the CPU has `S`.
#[inline(always)]
unsafe fn score<S: Simd>(parts: &mut Parts<'_>, queries: usize, tokens: usize) {
    let mut query = 0;
    while query < queries {
        // SAFETY: passed on; no more queries than are left are taken.
        query += unsafe {
            match (S::LANES, queries - query) {
                (16, 8..) => score_some::<S, 8>(parts, query, tokens),
                (_, 4..) => score_some::<S, 4>(parts, query, tokens),
                (_, 2..) => score_some::<S, 2>(parts, query, tokens),
                _ => score_some::<S, 1>(parts, query, tokens),
            }
        };
    }
}

/// Scores of `Q` queries; returns `Q`.
///
/// # Safety
/// As [`score`].
#[inline(always)]
unsafe fn score_some<S: Simd, const Q: usize>(parts: &mut Parts<'_>, query: usize, tokens: usize) -> usize {
    let stride = parts.stride;
    for token in (0..tokens).step_by(2 * S::LANES) {
        // SAFETY: TILE is a multiple of 2 * LANES, so two vectors fit behind every such token.
        unsafe {
            let mut sums = [[S::splat(0.0); 2]; Q];
            let q = parts.q.as_ptr().add(query * stride);
            let k = parts.k.as_ptr().add(token);
            for i in 0..stride {
                let k = [S::load(k.add(i * TILE)), S::load(k.add(i * TILE + S::LANES))];
                for (at, sums) in sums.iter_mut().enumerate() {
                    let q = S::splat(*q.add(at * stride + i));
                    *sums = [S::mul_add(q, k[0], sums[0]), S::mul_add(q, k[1], sums[1])];
                }
            }
            let s = parts.s.as_mut_ptr().add(query * TILE + token);
            for (at, sums) in sums.iter().enumerate() {
                S::store(s.add(at * TILE), sums[0]);
                S::store(s.add(at * TILE + S::LANES), sums[1]);
            }
        }
    }
    Q
}

/// Turns a query's scores into weights, zero outside of `seen`, and moves `max`, `sum` and `correction` on.
///
/// # Safety
/// As [`score`]; `seen` lies within the tile.
#[inline(always)]
unsafe fn weigh<S: Simd>(parts: &mut Parts<'_>, query: usize, seen: Range<usize>) {
    let s = &mut parts.s[query * TILE..][..TILE];
    if seen.is_empty() {
        s.fill(0.0);
        parts.correction[query] = 1.0;
        return;
    }
    s[..seen.start].fill(f32::NEG_INFINITY);
    s[seen.end..].fill(f32::NEG_INFINITY);
    // SAFETY: TILE is a multiple of LANES.
    unsafe {
        let mut top = S::splat(f32::NEG_INFINITY);
        for i in (0..TILE).step_by(S::LANES) {
            top = S::max(top, S::load(s.as_ptr().add(i)));
        }
        let max = S::max_lane(top).max(parts.max[query]);
        for i in (0..TILE).step_by(S::LANES) {
            let weight = S::exp(S::sub(S::load(s.as_ptr().add(i)), S::splat(max)));
            S::store(s.as_mut_ptr().add(i), weight);
        }
        // `exp` of minus infinity is only as good as zero, and a weight of nothing is to be nothing.
        s[..seen.start].fill(0.0);
        s[seen.end..].fill(0.0);
        let mut sum = S::splat(0.0);
        for i in (0..TILE).step_by(S::LANES) {
            sum = S::add(sum, S::load(s.as_ptr().add(i)));
        }
        let correction = S::max_lane(S::exp(S::splat(parts.max[query] - max)));
        parts.sum[query] = parts.sum[query] * correction + S::sum(sum);
        (parts.max[query], parts.correction[query]) = (max, correction);
    }
}

/// `acc = acc * correction + sum over tokens of weight * v`, one token after the other.
///
/// # Safety
/// As [`score`]; `tokens` lies within the tile.
#[inline(always)]
unsafe fn add_values<S: Simd>(parts: &mut Parts<'_>, queries: usize, tokens: Range<usize>) {
    let mut query = 0;
    while query < queries {
        // SAFETY: passed on; no more queries than are left are taken.
        query += unsafe {
            match (S::LANES, queries - query) {
                (16, 4..) => add_some::<S, 4>(parts, query, tokens.clone()),
                (_, 2..) => add_some::<S, 2>(parts, query, tokens.clone()),
                _ => add_some::<S, 1>(parts, query, tokens.clone()),
            }
        };
    }
}

/// Values for `Q` queries; returns `Q`.
///
/// # Safety
/// As [`add_values`].
#[inline(always)]
unsafe fn add_some<S: Simd, const Q: usize>(parts: &mut Parts<'_>, query: usize, tokens: Range<usize>) -> usize {
    let mut at = 0;
    while at < parts.stride {
        // SAFETY: passed on; `at` and as many vectors lie within the stride, a multiple of LANES.
        at += S::LANES
            * unsafe {
                match (parts.stride - at) / S::LANES {
                    4.. => add_part::<S, Q, 4>(parts, query, at, tokens.clone()),
                    _ => add_part::<S, Q, 1>(parts, query, at, tokens.clone()),
                }
            };
    }
    Q
}

/// `N` vectors of `Q` queries, from element `at` of each head on; returns `N`.
///
/// # Safety
/// As [`add_values`], and the vectors lie within the stride.
#[inline(always)]
unsafe fn add_part<S: Simd, const Q: usize, const N: usize>(
    parts: &mut Parts<'_>,
    query: usize,
    at: usize,
    tokens: Range<usize>,
) -> usize {
    let stride = parts.stride;
    // SAFETY: as the caller grants.
    unsafe {
        let acc = parts.acc.as_mut_ptr().add(query * stride + at);
        let s = parts.s.as_ptr().add(query * TILE);
        let mut sums = [[S::splat(0.0); N]; Q];
        for (q, sums) in sums.iter_mut().enumerate() {
            let correction = S::splat(parts.correction[query + q]);
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = S::mul(S::load(acc.add(q * stride + n * S::LANES)), correction);
            }
        }
        for token in tokens {
            let v = parts.v.as_ptr().add(token * stride + at);
            let mut values = [S::splat(0.0); N];
            for (n, value) in values.iter_mut().enumerate() {
                *value = S::load(v.add(n * S::LANES));
            }
            for (q, sums) in sums.iter_mut().enumerate() {
                let weight = S::splat(*s.add(q * TILE + token));
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = S::mul_add(weight, value, *sum);
                }
            }
        }
        for (q, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                S::store(acc.add(q * stride + n * S::LANES), *sum);
            }
        }
    }
    N
}

#[cfg(test)]
mod tests;
