//! Guards against kernels that became slow: ratios of times of one run, never seconds.
//!
//! Both sides of a ratio are the fastest of many short runs that alternate, so other work on the machine hardly shows, and rounds
//! are added until the ratio is good enough: only what is slow every time fails. What is asked for is half of what was measured on
//! an AVX-512 machine or less, so that other machines pass and a kernel that lost its vectors or its blocking does not. Debug builds
//! check every pointer and sum, so there much less is asked for than by `cargo test --release -p kernels --test speed`.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Instant;

use kernels::{
    Bits, Element, Groups, Inputs, Isa, Pool, QuantizedMatrix, QuantizedRows, Segments, WeightView, limits::Arithmetic,
    matmul, quantized_matmul,
};

/// Outputs and inputs: what the plain twins do in milliseconds.
const N: usize = 64;
const K: usize = 896;

const ROUNDS_LEAST: usize = 5;
const ROUNDS_MOST: usize = 300;

/// A product of random values on some level.
struct Product {
    weights: Vec<u8>,
    packed: Option<QuantizedMatrix>,
    x: Vec<f32>,
}

impl Product {
    fn new(bits: Option<Bits>, rows: usize, pool: &Pool) -> Self {
        let value = |i: usize| ((i * 7919 % 1000) as f32 - 500.0) / 500.0;
        let weights: Vec<u8> = (0..N * K).flat_map(|i| ((value(i).to_bits() >> 16) as u16).to_le_bytes()).collect();
        let pack = |bits| {
            let view = WeightView::new(&weights, Element::Bf16, N, K).unwrap();
            QuantizedMatrix::pack(Isa::PORTABLE, pool, &view, bits, Groups::new(Segments::whole(K))).unwrap()
        };
        let packed = bits.map(pack);
        Self { weights, packed, x: (0..rows * K).map(value).collect() }
    }

    /// Seconds of one product, inputs laid out before.
    fn seconds(&self, isa: Isa, pool: &Pool, out: &mut [f32]) -> f64 {
        match &self.packed {
            Some(packed) => {
                let mut rows = QuantizedRows::default();
                rows.fill(isa, pool, packed.groups(), &self.x);
                timed(|| quantized_matmul(isa, pool, &rows, packed, None, out))
            }
            None => {
                let view = WeightView::new(&self.weights, Element::Bf16, N, K).unwrap();
                let mut inputs = Inputs::default();
                inputs.fill(isa, pool, Element::Bf16, &Segments::whole(K), &self.x);
                timed(|| matmul(isa, pool, &inputs, &view, None, out))
            }
        }
    }
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Fails unless `better` was at least `times` as fast as `worse`.
fn check(what: &str, times: f64, worse: &dyn Fn() -> f64, better: &dyn Fn() -> f64) {
    let (mut slow, mut fast) = (f64::INFINITY, f64::INFINITY);
    for round in 0..ROUNDS_MOST {
        (slow, fast) = (slow.min(worse()), fast.min(better()));
        if round + 1 >= ROUNDS_LEAST && slow / fast >= times {
            return println!("{what}: {:.2} (at least {times}), {} rounds", slow / fast, round + 1);
        }
    }
    panic!("{what} is {:.2}, expected at least {times}: has a kernel become slow?", slow / fast);
}

#[test]
fn kernels_are_as_fast_as_their_instructions() {
    let pool = Pool::new("speed", 1).unwrap();
    for bits in [None, Some(Bits::Eight), Some(Bits::Four)] {
        for rows in [1, 64] {
            let product = Product::new(bits, rows, &pool);
            let seconds = |isa| product.seconds(isa, &pool, &mut vec![0.0; rows * N]);
            for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::PORTABLE) {
                let what = format!("{isa} over portable, {bits:?}, {rows} rows");
                check(&what, over_portable(bits, rows), &|| seconds(Isa::PORTABLE), &|| seconds(isa));
            }
            if rows > 1 {
                for isa in Isa::available().into_iter().filter(|isa| ["avx2", "avx512"].contains(&isa.as_str())) {
                    let operations = (2 * N * K * rows) as f64;
                    let limit = Arithmetic::of(isa, bits.is_none().then_some(Element::Bf16));
                    let what = format!("{isa}, share of its peak ({limit}), {bits:?}, {rows} rows");
                    check(&what, OF_PEAK, &|| operations / limit.peak(isa, &pool), &|| seconds(isa));
                }
            }
        }
    }
}

/// What share of its own peak a level is to reach with many rows.
const OF_PEAK: f64 = if cfg!(debug_assertions) { 0.04 } else { 0.3 };

/// How many times as fast as the plain twin a level is to be.
fn over_portable(bits: Option<Bits>, rows: usize) -> f64 {
    match (bits, rows) {
        (None, 1) => 0.5,
        (None, _) => 0.9,
        (Some(_), _) => 4.0,
    }
}
