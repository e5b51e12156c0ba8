//! Which tokens of which layers and heads have been seen.
//!
//! P uses it to report each token once, D to know exactly when everything is there. A cell is one (layer, head); its tokens are
//! a sorted list of disjoint ranges that do not touch.

use std::ops::Range;

use kv::KvSpan;

/// A set of (layer, head, token).
pub(crate) struct Coverage {
    kv_heads: u32,
    /// By layer, then head.
    cells: Vec<Vec<Range<u32>>>,
    /// Number of (layer, head, token) in the set.
    tokens: u64,
}

impl Coverage {
    /// An empty set over `layers` x `kv_heads` cells.
    pub(crate) fn new(layers: u32, kv_heads: u32) -> Self {
        Self { kv_heads, cells: vec![Vec::new(); layers as usize * kv_heads as usize], tokens: 0 }
    }

    /// How much is in the set, out of layers x heads x tokens.
    pub(crate) fn len(&self) -> u64 {
        self.tokens
    }

    /// Whether any part of `span` is in the set. `span` lies within the cells.
    pub(crate) fn overlaps(&self, span: &KvSpan) -> bool {
        span.heads.clone().any(|head| {
            let ranges = &self.cells[self.cell(span.layer, head)];
            let next = ranges.partition_point(|range| range.end <= span.tokens.start);
            ranges.get(next).is_some_and(|range| range.start < span.tokens.end)
        })
    }

    /// Adds `span`, and returns the parts that were not in the set, as few spans as the heads' differences allow. `span` lies
    /// within the cells.
    pub(crate) fn add(&mut self, span: &KvSpan) -> Vec<KvSpan> {
        let mut added: Vec<KvSpan> = Vec::new();
        // Spans that the head before got: the same tokens of this head widen them.
        let mut previous = 0..0;
        for head in span.heads.clone() {
            let cell = self.cell(span.layer, head);
            let gaps = insert(&mut self.cells[cell], span.tokens.clone());
            self.tokens += gaps.iter().map(|gap| u64::from(gap.end - gap.start)).sum::<u64>();
            if added[previous.clone()].iter().map(|span| &span.tokens).eq(gaps.iter()) {
                added[previous.clone()].iter_mut().for_each(|span| span.heads.end = head + 1);
            } else {
                previous = added.len()..added.len() + gaps.len();
                let spans = gaps.into_iter().map(|tokens| KvSpan { layer: span.layer, heads: head..head + 1, tokens });
                added.extend(spans);
            }
        }
        added
    }

    fn cell(&self, layer: u32, head: u32) -> usize {
        layer as usize * self.kv_heads as usize + head as usize
    }
}

/// Adds `new` to sorted disjoint `ranges`, joining what touches; returns the parts that were missing.
fn insert(ranges: &mut Vec<Range<u32>>, new: Range<u32>) -> Vec<Range<u32>> {
    let first = ranges.partition_point(|range| range.end < new.start);
    let last = ranges.partition_point(|range| range.start <= new.end);
    let mut gaps = Vec::new();
    let mut joined = new.clone();
    let mut from = new.start;
    for range in &ranges[first..last] {
        if from < range.start {
            gaps.push(from..range.start);
        }
        from = from.max(range.end);
        joined = joined.start.min(range.start)..joined.end.max(range.end);
    }
    if from < new.end {
        gaps.push(from..new.end);
    }
    ranges.splice(first..last, [joined]);
    gaps
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn span(layer: u32, heads: Range<u32>, tokens: Range<u32>) -> KvSpan {
        KvSpan { layer, heads, tokens }
    }

    #[test]
    fn heads_with_equal_gaps_come_back_as_one_span() {
        let mut coverage = Coverage::new(2, 4);
        assert_eq!(coverage.add(&span(1, 0..4, 0..8)), [span(1, 0..4, 0..8)]);
        assert_eq!(coverage.add(&span(1, 0..4, 4..12)), [span(1, 0..4, 8..12)]);
        assert_eq!(coverage.add(&span(0, 1..2, 2..4)), [span(0, 1..2, 2..4)]);
        let parts = [span(0, 0..1, 0..6), span(0, 1..2, 0..2), span(0, 1..2, 4..6), span(0, 2..4, 0..6)];
        assert_eq!(coverage.add(&span(0, 0..4, 0..6)), parts);
        assert_eq!(coverage.add(&span(0, 0..4, 0..6)), []);
    }

    fn any_span() -> impl Strategy<Value = KvSpan> {
        (0..2u32, 0..3u32, 1..3u32, 0..12u32, 1..6u32).prop_map(|(layer, head, heads, token, tokens)| {
            span(layer, head..(head + heads).min(3), token..token + tokens)
        })
    }

    fn cells(span: &KvSpan) -> impl Iterator<Item = (u32, u32, u32)> + '_ {
        span.heads.clone().flat_map(move |head| span.tokens.clone().map(move |token| (span.layer, head, token)))
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(spans in prop::collection::vec(any_span(), 1..30)) {
            let (mut coverage, mut model) = (Coverage::new(2, 3), HashSet::new());
            for span in &spans {
                prop_assert_eq!(coverage.overlaps(span), cells(span).any(|cell| model.contains(&cell)));
                let added = coverage.add(span);
                for cell in added.iter().flat_map(cells) {
                    prop_assert!(model.insert(cell), "{:?} was reported twice", cell);
                }
                prop_assert!(cells(span).all(|cell| model.contains(&cell)));
                prop_assert_eq!(coverage.len(), model.len() as u64);
            }
        }
    }
}
