//! Writes the examples of every target to `fuzz/seeds/TARGET`, for a fuzzer to start from.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for target in fuzz_targets::TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seeds").join(target.name);
        std::fs::create_dir_all(&directory)?;
        for (number, input) in target.corpus().iter().enumerate() {
            std::fs::write(directory.join(number.to_string()), input)?;
        }
    }
    Ok(())
}
