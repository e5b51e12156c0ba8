use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::matmul::{Element, Projection, Segments, WeightView, tree_sum};
use crate::testing::{bits, values};
use crate::{Isa, Pool};

const BITS: [Bits; 2] = [Bits::Eight, Bits::Four];

fn stored(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn pack(w: &WeightView<'_>, bits: Bits, groups: &Groups) -> QuantizedMatrix {
    QuantizedMatrix::pack(Isa::PORTABLE, &Pool::new("test", 2).unwrap(), w, bits, groups.clone()).unwrap()
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

/// The integer that stands for a weight of which `quotient` is the share of its scale.
fn code(quotient: f32, bits: Bits) -> f32 {
    let (low, high) = match bits {
        Bits::Eight => (-127.0, 127.0),
        Bits::Four => (-8.0, 7.0),
    };
    quotient.round_ties_even().clamp(low, high)
}

fn quotient(weight: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { weight / scale }
}

fn product_with_reciprocal(weight: f32, scale: f32) -> f32 {
    if scale == 0.0 { weight * 0.0 } else { weight * (1.0 / scale) }
}

/// The scale of a group and the steps of its parts. 8 bits: the largest weight becomes 127, there is one part. 4 bits: for each quarter
/// of seven steps the one with the least squared error.
fn scale(weights: &[f32], bits: Bits, quotient: fn(f32, f32) -> f32) -> (bf16, Vec<i8>) {
    let larger = |largest: f32, weight: &f32| if weight.abs() > largest.abs() { *weight } else { largest };
    let largest = |weights: &[f32]| weights.iter().fold(0.0f32, larger);
    if bits == Bits::Eight {
        return (bf16::from_f32(largest(weights).abs() / 127.0), vec![1]);
    }
    let scale = bf16::from_f32(largest(weights).abs() / (15.0 * 7.5));
    let step = |weights: &[f32]| {
        let largest = largest(weights);
        let step = |end: f32| {
            let step = (largest.abs() / scale.to_f32() / end.abs()).round_ties_even().clamp(1.0, 15.0);
            if (largest > 0.0) == (end > 0.0) { step } else { -step }
        };
        let error = |step: f32| {
            let (mut lanes, scale) = ([0.0f32; UNIT], scale.to_f32() * step);
            for (k, weight) in weights.iter().enumerate() {
                lanes[k % UNIT] += (weight - code(quotient(*weight, scale), bits) * scale).powi(2);
            }
            lanes.iter().sum::<f32>()
        };
        let better = |best: (f32, f32), step: f32| if error(step) < best.0 { (error(step), step) } else { best };
        let steps = [-8.0, -7.5, -7.0, -8.5, -9.0, -9.75, 7.0].map(step);
        steps.into_iter().fold((f32::INFINITY, 1.0), better).1 as i8
    };
    (scale, weights.chunks(part(bits)).map(step).collect())
}

/// Values that share a step.
fn part(bits: Bits) -> usize {
    if bits == Bits::Eight { 128 } else { 32 }
}

/// The bytes of a packed matrix, one value after the other.
fn packed_bytes(w: &[f32], bits: Bits, groups: &Groups) -> Vec<u8> {
    let rows = w.len() / groups.row();
    let (panels, panel) = (rows.div_ceil(LANES), groups.padded_row() / UNIT * bits.unit_bytes() * LANES);
    let (of_group, quarters) = (groups.len() * LANES, if bits == Bits::Four { 4 } else { 0 });
    let mut bytes = vec![0; panels * (panel + of_group * (2 + quarters))];
    // Columns that do not exist have steps as zeros have.
    let none = vec![0.0; groups.row()];
    let columns = w.chunks_exact(groups.row()).chain(std::iter::repeat(&none[..])).take(panels * LANES);
    for (row, w) in columns.enumerate() {
        let (index, lane) = (row / LANES, row % LANES);
        for group in 0..groups.len() {
            let w = &w[groups.plain(group)];
            let (scale, steps) = scale(w, bits, product_with_reciprocal);
            let at = index * groups.len() + group;
            if quarters > 0 {
                let to = panels * (panel + of_group * 2) + at * quarters * LANES + lane;
                steps.iter().enumerate().for_each(|(quarter, step)| bytes[to + quarter * LANES] = *step as u8);
            }
            if row >= rows {
                continue;
            }
            let scale_at = panels * panel + (at * LANES + lane) * 2;
            bytes[scale_at..scale_at + 2].copy_from_slice(&scale.to_le_bytes());
            for (within, (k, weight)) in (groups.padded(group).start..).zip(w).enumerate() {
                let one = scale.to_f32() * f32::from(steps[within / part(bits)]);
                let byte = (code(quotient(*weight, one), bits) as i32 + bits.offset()) as u8;
                let (unit, half, place) = (k / UNIT, k % UNIT / 4, k % 4);
                match bits {
                    Bits::Eight => bytes[index * panel + ((unit * 2 + half) * LANES + lane) * 4 + place] = byte,
                    Bits::Four => bytes[index * panel + (unit * LANES + lane) * 4 + place] |= byte << (4 * half),
                }
            }
        }
    }
    bytes
}

/// What the module promises, written out: whole numbers per group, then the scales, groups in order, segments as a tree.
fn plain(x: &[f32], w: &[f32], bits: Bits, groups: &Groups) -> f32 {
    let of_group = |index: usize| {
        let range = groups.plain(index);
        let (x, w) = (&x[range.clone()], &w[range]);
        let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let (scale, steps) = scale(w, bits, product_with_reciprocal);
        let integer = |(k, weight): (usize, &f32)| {
            let step = steps[k / part(bits)];
            code(quotient(*weight, scale.to_f32() * f32::from(step)), bits) as i32 * i32::from(step)
        };
        let value = |x: &f32| if largest > 0.0 { (x * (127.0 / largest)).round_ties_even() as i32 } else { 0 };
        let sum: i32 = x.iter().map(value).zip(w.iter().enumerate().map(integer)).map(|(x, w)| x * w).sum();
        sum as f32 * scale.to_f32() * (largest / 127.0)
    };
    let of_segment = |segment| groups.of_segment(segment).fold(0.0, |sum, group| sum + of_group(group));
    let sums: Vec<[f32; 1]> = (0..groups.segments().ranges().count()).map(|segment| [of_segment(segment)]).collect();
    let mut out = [0.0];
    tree_sum(&sums.iter().map(|sum| &sum[..]).collect::<Vec<_>>(), &mut out);
    out[0]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Every level and number of threads packs as written out, whatever is among the weights.
    #[test]
    fn every_level_packs_the_same_bytes(
        k in 1usize..300, n in 1usize..40, threads in 1usize..4, cut: bool, halves: bool, power in -40i32..40, seed: u64,
        odd in prop::sample::select(vec![0.0, -0.0, 1e-41, 1e38, f32::INFINITY, f32::NAN, f32::from_bits(0xFFC0_1234)]),
    ) {
        // Halves of few numbers: many quotients lie in the middle between two integers.
        let coarse = |value: f32| if halves { (value * 16.0).round() / 2.0 } else { value };
        let mut weights: Vec<f32> =
            values(seed, n * k).into_iter().map(|value| coarse(value) * 2f32.powi(power)).collect();
        weights[(seed % (n * k) as u64) as usize] = odd;
        let bytes = stored(&weights);
        let view = WeightView::new(&bytes, Element::F32, n, k).unwrap();
        for bits in BITS {
            let segments = if cut { Segments::of_rank(k, 0, 1) } else { Segments::whole(k) };
            let groups = Groups::new(segments);
            let expected = packed_bytes(&weights, bits, &groups);
            for isa in Isa::available() {
                let pool = Pool::new("test", threads).unwrap();
                let packed = QuantizedMatrix::pack(isa, &pool, &view, bits, groups.clone()).unwrap();
                prop_assert!(packed.bytes() == expected, "{} {:?}", isa, bits);
            }
        }
    }

    /// Of weights with 16 bits, reciprocals choose the steps that quotients would choose.
    #[test]
    fn reciprocals_round_as_quotients_do(bits in prop::collection::vec(any::<u16>(), 1..33), wide: bool, half: bool) {
        // Of numbers that are all alike, more are in the middle between two integers.
        let some = |bits: &u16| if wide { bits & 0xBFFF } else { bits & 0x81FF | 0x3E00 };
        let stored = |bits: &u16| if half { f16::from_bits(some(bits)).to_f32() } else { bf16::from_bits(some(bits)).to_f32() };
        let weights: Vec<f32> = bits.iter().map(stored).collect();
        let chosen = [product_with_reciprocal, quotient].map(|quotient| scale(&weights, Bits::Four, quotient));
        prop_assert!(chosen[0] == chosen[1] || weights.iter().all(|weight| weight.abs() < 1e-37));
    }

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
            let groups = Groups::new(segments);
            let expected: Vec<f32> = x
                .chunks_exact(k)
                .flat_map(|x| weights.chunks_exact(k).map(|w| plain(x, w, kind, &groups)).collect::<Vec<_>>())
                .collect();
            let packed = pack(&view, kind, &groups);
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
                let whole = product(isa, 1, &x, &pack(&view, kind, &Groups::new(Segments::of_rank(k, 0, 1))));
                let share = k / ranks;
                let parts: Vec<Vec<f32>> = (0..ranks).map(|rank| {
                    let cols = rank * share..(rank + 1) * share;
                    let x: Vec<f32> = x.chunks_exact(k).flat_map(|row| row[cols.clone()].to_vec()).collect();
                    let groups = Groups::new(Segments::of_rank(k, rank, ranks));
                    product(isa, 1, &x, &pack(&view.shard(0..n, cols), kind, &groups))
                }).collect();
                let mut sum = vec![0.0; m * n];
                tree_sum(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut sum);
                prop_assert_eq!(bits(&sum), bits(&whole), "{} ranks, k {}", ranks, k);

                let groups = Groups::new(Segments::whole(k));
                let columns = product(isa, 1, &x, &pack(&view.shard(n / 2..n, 0..k), kind, &groups));
                let all = product(isa, 1, &x, &pack(&view, kind, &groups));
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
            let packed = pack(&view, kind, &Groups::new(segments));
            let alone: Vec<f32> = x.chunks_exact(k).flat_map(|x| product(Isa::PORTABLE, 1, x, &packed)).collect();
            for isa in Isa::all() {
                assert_eq!(bits(&product(isa, 2, &x, &packed)), bits(&alone), "{isa} {kind:?} {m} {k} {n}");
            }
            let expected: Vec<f32> =
                weights.chunks_exact(k).map(|w| plain(&x[..k], w, kind, packed.groups())).collect();
            assert_eq!(bits(&alone[..n]), bits(&expected), "{kind:?} {m} {k} {n}");
        }
    }
}

/// Sums of products that are all as large as can be: what saturates or wraps around would show.
#[test]
fn the_largest_sums_are_exact() {
    const SIGNS: [fn(usize) -> bool; 5] = [|_| false, |_| true, |i| i % 2 == 0, |i| i % 4 < 2, |i| i % 32 < 16];
    let k = 3 * GROUP;
    let signed: Vec<f32> = SIGNS.iter().flat_map(|minus| (0..k).map(|i| if minus(i) { -1.0 } else { 1.0 })).collect();
    let bytes = stored(&signed);
    let view = WeightView::new(&bytes, Element::F32, SIGNS.len(), k).unwrap();
    for kind in BITS {
        let packed = pack(&view, kind, &Groups::new(Segments::whole(k)));
        let expected: Vec<f32> = signed
            .chunks_exact(k)
            .flat_map(|x| signed.chunks_exact(k).map(|w| plain(x, w, kind, packed.groups())).collect::<Vec<_>>())
            .collect();
        for isa in Isa::all() {
            assert_eq!(bits(&product(isa, 1, &signed, &packed)), bits(&expected), "{isa} {kind:?}");
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
        let packed = pack(&view, kind, &Groups::new(Segments::whole(k)));
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
        let packed = pack(&view, kind, &Groups::new(Segments::whole(8)));
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
        pack(&WeightView::new(&bytes, Element::F32, 16, 40).unwrap(), Bits::Eight, &Groups::new(Segments::whole(40)));
    for isa in Isa::all() {
        for damage in [f32::NAN, f32::INFINITY] {
            let mut x = values(6, 40);
            x[7] = damage;
            assert!(product(isa, 1, &x, &packed).iter().all(|value| value.is_nan()), "{isa} {damage}");
        }
    }
}

/// Two products, their gate and what follows, one by one and at once: the same bits; it is refused for few rows, where a group begins
/// within a panel, and where there are too few tasks.
#[test]
fn gated_products_have_the_bits_of_single_ones() {
    let (hidden, pool) = (40, Pool::new("test", 2).unwrap());
    let shapes = [
        (96, 2048, 1, true),
        (130, 1060, 8, true),
        (300, 400, 8, true),
        (95, 2048, 1, false),
        (97, 1060, 1, false),
        (100, 300, 8, false),
    ];
    for (kind, (m, width, ranks, expected)) in BITS.into_iter().flat_map(|kind| shapes.map(|shape| (kind, shape))) {
        let bytes = [11, 12, 13].map(|seed| stored(&values(seed, width * hidden)));
        let projected = [0, 1].map(|i| {
            pack(
                &WeightView::new(&bytes[i], Element::F32, width, hidden).unwrap(),
                kind,
                &Groups::new(Segments::whole(hidden)),
            )
        });
        let next = Groups::new(Segments::of_rank(width * ranks, 0, ranks));
        let down = pack(&WeightView::new(&bytes[2], Element::F32, hidden, width).unwrap(), kind, &next);
        let (x, biases) = (values(14, m * hidden), [values(15, width), values(16, width)]);
        for (isa, bias) in Isa::all().into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
            let projections: [_; 2] =
                std::array::from_fn(|i| Projection { weights: &projected[i], bias: bias.then_some(&biases[i][..]) });
            let inputs = rows(isa, &pool, &x, &projected[0]);
            // What was there before must not be seen.
            let mut activated = QuantizedRows::default();
            activated.fill(isa, &pool, &next, &vec![f32::NAN; (m + 16) * width]);
            let at_once = quantized_gated_matmul(isa, &pool, &inputs, projections, &next, &mut activated);
            assert_eq!(at_once, expected, "{m} {width} {ranks}");
            if at_once {
                let [mut gate, mut up] = [vec![f32::NAN; m * width], vec![f32::NAN; m * width]];
                for (Projection { weights, bias }, out) in projections.into_iter().zip([&mut gate, &mut up]) {
                    quantized_matmul(isa, &pool, &inputs, weights, bias, out);
                }
                crate::silu_mul(isa, &pool, &mut gate, &up);
                let mut out = vec![f32::NAN; m * hidden];
                quantized_matmul(isa, &pool, &activated, &down, None, &mut out);
                assert_eq!(
                    bits(&out),
                    bits(&product(isa, 1, &gate, &down)),
                    "{isa} {kind:?} {m} {width} {ranks} {bias}"
                );
            }
        }
    }
}
