//! How long packing weights takes: `cargo run --release -p kernels --example pack_speed`.

use std::time::Instant;

use kernels::{Bits, Element, Groups, Isa, Pool, QuantizedMatrix, Segments, WeightView};

/// A matrix of a small model's MLP, as often as fills more than the caches.
const ROWS: usize = 4864 * 16;
const COLS: usize = 896;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (isa, pool) = (Isa::from_env()?, Pool::new("pack", 1)?);
    // Normally distributed, as far as sums of four are.
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let weights: Vec<u8> = (0..ROWS * COLS)
        .flat_map(|_| (((0..4).map(|_| uniform()).sum::<f32>().to_bits() >> 16) as u16).to_le_bytes())
        .collect();
    let view = WeightView::new(&weights, Element::Bf16, ROWS, COLS).ok_or("not a matrix")?;
    for bits in [Bits::Eight, Bits::Four] {
        let mut seconds = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let packed = QuantizedMatrix::pack(isa, &pool, &view, bits, Groups::new(Segments::whole(COLS)))?;
            seconds.push(start.elapsed().as_secs_f64() * 1e9 / (ROWS * COLS) as f64);
            std::hint::black_box(packed);
        }
        seconds.sort_by(f64::total_cmp);
        println!("{bits:?}: {:.2} s of one thread per 10^9 weights ({isa}, median of {ROUNDS})", seconds[ROUNDS / 2]);
    }
    Ok(())
}
