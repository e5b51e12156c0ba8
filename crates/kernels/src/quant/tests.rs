use proptest::prelude::*;

use super::*;
use crate::matmul::{Element, Segments, WeightView, tree_sum};
use crate::testing::{bits, values};
use crate::{Isa, Pool};

const BITS: [Bits; 2] = [Bits::Eight, Bits::Four];

fn stored(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn pack(w: &WeightView<'_>, groups: &Groups) -> QuantizedMatrix {
    QuantizedMatrix::pack(Isa::PORTABLE, &Pool::new("test", 2).unwrap(), w, groups.clone()).unwrap()
}

fn product(isa: Isa, threads: usize, x: &[f32], w: &QuantizedMatrix) -> Vec<f32> {
    let pool = Pool::new("test", threads).unwrap();
    let rows = rows(isa, &pool, x, w);
    let mut out = vec![f32::NAN; rows.rows * w.rows()];
    quantized_matmul(isa, &pool, &rows, w, None, &mut out);
    out
}

fn rows(isa: Isa, pool: &Pool, x: &[f32], w: &QuantizedMatrix) -> QuantizedRows {
    let mut rows = QuantizedRows::default();
    rows.fill(isa, pool, w.groups(), x);
    rows
}

/// What the module promises, written out: whole numbers per group, then the scales, groups in order, segments as a tree.
fn plain(x: &[f32], w: &[f32], groups: &Groups) -> f32 {
    let of_group = |index: usize| {
        let range = groups.plain(index);
        let (x, w) = (&x[range.clone()], &w[range]);
        let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let scale = pack::scale(w, groups.bits()).to_f32();
        let code = |weight: &f32| pack::code(*weight, scale, groups.bits()) as i32;
        let value = |x: &f32| if largest > 0.0 { (x * (127.0 / largest)).round_ties_even() as i32 } else { 0 };
        let sum: i32 = x.iter().map(value).zip(w.iter().map(code)).map(|(x, w)| x * w).sum();
        sum as f32 * scale * (largest / 127.0)
    };
    let of_segment = |segment| groups.of_segment(segment).fold(0.0, |sum, group| sum + of_group(group));
    let sums: Vec<[f32; 1]> = (0..groups.segments().ranges().count()).map(|segment| [of_segment(segment)]).collect();
    let mut out = [0.0];
    tree_sum(&sums.iter().map(|sum| &sum[..]).collect::<Vec<_>>(), &mut out);
    out[0]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Every level, any number of rows and threads: the bits of the sum written out.
    #[test]
    fn every_level_has_the_bits_of_the_plain_sum(
        m in 1usize..40, k in 1usize..300, n in 1usize..70, threads in 1usize..4, cut: bool, seed: u64,
    ) {
        let (weights, x) = (values(seed, n * k), values(seed ^ 1, m * k));
        let bytes = stored(&weights);
        let view = WeightView::new(&bytes, Element::F32, n, k).unwrap();
        for kind in BITS {
            let segments = if cut { Segments::of_rank(k, 0, 1) } else { Segments::whole(k) };
            let groups = Groups::new(kind, segments);
            let expected: Vec<f32> = x
                .chunks_exact(k)
                .flat_map(|x| weights.chunks_exact(k).map(|w| plain(x, w, &groups)).collect::<Vec<_>>())
                .collect();
            let packed = pack(&view, &groups);
            for isa in Isa::all() {
                prop_assert_eq!(bits(&product(isa, threads, &x, &packed)), bits(&expected), "{} {:?}", isa, kind);
            }
        }
    }

    /// The ranks' partial sums, added as a tree, have the bits of one rank's sum; a column shard those of its columns.
    #[test]
    fn ranks_do_not_change_bits(m in 1usize..6, k8 in 1usize..60, n in 1usize..40, seed: u64) {
        for ranks in [2usize, 4, 8] {
            let k = (8 * k8 + 3).next_multiple_of(ranks);
            let (bytes, x) = (stored(&values(seed, n * k)), values(seed ^ 1, m * k));
            let view = WeightView::new(&bytes, Element::F32, n, k).unwrap();
            for (kind, isa) in BITS.into_iter().flat_map(|kind| Isa::all().into_iter().map(move |isa| (kind, isa))) {
                let whole = product(isa, 1, &x, &pack(&view, &Groups::new(kind, Segments::of_rank(k, 0, 1))));
                let share = k / ranks;
                let parts: Vec<Vec<f32>> = (0..ranks).map(|rank| {
                    let cols = rank * share..(rank + 1) * share;
                    let x: Vec<f32> = x.chunks_exact(k).flat_map(|row| row[cols.clone()].to_vec()).collect();
                    let groups = Groups::new(kind, Segments::of_rank(k, rank, ranks));
                    product(isa, 1, &x, &pack(&view.shard(0..n, cols), &groups))
                }).collect();
                let mut sum = vec![0.0; m * n];
                tree_sum(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut sum);
                prop_assert_eq!(bits(&sum), bits(&whole), "{} ranks, k {}", ranks, k);

                let groups = Groups::new(kind, Segments::whole(k));
                let columns = product(isa, 1, &x, &pack(&view.shard(n / 2..n, 0..k), &groups));
                let all = product(isa, 1, &x, &pack(&view, &groups));
                let expected: Vec<f32> = all.chunks_exact(n).flat_map(|row| row[n / 2..].to_vec()).collect();
                prop_assert_eq!(bits(&columns), bits(&expected));
            }
        }
    }
}

/// Long rows and many of them are worked on in parts; parts do not show.
#[test]
fn parts_of_rows_and_of_the_inner_dimension_do_not_show() {
    for (m, k, n) in [(130, 72, 33), (17, 1100, 20), (33, 1024, 32)] {
        let (weights, x) = (values(7, n * k), values(8, m * k));
        let bytes = stored(&weights);
        let view = WeightView::new(&bytes, Element::F32, n, k).unwrap();
        for (kind, segments) in BITS.into_iter().zip([Segments::whole(k), Segments::of_rank(k, 0, 1)]) {
            let packed = pack(&view, &Groups::new(kind, segments));
            let alone: Vec<f32> = x.chunks_exact(k).flat_map(|x| product(Isa::PORTABLE, 1, x, &packed)).collect();
            for isa in Isa::all() {
                assert_eq!(bits(&product(isa, 2, &x, &packed)), bits(&alone), "{isa} {kind:?} {m} {k} {n}");
            }
            let expected: Vec<f32> = weights.chunks_exact(k).map(|w| plain(&x[..k], w, packed.groups())).collect();
            assert_eq!(bits(&alone[..n]), bits(&expected), "{kind:?} {m} {k} {n}");
        }
    }
}

/// Rounding weights and inputs costs as much as the number of bits lets one expect, and is reported.
#[test]
fn errors_are_those_of_the_bits() {
    let (m, k, n) = (4, 1024, 64);
    let (weights, x) = (values(3, n * k), values(4, m * k));
    let bytes = stored(&weights);
    let view = WeightView::new(&bytes, Element::F32, n, k).unwrap();
    for (kind, lost, wrong) in [(Bits::Eight, 0.005, 0.01), (Bits::Four, 0.09, 0.1)] {
        let packed = pack(&view, &Groups::new(kind, Segments::whole(k)));
        assert!(packed.error() > lost / 4.0 && packed.error() < lost, "{kind:?}: {}", packed.error());
        let found = product(*Isa::all().last().unwrap(), 2, &x, &packed);
        let (mut error, mut all) = (0.0, 0.0);
        for (index, found) in found.iter().enumerate() {
            let (x, w) = (&x[index / n * k..][..k], &weights[index % n * k..][..k]);
            let exact: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            error += (found - exact).powi(2);
            all += exact.powi(2);
        }
        assert!((error / all).sqrt() < wrong, "{kind:?}: {}", (error / all).sqrt());
    }
}

#[test]
fn bias_is_added_and_zeros_stay_zeros() {
    let bytes = stored(&[0.0; 3 * 8]);
    let view = WeightView::new(&bytes, Element::F32, 3, 8).unwrap();
    let pool = Pool::new("test", 1).unwrap();
    for (kind, isa) in BITS.into_iter().flat_map(|kind| Isa::all().into_iter().map(move |isa| (kind, isa))) {
        let packed = pack(&view, &Groups::new(kind, Segments::whole(8)));
        let (mut rows, mut out) = (QuantizedRows::default(), vec![f32::NAN; 6]);
        rows.fill(isa, &pool, packed.groups(), &[0.0; 16]);
        quantized_matmul(isa, &pool, &rows, &packed, Some(&[1.0, 2.0, 3.0]), &mut out);
        assert_eq!(out, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0], "{isa} {kind:?}");
    }
}

/// Damaged inputs must not look like numbers.
#[test]
fn what_is_not_a_number_stays_so() {
    let bytes = stored(&values(5, 16 * 40));
    let packed =
        pack(&WeightView::new(&bytes, Element::F32, 16, 40).unwrap(), &Groups::new(Bits::Eight, Segments::whole(40)));
    for isa in Isa::all() {
        for damage in [f32::NAN, f32::INFINITY] {
            let mut x = values(6, 40);
            x[7] = damage;
            assert!(product(isa, 1, &x, &packed).iter().all(|value| value.is_nan()), "{isa} {damage}");
        }
    }
}
