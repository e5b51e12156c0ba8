//! `y[m][n] = sum over k of x[m][k] * w[n][k]`, with `w` as it lies in the model file.
//!
//! One order per output element: `k` is cut into segments at fixed places; within a segment, lane `l` of a vector takes `k = l`,
//! `l + LANES`, ... one after the other, then the lanes are added pairwise; the segments are added as a balanced binary tree. How many
//! rows or columns are worked on together changes which elements share a load, never this order.

#![expect(unsafe_code, reason = "vector loads and disjoint writes from several threads")]

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::simd::{Isa, Kernel, MAX_LANES, Simd};
use crate::{Pool, pool::SharedMut};

/// Leaves of the tree in which a row-parallel product is summed. A rank of tensor-parallel degree t computes `8 / t` neighbours and
/// their subtree, so every degree up to 8 yields the same bits.
pub const SEGMENTS: usize = 8;

/// Rows of `x` worked on together: with `LANES` accumulators each output has one register.
const ROWS: usize = 8;

/// Most columns of one task: 64 rows of `w` mostly fit into the second-level cache, so that all rows of `x` find them there.
const COLUMNS: usize = 64;

/// How weights are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
        }
    }
}

/// A matrix `[rows][cols]` inside a larger row-major one, little endian, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    bytes: &'a [u8],
    element: Element,
    rows: usize,
    cols: usize,
    /// Elements from one row to the next.
    stride: usize,
}

impl<'a> WeightView<'a> {
    /// The whole of `bytes`; `None` unless it holds exactly `rows * cols` elements.
    pub fn new(bytes: &'a [u8], element: Element, rows: usize, cols: usize) -> Option<Self> {
        let expected = rows.checked_mul(cols)?.checked_mul(element.size())?;
        (bytes.len() == expected).then_some(Self { bytes, element, rows, cols, stride: cols })
    }

    /// A rank's part. Panics if the ranges are not inside.
    pub fn shard(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(cols.start <= cols.end && cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        let size = self.element.size();
        let start = if rows.is_empty() { 0 } else { (rows.start * self.stride + cols.start) * size };
        let end = if rows.is_empty() { 0 } else { ((rows.end - 1) * self.stride + cols.end) * size };
        Self { bytes: &self.bytes[start..end], rows: rows.len(), cols: cols.len(), ..self }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row as `f32`. Panics if there is no such row or `out` is not `cols` long.
    pub fn copy_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {} into {}", self.rows, out.len());
        let start = row * self.stride * self.element.size();
        let bytes = &self.bytes[start..start + self.cols * self.element.size()];
        isa.run(Widen { bytes, element: self.element, out });
    }
}

/// Where `k` is cut. Bounds are those of the whole product, so that they do not depend on the degree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segments {
    bounds: [usize; SEGMENTS + 1],
    count: usize,
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

    fn len(&self) -> usize {
        self.bounds[self.count]
    }
}

/// `out = x * w^T (+ bias)`: `x` is `[m][w.cols]`, `out` `[m][w.rows]`, `bias` `[w.rows]`. Panics if the shapes do not agree.
pub fn matmul(
    isa: Isa,
    pool: &Pool,
    x: &[f32],
    w: &WeightView<'_>,
    segments: &Segments,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    assert_eq!(segments.len(), w.cols, "segments of another product");
    assert!(bias.is_none_or(|bias| bias.len() == w.rows), "bias of another product");
    if w.rows == 0 || out.is_empty() {
        return;
    }
    let m = out.len() / w.rows;
    assert!(m * w.rows == out.len() && m * w.cols == x.len(), "{} by {} into {}", x.len(), w.cols, out.len());
    // Narrow products still give every thread something; multiples of MAX_LANES keep tiles whole.
    let columns = w.rows.div_ceil(pool.threads()).next_multiple_of(MAX_LANES).min(COLUMNS);
    let out = SharedMut::new(out);
    pool.run(w.rows.div_ceil(columns), |task| {
        let columns = task * columns..((task + 1) * columns).min(w.rows);
        isa.run(ColumnBlock { x, m, w, segments, bias, columns, out: &out });
    });
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

/// All rows of `x` times some columns (rows of `w`); one thread's task.
struct ColumnBlock<'a> {
    x: &'a [f32],
    m: usize,
    w: &'a WeightView<'a>,
    segments: &'a Segments,
    bias: Option<&'a [f32]>,
    columns: Range<usize>,
    /// `[m][w.rows]`; this task writes `columns` of it and nothing else.
    out: &'a SharedMut<'a>,
}

impl Kernel for ColumnBlock<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `matmul` has checked the shapes.
        unsafe {
            match self.w.element {
                Element::F32 => self.blocks::<S, F32>(),
                Element::F16 => self.blocks::<S, F16>(),
                Element::Bf16 => self.blocks::<S, Bf16>(),
            }
        }
    }
}

/// Results of one block: `[segment][row][column]`.
type Partials = MaybeUninit<[f32; SEGMENTS * ROWS * COLUMNS]>;

impl ColumnBlock<'_> {
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn blocks<S: Simd, E: Load>(&self) {
        let mut partials = Partials::uninit();
        let partials = partials.as_mut_ptr().cast::<f32>();
        let mut row = 0;
        while row < self.m {
            let rows = (self.m - row).min(ROWS);
            for segment in 0..self.segments.count {
                // SAFETY: `partials` has room for SEGMENTS such parts.
                unsafe { self.segment::<S, E>(row, rows, segment, partials.add(segment * ROWS * COLUMNS)) };
            }
            // SAFETY: every element of the first `count` parts that `finish` reads was written above.
            unsafe { self.finish(row, rows, partials) };
            row += rows;
        }
    }

    /// Products of one segment of `k`.
    ///
    /// # Safety
    /// `to` has room for `ROWS * COLUMNS` floats; else as [`Kernel::run`].
    #[inline(always)]
    unsafe fn segment<S: Simd, E: Load>(&self, row: usize, rows: usize, segment: usize, to: *mut f32) {
        let (start, end) = (self.segments.bounds[segment], self.segments.bounds[segment + 1]);
        let (k, size) = (self.w.cols, E::SIZE);
        let mut r = 0;
        while r < rows {
            // SAFETY: rows `row + r ..` of `x` and `self.columns` of `w` exist and are `k` long; `start..end` lies within.
            unsafe {
                let x = self.x.as_ptr().add((row + r) * k + start);
                let w = self.w.bytes.as_ptr().add((self.columns.start * self.w.stride + start) * size);
                let to = to.add(r * COLUMNS);
                let product = Product {
                    x,
                    x_stride: k,
                    w,
                    w_stride: self.w.stride * size,
                    k: end - start,
                    to,
                    to_stride: COLUMNS,
                };
                r += product.some_rows::<S, E>(rows - r, self.columns.len());
            }
        }
    }

    /// Adds the segments up and writes the outputs.
    ///
    /// # Safety
    /// The first `count` parts of `partials` are written for `rows` rows and this block's columns.
    #[inline(always)]
    unsafe fn finish(&self, row: usize, rows: usize, partials: *mut f32) {
        let columns = self.columns.len();
        for r in 0..rows {
            let mut step = 1;
            while step < self.segments.count {
                for segment in (0..self.segments.count).step_by(2 * step) {
                    // SAFETY: two different parts, both written; each row of a part is COLUMNS long.
                    unsafe {
                        let left = partials.add((segment * ROWS + r) * COLUMNS);
                        let right = left.add(step * ROWS * COLUMNS);
                        for c in 0..columns {
                            *left.add(c) += *right.add(c);
                        }
                    }
                }
                step *= 2;
            }
            // SAFETY: part 0 is written; the output row has `w.rows` columns, of which this task owns `self.columns`.
            unsafe {
                let sum = std::slice::from_raw_parts(partials.add(r * COLUMNS), columns);
                let out = self.out.slice((row + r) * self.w.rows + self.columns.start, columns);
                match self.bias {
                    None => out.copy_from_slice(sum),
                    Some(bias) => {
                        let bias = &bias[self.columns.clone()];
                        out.iter_mut().zip(sum).zip(bias).for_each(|((out, sum), bias)| *out = sum + bias);
                    }
                }
            }
        }
    }
}

/// Dot products of some rows of `x` with consecutive rows of `w`. Strides of `x` and `to` are in floats, of `w` in bytes.
pub(crate) struct Product {
    pub(crate) x: *const f32,
    pub(crate) x_stride: usize,
    pub(crate) w: *const u8,
    pub(crate) w_stride: usize,
    pub(crate) k: usize,
    pub(crate) to: *mut f32,
    pub(crate) to_stride: usize,
}

impl Product {
    /// Computes the first 1, 2, 4 or 8 of `rows` rows and `columns` columns; returns how many rows.
    ///
    /// # Safety
    /// `rows` rows of `x` and `columns` of `w` are readable, `rows` by `columns` of `to` writable; the CPU has `S`.
    #[inline(always)]
    pub(crate) unsafe fn some_rows<S: Simd, E: Load>(&self, rows: usize, columns: usize) -> usize {
        // SAFETY: passed on. Each shape has LANES outputs.
        unsafe {
            match (S::LANES, rows) {
                (16, 8..) => self.tiles::<S, E, 8, 2>(columns),
                (16, 4..) => self.tiles::<S, E, 4, 4>(columns),
                (16, 2..) => self.tiles::<S, E, 2, 8>(columns),
                (16, _) => self.tiles::<S, E, 1, 16>(columns),
                (_, 4..) => self.tiles::<S, E, 4, 2>(columns),
                (_, 2..) => self.tiles::<S, E, 2, 4>(columns),
                _ => self.tiles::<S, E, 1, 8>(columns),
            }
        }
    }

    /// # Safety
    /// As [`Product::some_rows`], for `M` rows.
    #[inline(always)]
    unsafe fn tiles<S: Simd, E: Load, const M: usize, const N: usize>(&self, columns: usize) -> usize {
        let mut column = 0;
        while column < columns {
            let mut outputs = [0.0f32; MAX_LANES];
            let last = columns - 1 - column;
            // SAFETY: tiles that stick out repeat the last column, so every row read exists; only existing outputs are written.
            unsafe {
                let x: [*const f32; M] = std::array::from_fn(|m| self.x.add(m * self.x_stride));
                let w: [*const u8; N] = std::array::from_fn(|n| self.w.add((column + n.min(last)) * self.w_stride));
                tile::<S, E, M, N>(x, w, self.k, &mut outputs);
                for m in 0..M {
                    let to = self.to.add(m * self.to_stride + column);
                    if N <= last + 1 {
                        to.cast::<[f32; N]>().write_unaligned(std::array::from_fn(|n| outputs[m * N + n]));
                    } else {
                        std::ptr::copy_nonoverlapping(outputs[m * N..].as_ptr(), to, last + 1);
                    }
                }
            }
            column += N;
        }
        M
    }
}

/// `out[m * N + n] = x[m] . w[n]` over `k` elements; `M * N` is `LANES`.
///
/// # Safety
/// Every pointer has `k` readable elements; the CPU has `S`.
#[inline(always)]
unsafe fn tile<S: Simd, E: Load, const M: usize, const N: usize>(
    x: [*const f32; M],
    w: [*const u8; N],
    k: usize,
    out: &mut [f32; MAX_LANES],
) {
    // SAFETY: `i + LANES <= k` or a head of `k - i` elements; `out` holds MAX_LANES >= LANES floats.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; M];
        let mut i = 0;
        while i + S::LANES <= k {
            let w: [S::V; N] = load_all::<S, E, N>(&w, i);
            for m in 0..M {
                let x = S::load(x[m].add(i));
                for n in 0..N {
                    sums[m][n] = S::mul_add(x, w[n], sums[m][n]);
                }
            }
            i += S::LANES;
        }
        if i < k {
            for m in 0..M {
                let x = S::load_head(x[m].add(i), k - i);
                for n in 0..N {
                    sums[m][n] = S::mul_add(x, E::load_head::<S>(w[n].add(i * E::SIZE), k - i), sums[m][n]);
                }
            }
        }
        S::sums(sums.as_flattened(), out.as_mut_ptr());
    }
}

/// # Safety
/// Every pointer has `LANES` readable elements from `i` on; the CPU has `S`.
#[inline(always)]
unsafe fn load_all<S: Simd, E: Load, const N: usize>(w: &[*const u8; N], i: usize) -> [S::V; N] {
    // SAFETY: passed on.
    unsafe {
        let mut v = [S::splat(0.0); N];
        for n in 0..N {
            v[n] = E::load::<S>(w[n].add(i * E::SIZE));
        }
        v
    }
}

/// An element type as vectors are loaded from it.
pub(crate) trait Load {
    const SIZE: usize;

    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(from: *const u8) -> S::V;

    /// # Safety
    /// As [`Simd::load_head`].
    unsafe fn load_head<S: Simd>(from: *const u8, count: usize) -> S::V;
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

macro_rules! load {
    ($name:ident, $size:literal, $load:ident, $head:ident) => {
        // SAFETY: passed on to the caller.
        impl Load for $name {
            const SIZE: usize = $size;
            #[inline(always)]
            unsafe fn load<S: Simd>(from: *const u8) -> S::V {
                unsafe { S::$load(from.cast()) }
            }
            #[inline(always)]
            unsafe fn load_head<S: Simd>(from: *const u8, count: usize) -> S::V {
                unsafe { S::$head(from.cast(), count) }
            }
        }
    };
}
load!(F32, 4, load, load_head);
load!(F16, 2, load_f16, load_f16_head);
load!(Bf16, 2, load_bf16, load_bf16_head);

/// Stored elements to `f32`; `bytes` holds as many as `out`.
struct Widen<'a> {
    bytes: &'a [u8],
    element: Element,
    out: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `copy_row` cut `bytes` to the length of `out`.
        unsafe {
            match self.element {
                Element::F32 => widen::<S, F32>(self.bytes.as_ptr(), self.out),
                Element::F16 => widen::<S, F16>(self.bytes.as_ptr(), self.out),
                Element::Bf16 => widen::<S, Bf16>(self.bytes.as_ptr(), self.out),
            }
        }
    }
}

/// # Safety
/// `from` has as many readable elements as `out`; the CPU has `S`.
#[inline(always)]
pub(crate) unsafe fn widen<S: Simd, E: Load>(from: *const u8, out: &mut [f32]) {
    let count = out.len();
    let mut i = 0;
    // SAFETY: whole vectors while they fit, then a head.
    unsafe {
        while i + S::LANES <= count {
            S::store(out.as_mut_ptr().add(i), E::load::<S>(from.add(i * E::SIZE)));
            i += S::LANES;
        }
        if i < count {
            S::store_head(out.as_mut_ptr().add(i), E::load_head::<S>(from.add(i * E::SIZE), count - i), count - i);
        }
    }
}

#[cfg(test)]
mod tests;
