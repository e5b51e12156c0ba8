//! Drawing one token from adjusted logits, without sorting the vocabulary.
//!
//! Top-k, top-p and the draw itself each ask for the place, in the order from the most to the least likely token, where a number of
//! tokens or a sum of weights is reached. Tokens are counted in buckets of about the same weight; whole buckets are passed over, and
//! only the one that holds the place is sorted. Sums of buckets are exact, so the tokens are those of a sorted vocabulary.

mod buckets;

use std::cell::RefCell;

use kernels::{Isa, softmax_weights};
use types::SamplingParams;

use buckets::Buckets;
#[cfg(test)]
pub(super) use buckets::rounded;

/// Weights that are summed together.
const BLOCK: usize = 512;

/// Kept between draws: the vocabulary is large.
#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    buckets: Buckets,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The token that `uniform` in [0, 1) picks among those that the parameters leave. `max` is the largest score.
pub(super) fn draw(isa: Isa, scores: &[f32], max: f32, params: &SamplingParams, uniform: f64) -> usize {
    SCRATCH.with_borrow_mut(|Scratch { weights, buckets }| {
        softmax_weights(isa, scores, max, params.temperature, params.min_p, weights);
        let (top_k, top_p) = (params.top_k as usize, f64::from(params.top_p));
        let limited = top_k > 0 && top_k < weights.len();
        if !limited && top_p >= 1.0 {
            return pick_any(weights, uniform);
        }
        let goal = top_p * if limited { 0.0 } else { total(weights) };
        buckets.fill(weights, |upto| if limited { upto.count >= top_k } else { upto.sum >= goal });
        let mut kept = buckets.all();
        if limited {
            kept = buckets.reach(weights, |upto| upto.count >= top_k.min(kept.count));
        }
        if top_p < 1.0 {
            let goal = if limited { top_p * kept.sum } else { goal };
            kept = buckets.reach(weights, |upto| upto.sum >= goal || upto.count >= kept.count);
        }
        let goal = uniform * kept.sum;
        buckets.reach(weights, |upto| upto.sum > goal || upto.count >= kept.count).id
    })
}

/// Sums of neighbouring weights.
fn blocks(weights: &[f32]) -> impl Iterator<Item = f64> {
    const LANES: usize = 16;
    weights.chunks(BLOCK).map(|block| {
        let mut sums = [0.0f32; LANES];
        for part in block.chunks(LANES) {
            sums.iter_mut().zip(part).for_each(|(sum, weight)| *sum += weight);
        }
        sums.iter().map(|sum| f64::from(*sum)).sum()
    })
}

/// The sum of all weights, in the order of their ids.
pub(super) fn total(weights: &[f32]) -> f64 {
    blocks(weights).sum()
}

/// Picks among all tokens in the order of their ids.
fn pick_any(weights: &[f32], uniform: f64) -> usize {
    let goal = uniform * total(weights);
    let mut before = 0.0;
    let heavy = blocks(weights).position(|sum| {
        before += sum;
        before > goal
    });
    // Behind the last block only by rounding: then it is the last token.
    let from = heavy.map_or(0, |block| block * BLOCK);
    let mut sum = if heavy.is_some() { before - blocks(&weights[from..]).next().unwrap_or(0.0) } else { 0.0 };
    let mut last = 0;
    for (id, weight) in weights.iter().enumerate().skip(from).filter(|(_, weight)| **weight > 0.0) {
        sum += f64::from(*weight);
        last = id;
        if sum > goal {
            break;
        }
    }
    last
}

/// Indices of the `count` largest values, largest first, equal ones by index.
pub(super) fn largest(values: &[f32], count: usize) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let mut best: Vec<(u32, f32)> = Vec::new();
    for (id, value) in values.iter().enumerate() {
        if best.len() == count && best.last().is_none_or(|worst| *value <= worst.1) {
            continue;
        }
        let place = best.partition_point(|held| held.1 >= *value);
        best.insert(place, (id as u32, *value));
        best.truncate(count);
    }
    best.into_iter().map(|(id, _)| id as usize).collect()
}
