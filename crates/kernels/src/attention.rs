//! Causal attention over paged keys and values.
//!
//! One order per query: tokens are walked in tiles of 64 counted from position 0, whatever the block size; each tile rescales what was
//! summed before it (online softmax). After each span of 512 tokens, counted from 0 too, the sums begin anew, and the sums of the spans
//! are joined one after the other. A query's tiles and spans depend on its position and the window alone, so chunks, neighbours and
//! threads cannot change a bit; and since spans know nothing of each other, several threads may share a long context.

#![expect(unsafe_code, reason = "vector loads within scratch that is sized here")]

use std::cell::RefCell;
use std::ops::Range;

use crate::Pool;
use crate::arena::{KvElement, KvHalf, KvLayer, KvRow, KvRows};
use crate::matmul::{self, Bf16, F32};
use crate::pool::SharedMut;
use crate::simd::{Isa, Kernel, MAX_LANES, Simd};

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
        pool.run(walks.len(), |index| {
            SCRATCH.with_borrow_mut(|scratch| isa.run(Task { call: &call, walk: &walks[index], scratch }));
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
    /// `[stride][TILE]`: keys, one column for each token.
    k: &'a mut [f32],
    /// `[TILE][stride]`
    v: &'a mut [f32],
    /// `[MAX_LANES][TILE]`: scores, then weights, of some queries.
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
        let floats = vectors + 2 * tile + 2 * sums + queries + MAX_LANES * (TILE + stride);
        if scratch.len() < floats {
            scratch.resize(floats, 0.0);
        }
        let mut rest = &mut scratch[..floats];
        let mut part = |count: usize| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(count);
            rest = tail;
            part
        };
        let (q, k, v, s) = (part(vectors), part(tile), part(tile), part(MAX_LANES * TILE));
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
            for first in (0..count).step_by(S::LANES) {
                let some = first..(first + S::LANES).min(count);
                score::<S>(parts, some.clone(), seen.end - base);
                weigh::<S>(parts, some.clone(), |query| {
                    let position = queries.first + query / group;
                    let from = seen_from(position, call.shape.window).max(base) - base;
                    from..(base + TILE).min(position + 1).saturating_sub(base)
                });
                add_values::<S>(parts, some, seen.start - base..seen.end - base);
            }
        }
    }
}

/// The first position that the query at `position` sees.
#[inline(always)]
fn seen_from(position: usize, window: usize) -> usize {
    if window == 0 { 0 } else { (position + 1).saturating_sub(window) }
}

/// The keys and values that a task's queries read.
struct Stored<'a> {
    layer: &'a KvLayer<'a>,
    /// Of the row.
    blocks: &'a [u32],
    kv_head: usize,
}

impl Stored<'_> {
    /// Loads the positions `seen` of the tile that begins at `base`. Other places of the tile keep what they have.
    ///
    /// # Safety
    /// The row's blocks hold the positions; the CPU has `S`.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, parts: &mut Parts<'_>, base: usize, seen: Range<usize>) {
        let (stride, block_size) = (parts.stride, self.layer.arena.shape().block_size);
        for start in (base..seen.end).step_by(S::LANES) {
            // SAFETY: passed on; LANES columns from a multiple of LANES on are within the tile, and `rows` holds as many keys.
            unsafe {
                let (mut position, end) = (start.max(seen.start), (start + S::LANES).min(seen.end));
                while position < end {
                    let slot = position % block_size;
                    let slots = slot..(slot + end - position).min(block_size);
                    let count = slots.len();
                    let block = self.blocks[position / block_size] as usize;
                    let keys = &mut parts.rows[(position - start) * stride..];
                    self.widen::<S>(KvHalf::Keys, block, slots.clone(), keys, stride);
                    let values = &mut parts.v[(position - base) * stride..];
                    self.widen::<S>(KvHalf::Values, block, slots, values, stride);
                    position += count;
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

    /// Some tokens of a block, `[slot][stride]`.
    ///
    /// # Safety
    /// As [`Stored::load`].
    #[inline(always)]
    unsafe fn widen<S: Simd>(&self, half: KvHalf, block: usize, slots: Range<usize>, to: &mut [f32], stride: usize) {
        let KvLayer { arena, layer } = *self.layer;
        let shape = arena.shape();
        let first = arena.heads(layer, half, block, slots.clone(), self.kv_head);
        let heads = (0..slots.len()).map(|slot| first.wrapping_add(slot * shape.token_bytes()));
        let to = to.chunks_mut(stride).map(|to| &mut to[..shape.head_dim]);
        for (head, to) in heads.zip(to) {
            // SAFETY: a head is `head_dim` elements, as many as there is room for.
            unsafe {
                match shape.element {
                    KvElement::F32 => matmul::widen::<S, F32>(head, to),
                    KvElement::Bf16 => matmul::widen::<S, Bf16>(head, to),
                    KvElement::Int8 => widen_int8(head, to),
                }
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

/// `s[i][token] = q[query] . k[token]` for the `i`-th of some queries and the first `tokens` of the tile (and some behind them), each dot
/// product one element after the other.
///
/// # Safety
/// The parts are as documented; the CPU has `S`.
#[inline(always)]
unsafe fn score<S: Simd>(parts: &mut Parts<'_>, queries: Range<usize>, tokens: usize) {
    let mut at = 0;
    while at < queries.len() {
        // SAFETY: passed on; no more queries than are left are taken.
        at += unsafe {
            match (S::LANES, queries.len() - at) {
                (16, 8..) => score_some::<S, 8>(parts, queries.start, at, tokens),
                (_, 4..) => score_some::<S, 4>(parts, queries.start, at, tokens),
                (_, 2..) => score_some::<S, 2>(parts, queries.start, at, tokens),
                _ => score_some::<S, 1>(parts, queries.start, at, tokens),
            }
        };
    }
}

/// Scores of `Q` queries, from the `i`-th behind `first` on; returns `Q`.
///
/// # Safety
/// As [`score`].
#[inline(always)]
unsafe fn score_some<S: Simd, const Q: usize>(parts: &mut Parts<'_>, first: usize, i: usize, tokens: usize) -> usize {
    let stride = parts.stride;
    for token in (0..tokens).step_by(2 * S::LANES) {
        // SAFETY: TILE is a multiple of 2 * LANES, so two vectors fit behind every such token.
        unsafe {
            let mut sums = [[S::splat(0.0); 2]; Q];
            let q = parts.q.as_ptr().add((first + i) * stride);
            let k = parts.k.as_ptr().add(token);
            for e in 0..stride {
                let k = [S::load(k.add(e * TILE)), S::load(k.add(e * TILE + S::LANES))];
                for (at, sums) in sums.iter_mut().enumerate() {
                    let q = S::splat(*q.add(at * stride + e));
                    *sums = [S::mul_add(q, k[0], sums[0]), S::mul_add(q, k[1], sums[1])];
                }
            }
            let s = parts.s.as_mut_ptr().add(i * TILE + token);
            for (at, sums) in sums.iter().enumerate() {
                S::store(s.add(at * TILE), sums[0]);
                S::store(s.add(at * TILE + S::LANES), sums[1]);
            }
        }
    }
    Q
}

/// Turns the scores of some queries into weights, zero outside of what `seen` says of each, and moves `max`, `sum` and `correction` on.
///
/// # Safety
/// As [`score`]; at most LANES queries; `seen` lies within the tile.
#[inline(always)]
unsafe fn weigh<S: Simd>(parts: &mut Parts<'_>, queries: Range<usize>, seen: impl Fn(usize) -> Range<usize>) {
    let (maxima, all) = (&mut parts.span.max[queries.clone()], &mut parts.span.sum[queries.clone()]);
    let corrections = &mut parts.correction[queries.clone()];
    let (scores, count) = (parts.s.as_chunks_mut::<TILE>().0, queries.len());
    // SAFETY: `count` lanes of what belongs to these queries.
    unsafe {
        let old = S::load_upto(maxima.as_ptr(), count);
        for ((scores, max), query) in scores.iter_mut().zip(&mut *maxima).zip(queries.clone()) {
            fill_unseen(scores, &seen(query), f32::NEG_INFINITY);
            let mut top = S::splat(*max);
            for scores in scores.chunks_exact(S::LANES) {
                top = S::max(top, S::load(scores.as_ptr()));
            }
            *max = S::max_lane(top);
        }
        let max = S::load_upto(maxima.as_ptr(), count);
        // Minus infinity, where nothing was seen yet, is not taken from itself.
        let correction = S::exp(S::sub(old, S::max(S::splat(f32::MIN), max)));
        S::store_upto(corrections.as_mut_ptr(), correction, count);
        let mut sums = [S::splat(0.0); MAX_LANES];
        for (((scores, sum), max), query) in scores.iter_mut().zip(&mut sums).zip(&*maxima).zip(queries) {
            *sum = weights::<S>(scores, *max, seen(query));
        }
        let sum = S::add(S::mul(S::load_upto(all.as_ptr(), count), correction), S::sums(&sums));
        S::store_upto(all.as_mut_ptr(), sum, count);
    }
}

/// Turns scores into weights, zero outside of `seen`; returns their sums by lane.
///
/// # Safety
/// The CPU has `S`.
#[inline(always)]
unsafe fn weights<S: Simd>(scores: &mut [f32; TILE], max: f32, seen: Range<usize>) -> S::V {
    // SAFETY: TILE is a multiple of LANES.
    unsafe {
        for scores in scores.chunks_exact_mut(S::LANES) {
            S::store(scores.as_mut_ptr(), S::exp(S::sub(S::load(scores.as_ptr()), S::splat(max))));
        }
        // `exp` of minus infinity is only as good as zero, and a weight of nothing is to be nothing.
        fill_unseen(scores, &seen, 0.0);
        let mut sum = S::splat(0.0);
        for weights in scores.chunks_exact(S::LANES) {
            sum = S::add(sum, S::load(weights.as_ptr()));
        }
        sum
    }
}

#[inline(always)]
fn fill_unseen(tile: &mut [f32; TILE], seen: &Range<usize>, with: f32) {
    if seen.is_empty() {
        tile.fill(with);
    } else {
        tile[..seen.start].fill(with);
        tile[seen.end..].fill(with);
    }
}

/// `acc = acc * correction + sum over tokens of weight * v`, one token after the other.
///
/// # Safety
/// As [`score`]; `tokens` lies within the tile.
#[inline(always)]
unsafe fn add_values<S: Simd>(parts: &mut Parts<'_>, queries: Range<usize>, tokens: Range<usize>) {
    let mut at = 0;
    while at < queries.len() {
        // SAFETY: passed on; no more queries than are left are taken.
        at += unsafe {
            match (S::LANES, queries.len() - at) {
                (16, 4..) => add_some::<S, 4>(parts, queries.start, at, tokens.clone()),
                (_, 2..) => add_some::<S, 2>(parts, queries.start, at, tokens.clone()),
                _ => add_some::<S, 1>(parts, queries.start, at, tokens.clone()),
            }
        };
    }
}

/// Values for `Q` queries, from the `i`-th behind `first` on; returns `Q`.
///
/// # Safety
/// As [`add_values`].
#[inline(always)]
unsafe fn add_some<S: Simd, const Q: usize>(
    parts: &mut Parts<'_>,
    first: usize,
    i: usize,
    tokens: Range<usize>,
) -> usize {
    let mut at = 0;
    while at < parts.stride {
        // SAFETY: passed on; `at` and as many vectors lie within the stride, a multiple of LANES.
        at += S::LANES
            * unsafe {
                match (parts.stride - at) / S::LANES {
                    4.. => add_part::<S, Q, 4>(parts, (first, i), at, tokens.clone()),
                    _ => add_part::<S, Q, 1>(parts, (first, i), at, tokens.clone()),
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
    (first, i): (usize, usize),
    at: usize,
    tokens: Range<usize>,
) -> usize {
    let (stride, query) = (parts.stride, first + i);
    // SAFETY: as the caller grants.
    unsafe {
        let acc = parts.span.acc.as_mut_ptr().add(query * stride + at);
        let s = parts.s.as_ptr().add(i * TILE);
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
