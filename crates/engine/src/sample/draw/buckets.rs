//! Tokens counted by weight.

use std::cmp::Ordering;
use std::ops::Range;

/// Weights count as whole multiples of this, so that sums of up to two million of them are exact in any order. What rounds to nothing is
/// never drawn.
const GRAIN: f64 = 1.0 / (1u64 << 32) as f64;

/// The least weight that counts.
const LEAST: f32 = GRAIN as f32 / 2.0 * (1.0 + f32::EPSILON);

/// What tokens weigh at least that are counted first; mostly those are few, and enough.
const HEAVY: f32 = 1.0 / 4096.0;

/// Weights with the same upper bits share a bucket: 512 for every power of two, so that flat distributions fill many, too.
const SHIFT: u32 = 14;
/// The upper bits of the largest weight.
const TOP: u32 = 1.0f32.to_bits() >> SHIFT;
const BUCKETS: usize = (TOP - (LEAST.to_bits() >> SHIFT) + 1) as usize;

/// Weights that are passed over together.
const GLANCE: usize = 16;

/// How many tokens, and the sum of their weights.
#[derive(Clone, Copy, Default)]
struct Bucket {
    sum: f64,
    count: usize,
}

/// A token in the order from the largest weight to the smallest, equal ones by id, and what it comes to with all before it.
#[derive(Clone, Copy, Default)]
pub(super) struct Upto {
    pub(super) id: usize,
    pub(super) count: usize,
    pub(super) sum: f64,
}

/// The largest weights come first.
#[derive(Default)]
pub(super) struct Buckets {
    buckets: Vec<Bucket>,
    /// Id and weight of the tokens of bucket `sorted`, in order.
    tokens: Vec<(u32, f32)>,
    sorted: Option<usize>,
}

impl Buckets {
    /// Counts `weights`, which are between 0 and 1: the heavy ones, or all that count if those are not `enough`.
    pub(super) fn fill(&mut self, weights: &[f32], enough: impl Fn(&Upto) -> bool) {
        self.count(weights, HEAVY);
        if !enough(&self.all()) {
            self.count(weights, LEAST);
        }
    }

    fn count(&mut self, weights: &[f32], least: f32) {
        self.sorted = None;
        self.buckets.clear();
        self.buckets.resize(BUCKETS, Bucket::default());
        for glance in weights.chunks(GLANCE) {
            // Without a branch for each: many glances find nothing.
            if !glance.iter().fold(false, |found, weight| found | (*weight >= least)) {
                continue;
            }
            for weight in glance.iter().filter(|weight| **weight >= least) {
                let bucket = &mut self.buckets[place(*weight)];
                bucket.count += 1;
                bucket.sum += rounded(*weight);
            }
        }
    }

    /// What all counted tokens come to; no id.
    pub(super) fn all(&self) -> Upto {
        self.buckets.iter().fold(Upto::default(), |upto, bucket| upto.and(upto.id, bucket.count, bucket.sum))
    }

    /// The first token with which there is `enough`, as there is with all counted ones. `weights` are those of `fill`.
    pub(super) fn reach(&mut self, weights: &[f32], enough: impl Fn(&Upto) -> bool) -> Upto {
        let mut before = Upto::default();
        for index in 0..BUCKETS {
            let Bucket { sum, count } = self.buckets[index];
            let with = before.and(before.id, count, sum);
            if count > 0 && enough(&with) {
                for &(id, weight) in self.sorted(weights, index) {
                    before = before.and(id as usize, 1, rounded(weight));
                    if enough(&before) {
                        return before;
                    }
                }
            }
            before = with;
        }
        before
    }

    /// The tokens of a bucket, in order.
    fn sorted(&mut self, weights: &[f32], index: usize) -> &[(u32, f32)] {
        if self.sorted.replace(index) != Some(index) {
            self.tokens.clear();
            let Range { start, end } = bounds(index);
            let within = |weight: f32| (weight >= start) & (weight < end);
            for (at, glance) in weights.chunks(GLANCE).enumerate() {
                if glance.iter().fold(false, |found, weight| found | within(*weight)) {
                    let tokens = (at * GLANCE..).zip(glance).map(|(id, weight)| (id as u32, *weight));
                    self.tokens.extend(tokens.filter(|(_, weight)| within(*weight)));
                }
            }
            self.tokens.sort_unstable_by(order);
        }
        &self.tokens
    }
}

impl Upto {
    /// With `count` more, of which the last is `id`.
    fn and(self, id: usize, count: usize, sum: f64) -> Self {
        Self { id, count: self.count + count, sum: self.sum + sum }
    }
}

/// Largest weight first, then lowest id.
fn order(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// To the nearest multiple of [`GRAIN`], ties to even.
pub(in crate::sample) fn rounded(weight: f32) -> f64 {
    /// Numbers of this size have no bits below the grain.
    const LARGE: f64 = GRAIN * (1u64 << 52) as f64;
    (f64::from(weight) + LARGE) - LARGE
}

/// The bucket of a weight that counts.
fn place(weight: f32) -> usize {
    (TOP.saturating_sub(weight.to_bits() >> SHIFT)) as usize
}

/// The weights of a bucket. 1 is the largest weight, but for rounding.
fn bounds(index: usize) -> Range<f32> {
    let bits = (TOP - index as u32) << SHIFT;
    let end = if index == 0 { f32::INFINITY } else { f32::from_bits(bits + (1 << SHIFT)) };
    f32::from_bits(bits).max(LEAST)..end
}
