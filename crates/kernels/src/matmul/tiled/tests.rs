//! The emulated level, and the machine's own where it has tiles that work.

use half::bf16;
use memmap2::MmapOptions;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::super::tests::{product, stored, widened};
use super::super::{Element, Inputs, Segments, WeightView, by_tiles, matmul as any_matmul};
use crate::testing::{bits, values};
use crate::{Isa, Pool};

fn levels() -> impl Iterator<Item = Isa> {
    let levels = Isa::all().into_iter().filter(|isa| by_tiles(*isa, Element::Bf16));
    levels.inspect(|isa| assert!(isa.as_str().starts_with("amx")))
}

/// The sum of an output's products, and that of their absolute values, with the inputs rounded.
fn plain(x: &[f32], w: &[f32]) -> (f64, f64) {
    let products = || x.iter().zip(w).map(|(x, w)| bf16::from_f32(*x).to_f64() * f64::from(*w));
    (products().sum(), products().map(f64::abs).sum())
}

/// Odd lengths, fewer rows than a tile has, several segments and groups of rows: the sums of rounded inputs, written out.
#[test]
fn sums_are_those_of_rounded_inputs() {
    let shapes = [
        (1, 1, 1),
        (1, 31, 3),
        (3, 33, 16),
        (16, 64, 17),
        (17, 100, 33),
        (40, 77, 47),
        (33, 896, 130),
        (130, 4100, 40),
    ];
    for (m, k, n) in shapes {
        let (bytes, x) = (stored(Element::Bf16, &values(k as u64, n * k)), values(n as u64, m * k));
        let w = WeightView::new(&bytes, Element::Bf16, n, k).unwrap();
        for (isa, segments) in
            levels().flat_map(|isa| [Segments::whole(k), Segments::of_rank(k, 0, 1)].map(|s| (isa, s)))
        {
            let (weights, found) = (widened(isa, &w), product(isa, 2, &x, &w, &segments));
            for (index, found) in found.into_iter().enumerate() {
                let (exact, most) = plain(&x[index / n * k..][..k], &weights[index % n * k..][..k]);
                let error = (f64::from(found) - exact).abs();
                assert!(error <= most * 2e-6, "{isa} {m} {k} {n}: output {index} is {found}, not {exact}");
            }
        }
    }
}

/// With every number of rows up to 40, and many more: the bits of each row alone.
#[test]
fn the_number_of_rows_does_not_show() {
    let (k, n) = (150, 37);
    let bytes = stored(Element::Bf16, &values(1, n * k));
    let w = WeightView::new(&bytes, Element::Bf16, n, k).unwrap();
    let x = values(2, 300 * k);
    for (isa, segments) in levels().flat_map(|isa| [Segments::whole(k), Segments::of_rank(k, 0, 1)].map(|s| (isa, s))) {
        let alone: Vec<f32> = x.chunks_exact(k).flat_map(|x| product(isa, 1, x, &w, &segments)).collect();
        for m in (1..=40).chain([64, 100, 241, 300]) {
            let together = product(isa, 1 + m % 3, &x[..m * k], &w, &segments);
            assert_eq!(bits(&together), bits(&alone[..m * n]), "{isa}, {m} rows");
        }
    }
}

/// Weights that end where the memory of a file ends, at every alignment that two bytes allow, as a whole and as a shard.
#[test]
#[expect(unsafe_code, reason = "memory with a border")]
fn nothing_beyond_the_weights_is_read() {
    const PAGE: usize = 4096;
    let file = std::fs::File::from(memfd_create("border", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, PAGE as u64).unwrap();
    // SAFETY: the file is this test's own; what lies beyond it is never touched, or the test dies of it.
    let mut memory = unsafe { MmapOptions::new().len(2 * PAGE).map_mut(&file).unwrap() };
    for (n, k) in [(1, 1), (16, 32), (17, 33), (5, 200), (33, 47), (40, 50)] {
        let (bytes, x) = (stored(Element::Bf16, &values(3, n * k)), values(4, 3 * k));
        let plain = WeightView::new(&bytes, Element::Bf16, n, k).unwrap();
        let page = &mut memory[PAGE - bytes.len()..PAGE];
        page.copy_from_slice(&bytes);
        let w = WeightView::new(page, Element::Bf16, n, k).unwrap();
        for isa in levels() {
            let cut = Segments::of_rank(k, 0, 1);
            assert_eq!(bits(&product(isa, 2, &x, &w, &cut)), bits(&product(isa, 1, &x, &plain, &cut)));
            let (rows, cols) = (n / 2..n, k / 3..k);
            let x: Vec<f32> = x.chunks_exact(k).flat_map(|x| x[cols.clone()].to_vec()).collect();
            let whole = Segments::whole(cols.len());
            let found = product(isa, 1, &x, &w.shard(rows.clone(), cols.clone()), &whole);
            let expected = product(isa, 1, &x, &plain.shard(rows, cols), &whole);
            assert_eq!(bits(&found), bits(&expected), "{isa} {n} {k}");
        }
    }
}

/// What was laid out for vectors or for another length is not taken for tiles.
#[test]
#[should_panic(expected = "inputs of another product")]
fn inputs_of_another_level_are_refused() {
    let (pool, mut inputs) = (Pool::new("test", 1).unwrap(), Inputs::default());
    let (bytes, isa) = (stored(Element::Bf16, &values(5, 8)), levels().next().unwrap());
    let w = WeightView::new(&bytes, Element::Bf16, 1, 8).unwrap();
    inputs.fill(isa, &pool, Element::Bf16, &Segments::whole(8), &[0.0; 8]);
    any_matmul(isa, &pool, &inputs, &w, None, &mut [0.0]);
    inputs.fill(Isa::PORTABLE, &pool, Element::Bf16, &Segments::whole(8), &[0.0; 8]);
    any_matmul(isa, &pool, &inputs, &w, None, &mut [0.0]);
}

/// What is not a number stays so, and does not reach other rows.
#[test]
fn what_is_not_a_number_stays_in_its_row() {
    let (m, k, n) = (5, 40, 20);
    let bytes = stored(Element::Bf16, &values(6, n * k));
    let w = WeightView::new(&bytes, Element::Bf16, n, k).unwrap();
    for (isa, damage) in levels().flat_map(|isa| [f32::NAN, f32::INFINITY].map(|damage| (isa, damage))) {
        let mut x = values(7, m * k);
        let sound = product(isa, 1, &x, &w, &Segments::whole(k));
        x[2 * k + 7] = damage;
        let found = product(isa, 1, &x, &w, &Segments::whole(k));
        for (row, (found, sound)) in found.chunks(n).zip(sound.chunks(n)).enumerate() {
            match row {
                2 => assert!(found.iter().all(|value| !value.is_finite()), "{isa} {damage}"),
                _ => assert_eq!(bits(found), bits(sound), "{isa} {damage}, row {row}"),
            }
        }
    }
}
