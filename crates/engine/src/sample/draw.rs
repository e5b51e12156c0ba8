//! Temperature, min-p, top-k, top-p and the draw, without sorting the vocabulary.

use std::cmp::Ordering;

use types::SamplingParams;

/// A token and its weight, `e^((logit - max) / temperature)`.
type Candidate = (usize, f32);

/// The token at `uniform` (0..1) of the distribution that `params` leave of `scores`, whose largest is `max`.
pub(super) fn draw(scores: &[f32], max: f32, params: &SamplingParams, uniform: f64) -> usize {
    let weight = |score: f32| ((score - max) / params.temperature).exp();
    let all = scores.iter().enumerate().map(|(id, score)| (id, weight(*score)));
    let mut candidates: Vec<Candidate> = all.filter(|(_, weight)| *weight > 0.0 && *weight >= params.min_p).collect();
    let top_k = params.top_k as usize;
    if top_k > 0 && top_k < candidates.len() {
        best_first(&mut candidates, top_k);
        candidates.truncate(top_k);
    }
    if params.top_p < 1.0 {
        keep_nucleus(&mut candidates, f64::from(params.top_p));
    }
    pick(&candidates, uniform)
}

/// Largest first; equal ones by id.
fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Brings the `count` best to the front, sorted; `count` is at most the number of candidates.
fn best_first(candidates: &mut [Candidate], count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, order);
    }
    candidates[..count].sort_unstable_by(order);
}

/// Keeps the fewest best candidates that have at least the share `top_p` of all weight; always one.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    let goal = top_p * total(candidates);
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

/// Walks the candidates up to the share `uniform` of their weight.
fn pick(candidates: &[Candidate], uniform: f64) -> usize {
    let goal = uniform * total(candidates);
    let mut sum = 0.0;
    let found = candidates.iter().find(|(_, weight)| {
        sum += f64::from(*weight);
        sum > goal
    });
    found.or(candidates.last()).map_or(0, |(id, _)| *id)
}

/// Indices of the `count` largest values, largest first, equal ones by index.
pub(super) fn largest(values: &[f32], count: usize) -> Vec<usize> {
    let mut best: Vec<Candidate> = Vec::new();
    for (id, value) in values.iter().enumerate() {
        if best.len() == count && best.last().is_none_or(|worst| *value <= worst.1) {
            continue;
        }
        let place = best.partition_point(|held| held.1 >= *value);
        best.insert(place, (id, *value));
        best.truncate(count);
    }
    best.into_iter().map(|(id, _)| id).collect()
}
