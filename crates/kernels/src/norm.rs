//! RMS norm of rows, alone or together with what is added to them before.
//!
//! Rows are shared out among threads; no sum crosses a row, so the split changes nothing.

#![expect(unsafe_code, reason = "vector loads within slices, and rows of two slices at once")]

use crate::Pool;
use crate::pool::SharedMut;
use crate::simd::{Isa, Kernel, Simd};

/// Scales a row to root mean square 1, then by `weight`.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'a> {
    /// As long as a row.
    pub weight: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Norms each of `rows`, in place.
pub fn rms_norm(isa: Isa, pool: &Pool, norm: RmsNorm<'_>, rows: &mut [f32]) {
    let width = norm.weight.len();
    pool.run_rows(rows, width, |_, rows| {
        rows.chunks_exact_mut(width).for_each(|row| isa.run(Normed { norm, row }));
    });
}

/// `x += delta`, with the bias of a row added to `delta` first; `out` = the rows of this `x`, normed. Panics if the lengths do not agree.
pub fn add_rms_norm(
    isa: Isa,
    pool: &Pool,
    norm: RmsNorm<'_>,
    x: &mut [f32],
    delta: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let width = norm.weight.len();
    assert!(x.len() == delta.len() && x.len() == out.len(), "{} + {} into {}", x.len(), delta.len(), out.len());
    assert!(bias.is_none_or(|bias| bias.len() == width), "bias of another width");
    let out = SharedMut::new(out);
    pool.run_rows(x, width, |first, x| {
        let start = first * width;
        // SAFETY: the same rows as those of `x`, which are this task's own.
        let out = unsafe { out.slice(start, x.len()) };
        let rows = x.chunks_exact_mut(width).zip(delta[start..].chunks_exact(width)).zip(out.chunks_exact_mut(width));
        for ((x, delta), out) in rows {
            isa.run(AddedNormed { norm, x, delta, bias, out });
        }
    });
}

/// One row, in place.
struct Normed<'a> {
    norm: RmsNorm<'a>,
    /// As long as the weights.
    row: &'a mut [f32],
}

impl Kernel for Normed<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (count, row) = (self.row.len(), self.row.as_mut_ptr());
        // SAFETY: `i < count`, and at most `count - i` lanes are touched.
        unsafe {
            let mut squares = S::splat(0.0);
            for i in (0..count).step_by(S::LANES) {
                let x = S::load_upto(row.add(i), count - i);
                squares = S::mul_add(x, x, squares);
            }
            scale::<S>(self.norm, S::sum(squares), row, row);
        }
    }
}

/// One row; all slices are as long as the weights.
struct AddedNormed<'a> {
    norm: RmsNorm<'a>,
    x: &'a mut [f32],
    delta: &'a [f32],
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Kernel for AddedNormed<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (count, row) = (self.x.len(), self.x.as_mut_ptr());
        // SAFETY: `i < count`, and at most `count - i` lanes are touched.
        unsafe {
            let mut squares = S::splat(0.0);
            for i in (0..count).step_by(S::LANES) {
                let mut delta = S::load_upto(self.delta.as_ptr().add(i), count - i);
                if let Some(bias) = self.bias {
                    delta = S::add(delta, S::load_upto(bias.as_ptr().add(i), count - i));
                }
                let x = S::add(S::load_upto(row.add(i), count - i), delta);
                S::store_upto(row.add(i), x, count - i);
                squares = S::mul_add(x, x, squares);
            }
            scale::<S>(self.norm, S::sum(squares), row, self.out.as_mut_ptr());
        }
    }
}

/// `to` = `from`, whose sum of squares is known, normed.
///
/// # Safety
/// Both are as long as the weights; they may be the same. The CPU has `S`.
#[inline(always)]
unsafe fn scale<S: Simd>(norm: RmsNorm<'_>, squares: f32, from: *const f32, to: *mut f32) {
    let count = norm.weight.len();
    // SAFETY: `i < count`, and at most `count - i` lanes are touched.
    unsafe {
        let scale = S::splat(1.0 / (squares / count as f32 + norm.eps).sqrt());
        for i in (0..count).step_by(S::LANES) {
            let weight = S::load_upto(norm.weight.as_ptr().add(i), count - i);
            let x = S::mul(S::load_upto(from.add(i), count - i), scale);
            S::store_upto(to.add(i), S::mul(x, weight), count - i);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Tensor};

    use super::*;
    use crate::testing::{bits, check_levels, values};

    const SHAPES: [(usize, usize); 4] = [(1, 1), (2, 7), (3, 16), (500, 90)];

    #[test]
    fn rms_norm_agrees_with_candle() {
        for (rows, width) in SHAPES {
            let (x, weight) = (values(1, rows * width), values(2, width));
            let tensor = Tensor::from_slice(&x, (rows, width), &Device::Cpu).unwrap();
            let mean = (tensor.sqr().unwrap().mean_keepdim(D::Minus1).unwrap() + 1e-5).unwrap();
            let scaled = tensor.broadcast_div(&mean.sqrt().unwrap()).unwrap();
            let weights = Tensor::from_slice(&weight, width, &Device::Cpu).unwrap();
            let expected = scaled.broadcast_mul(&weights).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            check_levels(&format!("norm of {rows} x {width}"), &expected, 1e-5, |isa, pool| {
                let mut out = x.clone();
                rms_norm(isa, pool, RmsNorm { weight: &weight, eps: 1e-5 }, &mut out);
                out
            });
        }
    }

    /// Bit for bit what adding and then norming give.
    #[test]
    fn what_is_added_is_normed_as_if_apart() {
        for (rows, width) in SHAPES {
            let (x, delta, bias) = (values(3, rows * width), values(4, rows * width), values(5, width));
            let weight = values(6, width);
            let norm = RmsNorm { weight: &weight, eps: 1e-6 };
            for bias in [None, Some(bias.as_slice())] {
                let whole = |at: usize| delta[at] + bias.map_or(0.0, |bias| bias[at % width]);
                let sum: Vec<f32> = x.iter().enumerate().map(|(at, x)| x + whole(at)).collect();
                for (isa, threads) in Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
                    let pool = Pool::new("test", threads).unwrap();
                    let (mut added, mut out, mut apart) = (x.clone(), vec![f32::NAN; x.len()], sum.clone());
                    add_rms_norm(isa, &pool, norm, &mut added, &delta, bias, &mut out);
                    rms_norm(isa, &pool, norm, &mut apart);
                    let what = format!("{rows} x {width} on {isa}, {threads} threads, bias {}", bias.is_some());
                    assert_eq!((bits(&added), bits(&out)), (bits(&sum), bits(&apart)), "{what}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "4 + 4 into 2")]
    fn outputs_of_another_length_are_refused() {
        let (weight, pool) = ([1.0; 2], Pool::new("test", 1).unwrap());
        let norm = RmsNorm { weight: &weight, eps: 0.0 };
        add_rms_norm(Isa::PORTABLE, &pool, norm, &mut [1.0; 4], &[1.0; 4], None, &mut [0.0; 2]);
    }
}
