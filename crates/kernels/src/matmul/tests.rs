use candle_core::{Device, Tensor};
use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::testing::{bits, close, values};

const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];

pub(super) fn stored(element: Element, values: &[f32]) -> Vec<u8> {
    let bytes = |value: &f32| match element {
        Element::F32 => value.to_le_bytes().to_vec(),
        Element::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        Element::Bf16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

/// What the stored values are after rounding.
pub(super) fn widened(isa: Isa, view: &WeightView<'_>) -> Vec<f32> {
    let mut out = vec![0.0; view.rows() * view.cols()];
    out.chunks_exact_mut(view.cols()).enumerate().for_each(|(row, out)| view.copy_row(isa, row, out));
    out
}

pub(super) fn product(isa: Isa, threads: usize, x: &[f32], w: &WeightView<'_>, segments: &Segments) -> Vec<f32> {
    let (pool, mut inputs) = (Pool::new("test", threads).unwrap(), Inputs::default());
    inputs.fill(isa, &pool, w.element, segments, x);
    let mut out = vec![f32::NAN; x.len() / w.cols() * w.rows()];
    matmul(isa, &pool, &inputs, w, None, &mut out);
    out
}

/// Against candle, on every level, for every element type and awkward sizes.
#[test]
fn agrees_with_candle() {
    for isa in Isa::all() {
        for element in ELEMENTS {
            for (m, k, n) in [(1, 1, 1), (1, 16, 17), (2, 9, 5), (3, 64, 130), (7, 100, 33), (8, 128, 64), (21, 47, 70)]
            {
                let bytes = stored(element, &values(1, n * k));
                let w = WeightView::new(&bytes, element, n, k).unwrap();
                let mut x = values(2, m * k);
                if by_tiles(isa, element) {
                    x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
                }
                let left = Tensor::from_slice(&x, (m, k), &Device::Cpu).unwrap();
                let right = Tensor::from_vec(widened(isa, &w), (n, k), &Device::Cpu).unwrap();
                let expected =
                    left.matmul(&right.t().unwrap()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                for segments in [Segments::whole(k), Segments::of_rank(k, 0, 1)] {
                    let found = product(isa, 2, &x, &w, &segments);
                    close(&format!("{isa} {element:?} {m} {k} {n}"), &found, &expected, 1e-4);
                }
            }
        }
    }
}

#[test]
fn widening_is_exact() {
    let plain = values(3, 40);
    for isa in Isa::all() {
        for element in ELEMENTS {
            let bytes = stored(element, &plain);
            let view = WeightView::new(&bytes, element, 2, 20).unwrap();
            let expected: Vec<f32> = match element {
                Element::F32 => plain.clone(),
                Element::F16 => plain.iter().map(|v| f16::from_f32(*v).to_f32()).collect(),
                Element::Bf16 => plain.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
            };
            assert_eq!(bits(&widened(isa, &view)), bits(&expected), "{isa} {element:?}");
        }
    }
}

#[test]
fn bias_is_added_to_every_row() {
    let (x, bytes) = (values(4, 2 * 8), stored(Element::F32, &values(5, 3 * 8)));
    let w = WeightView::new(&bytes, Element::F32, 3, 8).unwrap();
    for isa in Isa::all() {
        let plain = product(isa, 1, &x, &w, &Segments::whole(8));
        let mut out = vec![0.0; 6];
        let bias = [1.0, 2.0, 3.0];
        let (pool, mut inputs) = (Pool::new("test", 1).unwrap(), Inputs::default());
        inputs.fill(isa, &pool, Element::F32, &Segments::whole(8), &x);
        matmul(isa, &pool, &inputs, &w, Some(&bias), &mut out);
        let expected: Vec<f32> = plain.iter().zip(bias.iter().cycle()).map(|(plain, bias)| plain + bias).collect();
        assert_eq!(bits(&out), bits(&expected));
    }
}

/// Tiles of several sizes, more columns than a block, several chunks and groups of rows.
#[test]
fn large_products_have_the_bits_of_single_rows() {
    for (m, k, n) in [(9, 70, 400), (13, 2100, 260), (70, 1500, 1100), (600, 1500, 30)] {
        let bytes = stored(Element::Bf16, &values(7, n * k));
        let w = WeightView::new(&bytes, Element::Bf16, n, k).unwrap();
        let x = values(8, m * k);
        for isa in Isa::all() {
            let together = product(isa, 2, &x, &w, &Segments::whole(k));
            for row in [0, m / 2, m - 1] {
                let alone = product(isa, 1, &x[row * k..(row + 1) * k], &w, &Segments::whole(k));
                assert_eq!(bits(&alone), bits(&together[row * n..(row + 1) * n]), "{isa} {m} {k} {n}, row {row}");
            }
        }
    }
}

/// Values of which some are so small that products of them vanish, and a few not finite.
fn wild(seed: u64, count: usize) -> Vec<f32> {
    let mut values = values(seed, count);
    for (step, odd) in [(5, [-0.0, 1e-38, -1e-38]), (1999, [f32::NAN, f32::INFINITY, f32::NEG_INFINITY])] {
        values.iter_mut().step_by(step).zip(odd.iter().cycle()).for_each(|(value, odd)| *value = *odd);
    }
    values
}

/// Around each number of rows at which work is divided in another way: tiles of a few rows, tiles of vectors of rows, padded ones.
#[test]
fn any_number_of_rows_has_the_bits_of_single_rows() {
    /// What is not a number need not be the same one.
    fn known(out: &[f32]) -> Vec<u32> {
        out.iter().map(|value| if value.is_nan() { f32::NAN } else { *value }.to_bits()).collect()
    }
    for (k, n) in [(33, 50), (1064, 7)] {
        for (element, weights) in
            ELEMENTS.into_iter().flat_map(|element| [(element, values(9, n * k)), (element, wild(9, n * k))])
        {
            let bytes = stored(element, &weights);
            let w = WeightView::new(&bytes, element, n, k).unwrap();
            let x = wild(10, 131 * k);
            for isa in Isa::available() {
                for segments in [Segments::whole(k), Segments::of_rank(k, 0, 1)] {
                    let alone: Vec<f32> = x.chunks_exact(k).flat_map(|x| product(isa, 1, x, &w, &segments)).collect();
                    for m in [2, 4, 5, 8, 9, 16, 17, 47, 48, 49, 56, 57, 64, 65, 80, 97, 128, 131] {
                        let together = product(isa, 2, &x[..m * k], &w, &segments);
                        assert!(known(&together) == known(&alone[..m * n]), "{isa} {element:?} {m} {k} {n}");
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A row alone has the bits that it has among others, on any number of threads.
    #[test]
    fn rows_do_not_know_their_neighbours(m in 1usize..20, k in 1usize..200, n in 1usize..150, threads in 1usize..4, seed: u64) {
        let bytes = stored(Element::Bf16, &values(seed, n * k));
        let w = WeightView::new(&bytes, Element::Bf16, n, k).unwrap();
        let x = values(seed ^ 1, m * k);
        for isa in Isa::all() {
            for segments in [Segments::whole(k), Segments::of_rank(k, 0, 1)] {
                let together = product(isa, threads, &x, &w, &segments);
                for row in 0..m {
                    let alone = product(isa, 1, &x[row * k..(row + 1) * k], &w, &segments);
                    prop_assert_eq!(bits(&alone), bits(&together[row * n..(row + 1) * n]));
                }
            }
        }
    }

    /// The ranks' partial sums, added as a tree, have the bits of one rank's sum; a column shard those of its columns.
    #[test]
    fn ranks_do_not_change_bits(m in 1usize..6, k8 in 1usize..40, n in 1usize..40, extra in 0usize..8, seed: u64) {
        for ranks in [2usize, 4, 8] {
            let k = (8 * k8 + extra).next_multiple_of(ranks);
            let element = ELEMENTS[seed as usize % ELEMENTS.len()];
            let bytes = stored(element, &values(seed, n * k));
            let w = WeightView::new(&bytes, element, n, k).unwrap();
            let x = values(seed ^ 1, m * k);
            for isa in Isa::all() {
                let whole = product(isa, 1, &x, &w, &Segments::of_rank(k, 0, 1));
                let share = k / ranks;
                let parts: Vec<Vec<f32>> = (0..ranks).map(|rank| {
                    let cols = rank * share..(rank + 1) * share;
                    let x: Vec<f32> = x.chunks_exact(k).flat_map(|row| row[cols.clone()].to_vec()).collect();
                    product(isa, 1, &x, &w.shard(0..n, cols), &Segments::of_rank(k, rank, ranks))
                }).collect();
                let mut sum = vec![0.0; m * n];
                tree_sum(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut sum);
                prop_assert_eq!(bits(&sum), bits(&whole), "{} ranks, k {}", ranks, k);

                let columns = product(isa, 1, &x, &w.shard(n / 2..n, 0..k), &Segments::whole(k));
                let all = product(isa, 1, &x, &w, &Segments::whole(k));
                let expected: Vec<f32> = all.chunks_exact(n).flat_map(|row| row[n / 2..].to_vec()).collect();
                prop_assert_eq!(bits(&columns), bits(&expected));
            }
        }
    }
}

#[test]
fn a_view_needs_the_right_number_of_bytes() {
    let bytes = [0; 24];
    assert!(WeightView::new(&bytes, Element::F32, 2, 3).is_some());
    assert!(WeightView::new(&bytes, Element::F32, 2, 4).is_none());
    assert!(WeightView::new(&bytes, Element::Bf16, 2, 3).is_none());
    assert!(WeightView::new(&bytes, Element::F32, usize::MAX, 3).is_none());
}

/// Two products, their gate and what follows, one by one and at once: the same bits, and no less where it is refused.
#[test]
fn gated_products_have_the_bits_of_single_ones() {
    let (hidden, pool) = (40, Pool::new("test", 2).unwrap());
    let kinds = ELEMENTS.into_iter().flat_map(|element| ELEMENTS.map(|next| (element, next)));
    for ((element, next), (m, width, ranks)) in kinds.flat_map(|kinds| {
        [(48, 72, 1), (63, 1500, 2), (250, 1100, 8), (9, 72, 1), (65, 72, 1), (17, 271, 8), (33, 160, 1)]
            .map(|shape| (kinds, shape))
    }) {
        let bytes =
            [11, 12, 13].map(|seed| stored(if seed == 13 { next } else { element }, &values(seed, width * hidden)));
        let weights = [&bytes[0], &bytes[1]].map(|bytes| WeightView::new(bytes, element, width, hidden).unwrap());
        let down = WeightView::new(&bytes[2], next, hidden, width).unwrap();
        let (x, biases) = (values(14, m * hidden), [values(15, width), values(16, width)]);
        let segments = Segments::of_rank(width * ranks, 0, ranks);
        for (isa, bias) in Isa::all().into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
            let projections: [_; 2] =
                std::array::from_fn(|i| Projection { weights: weights[i], bias: bias.then_some(&biases[i][..]) });
            let mut inputs = Inputs::default();
            inputs.fill(isa, &pool, element, &Segments::whole(hidden), &x);
            // What was there before must not be seen.
            let mut activated = Inputs::default();
            activated.fill(isa, &pool, next, &segments, &vec![f32::NAN; (m + 16) * width]);
            let at_once = gated_matmul(isa, &pool, &inputs, projections, (next, &segments), &mut activated);
            let expected = match [element, next].map(|element| by_tiles(isa, element)) {
                [true, true] => m > 16 && segments.ranges().all(|k| k.start % 2 == 0),
                [false, false] => Tiles::of(isa, m).many(),
                _ => false,
            };
            assert_eq!(at_once, expected, "{isa} {element:?} {next:?} {m} {width}");
            if at_once {
                let [mut gate, mut up] = [vec![f32::NAN; m * width], vec![f32::NAN; m * width]];
                for (Projection { weights, bias }, out) in projections.iter().zip([&mut gate, &mut up]) {
                    matmul(isa, &pool, &inputs, weights, *bias, out);
                }
                crate::silu_mul(isa, &pool, &mut gate, &up);
                let mut out = vec![f32::NAN; m * hidden];
                matmul(isa, &pool, &activated, &down, None, &mut out);
                let expected = product(isa, 1, &gate, &down, &segments);
                assert_eq!(bits(&out), bits(&expected), "{isa} {element:?} {next:?} {m} {width} {ranks} {bias}");
            }
        }
    }
}
