//! Rank-table documents: parse, check, merge, resolve.
