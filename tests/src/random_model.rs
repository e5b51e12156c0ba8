//! A model that knows nothing: the demo model's shape and tokenizer with random weights.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use crate::demo_model;

/// A fresh model directory; the weights are the same every time.
pub fn random_model() -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    for entry in std::fs::read_dir(demo_model()).expect("the demo model is there") {
        let path = entry.expect("it can be listed").path();
        let to = dir.path().join(path.file_name().expect("a file has a name"));
        match path.extension().is_some_and(|extension| extension == "safetensors") {
            true => {
                std::fs::write(to, shuffled(std::fs::read(path).expect("it can be read"))).expect("it can be written")
            }
            false => std::fs::copy(path, to).map(drop).expect("it can be copied"),
        }
    }
    dir
}

/// A safetensors file with every bf16 value replaced by one from -0.1 to 0.1.
fn shuffled(mut file: Vec<u8>) -> Vec<u8> {
    let header = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let mut random = StdRng::seed_from_u64(1);
    for value in file[8 + header..].chunks_exact_mut(2) {
        let bits = random.random_range(-0.1f32..0.1).to_bits();
        value.copy_from_slice(&((bits >> 16) as u16).to_le_bytes());
    }
    file
}
