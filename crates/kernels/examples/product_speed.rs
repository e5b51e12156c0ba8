//! How fast products with bf16 weights are (medians), beside the most that was measured of the arithmetic they are made of:
//! `cargo run --release -p kernels --example product_speed [THREADS] [ROWS,ROWS,...]`.

use std::time::{Duration, Instant};

use kernels::{Element, Inputs, Isa, Pool, Segments, WeightView, limits, matmul};

/// Outputs and inputs.
const SHAPES: [(usize, usize); 3] = [(4864, 896), (896, 4864), (896, 896)];

/// Bytes of copies of a matrix, which take turns: more than caches hold, so that weights come from memory as a model's do.
const COPIES: usize = 512 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().map_or(Ok(1), |threads| threads.parse())?;
    let rows = arguments.next().unwrap_or("1,4,8,16,32,64,128,512".into());
    let (isa, pool) = (Isa::from_env()?, Pool::new("speed", threads)?);
    let limit = limits::Arithmetic::of(isa, Some(Element::Bf16));
    for (n, k) in SHAPES {
        let bytes: Vec<u8> = (0..n * k).flat_map(|i| [(i * 7919 % 251) as u8, 60]).collect();
        let copies = vec![bytes; COPIES / (2 * n * k)];
        // Sums of one row in eight segments, as in a product whose inputs are divided among ranks.
        let segments = if n < k { Segments::of_rank(k, 0, 1) } else { Segments::whole(k) };
        for rows in rows.split(',') {
            let rows: usize = rows.parse()?;
            let x: Vec<f32> = (0..rows * k).map(|i| (i % 1000) as f32 / 1000.0).collect();
            let (mut inputs, mut out) = (Inputs::default(), vec![0.0; rows * n]);
            let (mut seconds, mut peak) = (Vec::new(), 0f64);
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(700) {
                for copy in &copies {
                    let view = WeightView::new(copy, Element::Bf16, n, k).ok_or("a matrix of another size")?;
                    inputs.fill(isa, &pool, Element::Bf16, &segments, &x);
                    let start = Instant::now();
                    matmul(isa, &pool, &inputs, &view, None, &mut out);
                    seconds.push(start.elapsed().as_secs_f64());
                }
                peak = peak.max(limit.peak(isa, &pool));
            }
            seconds.sort_by(f64::total_cmp);
            let (speed, peak) = ((2 * n * k * rows) as f64 / seconds[seconds.len() / 2] / 1e9, peak / 1e9);
            println!(
                "{n} x {k}, {rows:3} rows: {speed:6.1} GFLOP/s, {:.0} % of {peak:.0} ({limit})",
                100.0 * speed / peak
            );
        }
    }
    Ok(())
}
