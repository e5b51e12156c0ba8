//! Dot products of vectors that lie along the inner dimension: what attention scores are made of.
//!
//! One order per result: lane `l` of a vector takes `k = l`, `l + LANES`, ... one after the other, then the lanes are added pairwise.

#![expect(unsafe_code, reason = "vector loads; contracts stand at each function")]

use super::load::Load;
use crate::simd::{MAX_LANES, Simd};

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
