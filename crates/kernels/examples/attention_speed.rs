//! How fast attention is (medians), beside the most that was measured of the multiply-adds it is made of, all tokens that are seen
//! counted and no others: `cargo run --release -p kernels --example attention_speed [THREADS] [CASE]`,
//! the case counted from 0, all without it.

use std::time::{Duration, Instant};

use kernels::{
    AttentionShape, Element, Isa, KvArena, KvElement, KvLayer, KvRow, KvRows, KvShape, Pool, attention, limits,
};

/// Heads of Qwen2-0.5B.
const SHAPE: AttentionShape = AttentionShape { heads: 14, kv_heads: 2, head_dim: 64, window: 0 };
const BLOCK: usize = 16;

/// Rows, new tokens of each, and tokens before them.
const CASES: [(usize, usize, usize); 6] =
    [(1, 512, 0), (1, 512, 1536), (1, 1, 255), (16, 1, 255), (1, 1, 2047), (16, 1, 2047)];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(1), |threads| threads.parse())?;
    let (isa, pool) = (Isa::from_env()?, Pool::new("speed", threads)?);
    let limit = limits::Arithmetic::of(isa, Some(Element::F32));
    let case = std::env::args().nth(2).map(|case| case.parse()).transpose()?;
    let some = case.map_or(0..CASES.len(), |case: usize| case..case + 1);
    for &(rows, count, start) in CASES.get(some).ok_or("there is no such case")? {
        let of_row = (start + count).div_ceil(BLOCK);
        let (heads, head_dim) = (SHAPE.kv_heads, SHAPE.head_dim);
        let blocks = rows * of_row;
        let shape = KvShape { layers: 1, heads, head_dim, block_size: BLOCK, blocks, element: KvElement::Bf16 };
        let arena = KvArena::of_ranks(shape, 1)?.remove(0);
        arena.memory().write(0, &vec![60; shape.bytes().ok_or("too large")?]);
        let blocks: Vec<u32> = (0..blocks as u32).collect();
        let rows: Vec<KvRow> = (0..rows)
            .map(|row| KvRow { first: row * count, count, start, blocks: row * of_row..(row + 1) * of_row })
            .collect();
        let q: Vec<f32> = (0..rows.len() * count * SHAPE.heads * head_dim).map(|i| (i % 1000) as f32 / 1e3).collect();
        let (mut out, mut seconds, mut peak) = (vec![0.0; q.len()], Vec::new(), 0f64);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(500) {
            for _ in 0..10 {
                let (start, layer) = (Instant::now(), KvLayer { arena: &arena, layer: 0 });
                attention(isa, &pool, &SHAPE, KvRows { rows: &rows, blocks: &blocks }, &layer, &q, &mut out);
                seconds.push(start.elapsed().as_secs_f64());
            }
            peak = peak.max(limit.peak(isa, &pool));
        }
        seconds.sort_by(f64::total_cmp);
        let seen = rows.len() * (0..count).map(|token| start + token + 1).sum::<usize>();
        let (seconds, operations) = (seconds[seconds.len() / 2], (4 * seen * SHAPE.heads * head_dim) as f64);
        println!(
            "{:2} x {count:3} tokens after {start:4}: {:8.3} ms, {:5.1} GFLOP/s, {:.0} % of {:.0} ({limit})",
            rows.len(),
            1e3 * seconds,
            operations / seconds / 1e9,
            100.0 * operations / seconds / peak,
            peak / 1e9
        );
    }
    Ok(())
}
