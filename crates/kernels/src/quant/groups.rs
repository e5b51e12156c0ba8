//! Where the inner dimension of a quantised product is cut.

use std::ops::Range;

use super::{GROUP, UNIT};
use crate::matmul::Segments;

/// Groups of one product: each lies within one segment and is padded to a multiple of [`UNIT`] values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Groups {
    segments: Segments,
    /// Where each group starts in the row as it is given, and the end.
    plain: Vec<usize>,
    /// Where each group starts in the padded row, and the end.
    padded: Vec<usize>,
    /// First group of each segment, and the number of groups.
    of_segment: Vec<usize>,
}

impl Groups {
    /// Groups within `segments`.
    pub fn new(segments: Segments) -> Self {
        let (mut plain, mut padded, mut of_segment) = (vec![0], vec![0], vec![0]);
        let mut end = 0;
        for segment in segments.ranges() {
            let mut start = segment.start;
            while start < segment.end {
                let len = GROUP.min(segment.end - start);
                start += len;
                end += len.next_multiple_of(UNIT);
                plain.push(start);
                padded.push(end);
            }
            of_segment.push(plain.len() - 1);
        }
        Self { segments, plain, padded, of_segment }
    }

    pub(super) fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Number of groups.
    pub(super) fn len(&self) -> usize {
        self.plain.len() - 1
    }

    /// Length of a row as it is given.
    pub fn row(&self) -> usize {
        self.plain[self.len()]
    }

    /// Length of a padded row.
    pub(super) fn padded_row(&self) -> usize {
        self.padded[self.len()]
    }

    /// Group `index` of a row as it is given.
    pub(super) fn plain(&self, index: usize) -> Range<usize> {
        self.plain[index]..self.plain[index + 1]
    }

    /// Group `index` of a padded row.
    pub(super) fn padded(&self, index: usize) -> Range<usize> {
        self.padded[index]..self.padded[index + 1]
    }

    /// The groups of a segment.
    pub(super) fn of_segment(&self, segment: usize) -> Range<usize> {
        self.of_segment[segment]..self.of_segment[segment + 1]
    }
}
