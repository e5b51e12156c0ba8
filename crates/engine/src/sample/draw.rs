//! Drawing one token from adjusted logits, without sorting the vocabulary.
//!
//! Only candidates are ever sorted: tokens above a threshold that is lowered until it leaves enough of them. Mostly those are few, so
//! that a draw costs some passes over the vocabulary, which vectors take.

use std::cell::RefCell;
use std::cmp::Ordering;

use kernels::{Isa, softmax_weights};
use types::SamplingParams;

/// Id and weight, or logit.
type Candidate = (u32, f32);

/// What candidates weigh at least, as a share of the best token's weight; tried one after the other.
const THRESHOLDS: [f32; 4] = [1.0 / 32.0, 1.0 / 4096.0, 1.0 / (1 << 24) as f32, 0.0];

/// Weights that are summed, or passed over, together.
const BLOCK: usize = 512;
/// As [`BLOCK`], while looking for candidates.
const GLANCE: usize = 64;

/// Kept between draws: the vocabulary is large.
#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The token that `uniform` in [0, 1) picks among those that the parameters leave. `max` is the largest score.
pub(super) fn draw(isa: Isa, scores: &[f32], max: f32, params: &SamplingParams, uniform: f64) -> usize {
    SCRATCH.with_borrow_mut(|Scratch { weights, candidates }| {
        softmax_weights(isa, scores, max, params.temperature, params.min_p, weights);
        let (top_k, top_p) = (params.top_k as usize, f64::from(params.top_p));
        let limited = top_k > 0 && top_k < weights.len();
        if !limited && top_p >= 1.0 {
            return pick_any(weights, uniform);
        }
        if limited {
            gather(weights, candidates, |candidates| candidates.len() >= top_k);
            let count = top_k.min(candidates.len());
            best_first(candidates, count);
            candidates.truncate(count);
        }
        if top_p < 1.0 {
            let goal = top_p * if limited { total(candidates) } else { blocks(weights).sum::<f64>() };
            if !limited {
                gather(weights, candidates, |candidates| total(candidates) >= goal);
            }
            keep_nucleus(candidates, goal);
        }
        pick(candidates, uniform)
    })
}

/// Largest weight first, then lowest id.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
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

/// Makes `candidates` the tokens of the highest threshold that leaves enough, or all that have a weight.
fn gather(weights: &[f32], candidates: &mut Vec<Candidate>, enough: impl Fn(&[Candidate]) -> bool) {
    for threshold in THRESHOLDS {
        candidates.clear();
        let least = threshold.max(f32::MIN_POSITIVE);
        for (index, glance) in weights.chunks(GLANCE).enumerate() {
            // Without a branch for each: most glances find nothing.
            if !glance.iter().fold(false, |found, weight| found | (*weight >= least)) {
                continue;
            }
            let id = |at: usize| (index * GLANCE + at) as u32;
            let found = glance.iter().enumerate().filter(|(_, weight)| **weight >= least);
            candidates.extend(found.map(|(at, weight)| (id(at), *weight)));
        }
        if enough(candidates) {
            return;
        }
    }
}

/// Puts the best `count` candidates in front, in order.
fn best_first(candidates: &mut [Candidate], count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, order);
    }
    candidates[..count].sort_unstable_by(order);
}

/// Keeps the most likely candidates whose weights reach `goal`, best first.
fn keep_nucleus(candidates: &mut Vec<Candidate>, goal: f64) {
    // A nucleus is mostly small: look among a few first.
    let mut front = 256.min(candidates.len());
    loop {
        best_first(candidates, front);
        let mut sum = 0.0;
        let reached = candidates[..front].iter().position(|(_, weight)| {
            sum += f64::from(*weight);
            sum >= goal
        });
        match reached {
            Some(last) => return candidates.truncate(last + 1),
            None if front == candidates.len() => return,
            None => front = (8 * front).min(candidates.len()),
        }
    }
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|(_, weight)| f64::from(*weight)).sum()
}

fn pick(candidates: &[Candidate], uniform: f64) -> usize {
    let goal = uniform * total(candidates);
    let mut sum = 0.0;
    let found = candidates.iter().find(|(_, weight)| {
        sum += f64::from(*weight);
        sum > goal
    });
    found.or(candidates.last()).map_or(0, |(id, _)| *id as usize)
}

/// As [`pick`], among all tokens in the order of their ids.
fn pick_any(weights: &[f32], uniform: f64) -> usize {
    let goal = uniform * blocks(weights).sum::<f64>();
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
    let mut best: Vec<Candidate> = Vec::new();
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
