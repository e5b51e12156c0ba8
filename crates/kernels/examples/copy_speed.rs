//! How fast KV memory is checked, and copied with its checksum from another mapping, beside plain copies of the same run (medians of
//! milliseconds for 64 MiB): `cargo run --release -p kernels --example copy_speed`.

use std::hint::black_box;
use std::time::Instant;

use kernels::{Checksum, ForeignMemory, Isa, KvMemory};

const BYTES: usize = 64 << 20;
/// What lies in one run: keys or values of a block of 16 tokens, 1 KiB each.
const STRETCH: usize = 16 << 10;
const ROUNDS: usize = 15;
/// The second fits into a second-level cache.
const SIZES: [usize; 2] = [BYTES, 128 << 10];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let isa = Isa::from_env()?;
    let (p, d) = (KvMemory::new(BYTES)?, KvMemory::new(BYTES)?);
    let foreign = ForeignMemory::map(p.file(), BYTES)?;
    [&p, &d].iter().for_each(|memory| memory.write(0, &vec![7; BYTES]));
    let (from, mut to) = (vec![7u8; BYTES], vec![0u8; BYTES]);
    for size in SIZES {
        let mut sums = Vec::new();
        let mut times: [Vec<f64>; 3] = Default::default();
        for _ in 0..ROUNDS {
            let mut time = |index: usize, run: &mut dyn FnMut(usize)| {
                let start = Instant::now();
                (0..BYTES).step_by(STRETCH).for_each(|at| run(at % size));
                times[index].push(1e3 * start.elapsed().as_secs_f64());
            };
            let mut sum = Checksum::new(isa, 0);
            time(0, &mut |at| p.checksum(at, STRETCH, &mut sum));
            sums.push(sum.finish());
            let mut sum = Checksum::new(isa, 0);
            time(1, &mut |at| d.copy_from(at, &foreign, at, STRETCH, &mut sum));
            sums.push(sum.finish());
            time(2, &mut |at| black_box(&mut to)[at..at + STRETCH].copy_from_slice(&from[at..at + STRETCH]));
        }
        assert!(sums.iter().all(|sum| *sum == sums[0]), "a copy differs");
        times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
        let [checksum, copy, plain] = times.map(|times| times[ROUNDS / 2]);
        println!(
            "{:5} KiB again and again: checksum {checksum:.2}, copy with checksum {copy:.2}, plain copy {plain:.2}",
            size >> 10
        );
    }
    Ok(())
}
