//! Causal attention over paged keys and values.
//!
//! One order per query: tokens are walked in tiles of 64 counted from position 0, whatever the block size; each tile rescales what was
//! summed before it (online softmax). After each span of 512 tokens, counted from 0 too, the sums begin anew, and the sums of the spans
//! are joined one after the other. A query's tiles and spans depend on its position and the window alone, so chunks, neighbours and
//! threads cannot change a bit; and since spans know nothing of each other, several threads may share a long context.

#![expect(unsafe_code, reason = "vector loads within scratch that is sized here")]

mod stored;
mod tile;

use std::cell::RefCell;
use std::ops::Range;

use crate::Pool;
use crate::arena::{KvLayer, KvRow, KvRows};
use crate::pool::SharedMut;
use crate::simd::{Isa, Kernel, MAX_LANES, Simd};
use stored::Stored;
use tile::{TOGETHER_MAX, add_values, score, together, weigh};

/// Tokens per step of the online softmax: keys and values of one head stay in the first-level cache up to a head size of 64.
const TILE: usize = 64;

/// Tokens that are summed for themselves: long enough that joining costs nothing, short enough that a context of 2,048 keeps four
/// threads busy with one KV head.
const SPAN: usize = 8 * TILE;

/// Query vectors that share one pass over the tokens: enough to make little of preparing a tile.
const QUERIES: usize = 256;

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
    rows: KvRows<'_>,
    layer: &KvLayer<'_>,
    q: &[f32],
    out: &mut [f32],
) {
    let kv = *layer.arena.shape();
    assert!(shape.kv_heads == kv.heads && shape.head_dim == kv.head_dim, "{shape:?} on {kv:?}");
    assert!(shape.heads.is_multiple_of(shape.kv_heads) && q.len() == out.len(), "{shape:?}");
    let width = shape.heads * shape.head_dim;
    for row in rows.rows {
        assert!((row.first + row.count) * width <= q.len(), "row of {} tokens at {}", row.count, row.first);
        assert!(
            row.start + row.count <= rows.blocks_of(row).len() * kv.block_size,
            "{} blocks hold too little",
            row.blocks.len()
        );
    }
    let out = SharedMut::new(out);
    PLAN.with_borrow_mut(|plan| {
        plan.make(shape, rows.rows, pool.threads());
        let Plan { queries, walks, sums } = plan;
        let sums = SharedMut::new(sums);
        let call = Call { shape, rows, layer, q, out: &out, queries, walks, sums: &sums };
        // From the end, where most is seen: what the other threads wait for at last is short.
        pool.run(walks.len(), |index| {
            let walk = &walks[walks.len() - 1 - index];
            SCRATCH.with_borrow_mut(|scratch| isa.run(Task { call: &call, walk, scratch }));
        });
        if walks.iter().any(|walk| walk.sums.is_some()) {
            pool.run(walks.len(), |first| isa.run(Join { call: &call, first }));
        }
    });
}

thread_local! {
    /// Kept between tasks, so that a warm step allocates nothing for it.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Of the thread that calls; kept for the same reason.
    static PLAN: RefCell<Plan> = const { RefCell::new(Plan { queries: Vec::new(), walks: Vec::new(), sums: Vec::new() }) };
}

/// What a call is made of.
struct Plan {
    queries: Vec<Queries>,
    walks: Vec<Walk>,
    /// What walks that are only a part have found, see [`Sums`].
    sums: Vec<f32>,
}

/// Some tokens of a row, one KV head and the query heads that read it.
struct Queries {
    row: usize,
    /// The first of its tokens, counted from the row's.
    from: usize,
    /// How many tokens.
    count: usize,
    kv_head: usize,
    /// Position of its first token.
    first: usize,
    /// The positions that at least one of them sees.
    seen: Range<usize>,
}

/// A task: some queries over all spans that they see, or over one.
struct Walk {
    queries: usize,
    spans: Range<usize>,
    /// Where its sums go, to be joined with those of the walks behind it over the same queries; none if it walks all spans.
    sums: Option<usize>,
}

impl Plan {
    /// One walk for each of the queries, unless that would leave threads idle.
    fn make(&mut self, shape: &AttentionShape, rows: &[KvRow], threads: usize) {
        let group = shape.heads / shape.kv_heads;
        let tokens = (QUERIES / group).max(1);
        self.queries.clear();
        for (index, row) in rows.iter().enumerate() {
            for from in (0..row.count).step_by(tokens) {
                let (first, count) = (row.start + from, tokens.min(row.count - from));
                let seen = seen_from(first, shape.window)..first + count;
                let queries = |kv_head| Queries { row: index, from, count, kv_head, first, seen: seen.clone() };
                self.queries.extend((0..shape.kv_heads).map(queries));
            }
        }
        let (shared, mut floats) = (uneven(&self.queries, threads), 0);
        self.walks.clear();
        for (index, queries) in self.queries.iter().enumerate() {
            let spans = queries.seen.start / SPAN..queries.seen.end.div_ceil(SPAN);
            if !shared || spans.len() == 1 {
                self.walks.push(Walk { queries: index, spans, sums: None });
                continue;
            }
            for span in spans {
                self.walks.push(Walk { queries: index, spans: span..span + 1, sums: Some(floats) });
                floats += Sums::floats(queries.count * group, stride(shape.head_dim));
            }
        }
        if self.sums.len() < floats {
            self.sums.resize(floats, 0.0);
        }
    }
}

/// Whether some thread would have a quarter more to do than its share, if queries were not divided.
fn uneven(queries: &[Queries], threads: usize) -> bool {
    let work = |queries: &Queries| queries.count * queries.seen.len();
    let of_thread = |thread| queries.iter().skip(thread).step_by(threads).map(work).sum::<usize>();
    let busiest = (0..threads).map(of_thread).max().unwrap_or(0);
    4 * threads * busiest > 5 * queries.iter().map(work).sum::<usize>()
}

/// Floats from one vector of a head to the next: a multiple of every vector length.
fn stride(head_dim: usize) -> usize {
    head_dim.next_multiple_of(MAX_LANES)
}

/// What all tasks of a call read, and where they write.
struct Call<'a> {
    shape: &'a AttentionShape,
    rows: KvRows<'a>,
    layer: &'a KvLayer<'a>,
    q: &'a [f32],
    /// Each task writes its tokens' and heads' part and nothing else.
    out: &'a SharedMut<'a, f32>,
    queries: &'a [Queries],
    walks: &'a [Walk],
    /// Each walk writes its own; when all have, they are joined.
    sums: &'a SharedMut<'a, f32>,
}

impl Call<'_> {
    /// Query vectors.
    fn count(&self, queries: &Queries) -> usize {
        queries.count * self.shape.heads / self.shape.kv_heads
    }

    /// Where a query's vector lies in `q` and `out`.
    #[inline(always)]
    fn place(&self, queries: &Queries, query: usize) -> usize {
        let group = self.shape.heads / self.shape.kv_heads;
        let token = self.rows.rows[queries.row].first + queries.from + query / group;
        (token * self.shape.heads + queries.kv_head * group + query % group) * self.shape.head_dim
    }

    /// Tells the result.
    #[inline(always)]
    fn finish(&self, queries: &Queries, total: &Sums<'_>) {
        let (dim, stride) = (self.shape.head_dim, stride(self.shape.head_dim));
        for query in 0..self.count(queries) {
            let sum = total.sum[query];
            let acc = &total.acc[query * stride..][..dim];
            // SAFETY: no other task has these tokens and heads.
            let out = unsafe { self.out.slice(self.place(queries, query), dim) };
            out.iter_mut().zip(acc).for_each(|(out, acc)| *out = acc / sum);
        }
    }
}

struct Task<'a> {
    call: &'a Call<'a>,
    walk: &'a Walk,
    scratch: &'a mut Vec<f32>,
}

/// Joins the sums of the walks over some queries, of which `first` is the first walk.
struct Join<'a> {
    call: &'a Call<'a>,
    first: usize,
}

/// What is known of some queries after some tokens.
struct Sums<'a> {
    /// `[query][stride]`: weighted values, relative to `max`.
    acc: &'a mut [f32],
    /// `[query]`: the largest score.
    max: &'a mut [f32],
    /// `[query]`: sum of the weights, relative to `max`; zero if nothing was seen.
    sum: &'a mut [f32],
}

impl<'a> Sums<'a> {
    fn floats(queries: usize, stride: usize) -> usize {
        queries * (stride + 2)
    }

    fn cut(floats: &'a mut [f32], queries: usize) -> Self {
        let (max, rest) = floats.split_at_mut(queries);
        let (sum, acc) = rest.split_at_mut(queries);
        Self { acc, max, sum }
    }

    /// Nothing was seen.
    fn clear(&mut self) {
        [&mut *self.acc, self.sum].into_iter().for_each(|part| part.fill(0.0));
        self.max.fill(f32::NEG_INFINITY);
    }

    /// Adds what was found in later tokens.
    ///
    /// # Safety
    /// Both are of as many queries, `stride` floats each; the CPU has `S`.
    #[inline(always)]
    unsafe fn join<S: Simd>(&mut self, later: &Sums<'_>, stride: usize) {
        for query in 0..self.max.len() {
            // Of what was seen the largest weight is 1; what is no number stays in the sums.
            if later.sum[query] == 0.0 {
                continue;
            }
            let (ours, theirs) = (self.max[query], later.max[query]);
            let at = query * stride..(query + 1) * stride;
            let (acc, more) = (&mut self.acc[at.clone()], &later.acc[at]);
            if self.sum[query] == 0.0 {
                acc.copy_from_slice(more);
                (self.max[query], self.sum[query]) = (theirs, later.sum[query]);
                continue;
            }
            let max = ours.max(theirs);
            // SAFETY: arithmetic, and whole vectors of `stride` floats.
            unsafe {
                let (old, new) = (S::exp(S::splat(ours - max)), S::exp(S::splat(theirs - max)));
                for i in (0..stride).step_by(S::LANES) {
                    let kept = S::mul(S::load(acc.as_ptr().add(i)), old);
                    S::store(acc.as_mut_ptr().add(i), S::mul_add(S::load(more.as_ptr().add(i)), new, kept));
                }
                self.sum[query] = self.sum[query] * S::max_lane(old) + later.sum[query] * S::max_lane(new);
            }
            self.max[query] = max;
        }
    }
}

/// Parts of the scratch. Vectors of one head are `stride` floats apart, a multiple of every vector length.
struct Parts<'a> {
    stride: usize,
    /// `[query][stride]`, scaled.
    q: &'a mut [f32],
    /// `[TILE / (2 * LANES)][stride][2 * LANES]`: keys, one column for each token.
    k: &'a mut [f32],
    /// `[TILE][stride]`
    v: &'a mut [f32],
    /// `[TOGETHER_MAX][TILE]`: scores, then weights, of queries that go through a tile together.
    s: &'a mut [f32],
    /// Of the span that is being walked.
    span: Sums<'a>,
    /// `[query]`: what `span.acc` is to be multiplied by, because `span.max` has moved.
    correction: &'a mut [f32],
    /// Of the spans before.
    total: Sums<'a>,
    /// `[MAX_LANES][stride]`: keys on their way into `k`.
    rows: &'a mut [f32],
}

impl<'a> Parts<'a> {
    fn cut(scratch: &'a mut Vec<f32>, queries: usize, head_dim: usize) -> Self {
        let stride = stride(head_dim);
        let (vectors, tile, sums) = (queries * stride, TILE * stride, Sums::floats(queries, stride));
        let floats = vectors + 2 * tile + 2 * sums + queries + TOGETHER_MAX * TILE + MAX_LANES * stride;
        if scratch.len() < floats {
            scratch.resize(floats, 0.0);
        }
        let mut rest = &mut scratch[..floats];
        let mut part = |count: usize| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(count);
            rest = tail;
            part
        };
        let (q, k, v, s) = (part(vectors), part(tile), part(tile), part(TOGETHER_MAX * TILE));
        let (span, total) = (Sums::cut(part(sums), queries), Sums::cut(part(sums), queries));
        let (correction, rows) = (part(queries), part(MAX_LANES * stride));
        // What is left from before would be seen: the padding of heads must not count.
        [&mut *q, rows].into_iter().for_each(|part| part.fill(0.0));
        Self { stride, q, k, v, s, span, correction, total, rows }
    }
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Task { call, walk, scratch } = self;
        let queries = &call.queries[walk.queries];
        let (dim, count) = (call.shape.head_dim, call.count(queries));
        let mut parts = Parts::cut(scratch, count, dim);
        let scale = 1.0 / (dim as f32).sqrt();
        for query in 0..count {
            let at = call.place(queries, query);
            let to = &mut parts.q[query * parts.stride..][..dim];
            to.iter_mut().zip(&call.q[at..at + dim]).for_each(|(to, q)| *to = q * scale);
        }
        parts.total.clear();
        for span in walk.spans.clone() {
            let tokens = queries.seen.start.max(span * SPAN)..queries.seen.end.min((span + 1) * SPAN);
            // SAFETY: `attention` has checked the row's blocks, and the parts have the sizes that `Parts` documents; the CPU has `S`.
            unsafe {
                walk_span::<S>(call, queries, &mut parts, tokens);
                parts.total.join::<S>(&parts.span, parts.stride);
            }
        }
        let Some(at) = walk.sums else { return call.finish(queries, &parts.total) };
        // SAFETY: nobody else has these sums before all tasks have ended.
        let sums = unsafe { call.sums.slice(at, Sums::floats(count, parts.stride)) };
        let sums = Sums::cut(sums, count);
        sums.acc.copy_from_slice(parts.total.acc);
        sums.max.copy_from_slice(parts.total.max);
        sums.sum.copy_from_slice(parts.total.sum);
    }
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Join { call, first } = self;
        let index = call.walks[first].queries;
        let (queries, stride) = (&call.queries[index], stride(call.shape.head_dim));
        let begins = first == 0 || call.walks[first - 1].queries != index;
        let count = call.count(queries);
        let mut all = call.walks[first..].iter().take_while(|walk| walk.queries == index);
        // SAFETY: each walk's sums are its own and no walk goes on; only the task of the first one reads them.
        let mut next = || unsafe {
            let at = all.next()?.sums?;
            Some(Sums::cut(call.sums.slice(at, Sums::floats(count, stride)), count))
        };
        let Some(mut total) = begins.then(&mut next).flatten() else { return };
        while let Some(later) = next() {
            // SAFETY: both were cut alike; the CPU has `S`.
            unsafe { total.join::<S>(&later, stride) };
        }
        call.finish(queries, &total);
    }
}

/// Leaves in `parts.span` what the queries find in `tokens`, which lie within one span.
///
/// # Safety
/// The row's blocks hold the tokens, the parts are as documented and hold the queries' vectors; the CPU has `S`.
#[inline(always)]
unsafe fn walk_span<S: Simd>(call: &Call<'_>, queries: &Queries, parts: &mut Parts<'_>, tokens: Range<usize>) {
    let (count, group) = (call.count(queries), call.shape.heads / call.shape.kv_heads);
    let stored = Stored {
        layer: call.layer,
        blocks: call.rows.blocks_of(&call.rows.rows[queries.row]),
        kv_head: queries.kv_head,
    };
    parts.span.clear();
    for tile in tokens.start / TILE..tokens.end.div_ceil(TILE) {
        let base = tile * TILE;
        let seen = base.max(tokens.start)..(base + TILE).min(tokens.end);
        // SAFETY: passed on.
        unsafe {
            stored.load::<S>(parts, base, seen.clone());
            for first in (0..count).step_by(together(S::LANES)) {
                let some = first..(first + together(S::LANES)).min(count);
                let last = queries.first + (some.end - 1) / group;
                let end = seen.end.min(last + 1);
                // None of them sees so far.
                if end <= seen.start {
                    continue;
                }
                score::<S>(parts, some.clone(), end - base);
                weigh::<S>(parts, some.clone(), |query| {
                    let position = queries.first + query / group;
                    let from = seen_from(position, call.shape.window).max(base) - base;
                    from..(base + TILE).min(position + 1).saturating_sub(base)
                });
                add_values::<S>(parts, some, seen.start - base..end - base);
            }
        }
    }
}

/// The first position that the query at `position` sees.
#[inline(always)]
fn seen_from(position: usize, window: usize) -> usize {
    if window == 0 { 0 } else { (position + 1).saturating_sub(window) }
}

#[cfg(test)]
mod tests;
