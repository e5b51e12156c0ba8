//! Where the inner dimension of a product is cut, and how the parts are summed.

use std::ops::Range;

/// Leaves of the tree in which a row-parallel product is summed. A rank of tensor-parallel degree t computes `8 / t` neighbours and
/// their subtree, so every degree up to 8 yields the same bits.
pub const SEGMENTS: usize = 8;

/// Where `k` is cut. Bounds are those of the whole product, so that they do not depend on the degree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segments {
    pub(super) bounds: [usize; SEGMENTS + 1],
    pub(super) count: usize,
}

impl Segments {
    /// One segment: for products whose `k` no rank divides.
    pub fn whole(k: usize) -> Self {
        let mut bounds = [0; SEGMENTS + 1];
        bounds[1] = k;
        Self { bounds, count: 1 }
    }

    /// What rank `rank` of `ranks` sums of a product over `k`. Panics unless `ranks` is a power of two up to 8 that divides `k`.
    pub fn of_rank(k: usize, rank: usize, ranks: usize) -> Self {
        assert!(ranks.is_power_of_two() && ranks <= SEGMENTS && rank < ranks, "rank {rank} of {ranks}");
        assert!(k.is_multiple_of(ranks), "{k} is not a multiple of {ranks}");
        let count = SEGMENTS / ranks;
        let first = rank * count;
        let start = first * k / SEGMENTS;
        let mut bounds = [0; SEGMENTS + 1];
        for (i, bound) in bounds.iter_mut().enumerate().take(count + 1) {
            *bound = (first + i) * k / SEGMENTS - start;
        }
        Self { bounds, count }
    }

    pub(super) fn len(&self) -> usize {
        self.bounds[self.count]
    }

    /// The part of `k` of each segment.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.bounds.windows(2).take(self.count).map(|ends| ends[0]..ends[1])
    }

    /// In what order segments are summed and joined: each sum waits until its right neighbour in the tree is there.
    pub(crate) fn tree(&self) -> impl Iterator<Item = TreeStep> + use<> {
        // As many sums wait as `segment` has bits: one for each whole subtree to its left.
        let step = |segment: usize| TreeStep {
            segment,
            place: segment.count_ones() as usize,
            joins: segment.trailing_ones() as usize,
        };
        (0..self.count).map(step)
    }
}

/// Sums that wait at the same time, at most: one per level of the tree.
pub(crate) const WAITING: usize = SEGMENTS.ilog2() as usize + 1;

/// See [`Segments::tree`]: the sum of `segment` goes to `place`; then, `joins` times, the last place is added to the one before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TreeStep {
    pub(crate) segment: usize,
    /// Below [`WAITING`].
    pub(crate) place: usize,
    pub(crate) joins: usize,
}

/// `out[i]` = the sum of `parts[..][i]` as a balanced binary tree. The number of parts is a power of two.
pub fn tree_sum(parts: &[&[f32]], out: &mut [f32]) {
    assert!(parts.len().is_power_of_two() && parts.iter().all(|part| part.len() == out.len()), "parts of one shape");
    /// Small enough for a few of them on the stack, large enough to add in whole vectors.
    const PIECE: usize = 256;
    for (index, out) in out.chunks_mut(PIECE).enumerate() {
        add_tree(parts, index * PIECE, out);
    }

    fn add_tree(parts: &[&[f32]], at: usize, out: &mut [f32]) {
        if let [part] = parts {
            return out.copy_from_slice(&part[at..at + out.len()]);
        }
        let (left, right) = parts.split_at(parts.len() / 2);
        let mut other = [0.0; PIECE];
        let other = &mut other[..out.len()];
        add_tree(left, at, out);
        add_tree(right, at, other);
        out.iter_mut().zip(other).for_each(|(out, other)| *out += *other);
    }
}
