//! What some queries make of a tile: scores, weights, weighted values.

use std::ops::Range;

use super::{Parts, TILE};
use crate::simd::{MAX_LANES, Simd};

/// Queries that go through a tile together: as many as whole sets of sums in registers serve.
pub(super) const fn together(lanes: usize) -> usize {
    if lanes == 16 { 16 } else { 24 }
}

/// The most that go together on any level.
pub(super) const TOGETHER_MAX: usize = {
    let (widest, others) = (together(MAX_LANES), together(MAX_LANES / 2));
    if widest > others { widest } else { others }
};

/// Elements of a head whose products a loop adds at a time, a divisor of [`Simd::LANES`]: fewer instructions are spent on the loop.
const AT_ONCE: usize = 4;

/// `s[i][token] = q[query] . k[token]` for the `i`-th of some queries and the first `tokens` of the tile (and some behind them), each dot
/// product one element after the other.
///
/// # Safety
/// The parts are as documented; the CPU has `S`.
#[inline(always)]
pub(super) unsafe fn score<S: Simd>(parts: &mut Parts<'_>, queries: Range<usize>, tokens: usize) {
    let mut at = 0;
    while at < queries.len() {
        // SAFETY: passed on; no more queries than are left are taken.
        at += unsafe {
            match (S::LANES, queries.len() - at) {
                (16, 8..) => score_some::<S, 8>(parts, queries.start, at, tokens),
                (16, 7) => score_some::<S, 7>(parts, queries.start, at, tokens),
                (_, 6..) => score_some::<S, 6>(parts, queries.start, at, tokens),
                (_, 5) => score_some::<S, 5>(parts, queries.start, at, tokens),
                (_, 4) => score_some::<S, 4>(parts, queries.start, at, tokens),
                (_, 3) => score_some::<S, 3>(parts, queries.start, at, tokens),
                (_, 2) => score_some::<S, 2>(parts, queries.start, at, tokens),
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
            let k = parts.k.as_ptr().add(token * stride);
            for start in (0..stride).step_by(AT_ONCE) {
                for e in start..start + AT_ONCE {
                    let k = k.add(e * 2 * S::LANES);
                    let k = [S::load(k), S::load(k.add(S::LANES))];
                    for (at, sums) in sums.iter_mut().enumerate() {
                        let q = S::splat(*q.add(at * stride + e));
                        *sums = [S::mul_add(q, k[0], sums[0]), S::mul_add(q, k[1], sums[1])];
                    }
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
/// As [`score`]; `seen` lies within the tile.
#[inline(always)]
pub(super) unsafe fn weigh<S: Simd>(
    parts: &mut Parts<'_>,
    queries: Range<usize>,
    seen: impl Fn(usize) -> Range<usize>,
) {
    for i in (0..queries.len()).step_by(S::LANES) {
        let some = queries.start + i..queries.end.min(queries.start + i + S::LANES);
        // SAFETY: passed on.
        unsafe { weigh_some::<S>(parts, some, i, &seen) };
    }
}

/// Weights of at most LANES queries, the first of which is the `i`-th.
///
/// # Safety
/// As [`weigh`].
#[inline(always)]
unsafe fn weigh_some<S: Simd>(
    parts: &mut Parts<'_>,
    queries: Range<usize>,
    i: usize,
    seen: impl Fn(usize) -> Range<usize>,
) {
    let (maxima, all) = (&mut parts.span.max[queries.clone()], &mut parts.span.sum[queries.clone()]);
    let corrections = &mut parts.correction[queries.clone()];
    let (scores, count) = (&mut parts.s.as_chunks_mut::<TILE>().0[i..], queries.len());
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
pub(super) unsafe fn add_values<S: Simd>(parts: &mut Parts<'_>, queries: Range<usize>, tokens: Range<usize>) {
    let mut at = 0;
    while at < queries.len() {
        // SAFETY: passed on; no more queries than are left are taken.
        at += unsafe {
            match (S::LANES, queries.len() - at) {
                (16, 4..) => add_some::<S, 4, 4>(parts, queries.start, at, tokens.clone()),
                (16, 3) => add_some::<S, 3, 4>(parts, queries.start, at, tokens.clone()),
                (_, 6..) => add_some::<S, 6, 2>(parts, queries.start, at, tokens.clone()),
                (_, 2..) => add_some::<S, 2, 4>(parts, queries.start, at, tokens.clone()),
                _ => add_some::<S, 1, 4>(parts, queries.start, at, tokens.clone()),
            }
        };
    }
}

/// Values for `Q` queries, `N` vectors of each at a time, from the `i`-th behind `first` on; returns `Q`.
///
/// # Safety
/// As [`add_values`].
#[inline(always)]
unsafe fn add_some<S: Simd, const Q: usize, const N: usize>(
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
                match parts.stride - at >= N * S::LANES {
                    true => add_part::<S, Q, N>(parts, (first, i), at, tokens.clone()),
                    false => add_part::<S, Q, 1>(parts, (first, i), at, tokens.clone()),
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
