//! Every parser of bytes that somebody else chose, as a function of bytes: `tests/corpus.rs` runs them over the committed corpus and
//! seeded mutations of it, `fuzz/fuzz_targets` under a fuzzer.
//!
//! A target must take or refuse any input: a panic, a loop or memory out of proportion is a bug. Each has examples that it takes, so
//! that a parser that refuses everything is seen.

mod files;
mod mutate;
mod requests;
mod wire;

use std::path::PathBuf;

pub use mutate::Mutator;

/// A parser under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    /// Takes (true) or refuses the bytes.
    pub run: fn(&[u8]) -> bool,
    /// Inputs that it must take.
    pub examples: fn() -> Vec<Vec<u8>>,
    /// Mutations per example in the plain test: the slow ones get fewer.
    pub mutations: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "request", run: requests::request, examples: requests::examples, mutations: 400 },
    Target { name: "secret", run: wire::secret, examples: wire::secret_examples, mutations: 1000 },
    Target { name: "control", run: wire::control, examples: wire::control_examples, mutations: 1000 },
    Target { name: "ticket", run: wire::ticket, examples: wire::ticket_examples, mutations: 1000 },
    Target { name: "kv_connection", run: wire::kv_connection, examples: wire::kv_examples, mutations: 1000 },
    Target { name: "shared_memory", run: wire::shared_memory, examples: wire::shared_memory_examples, mutations: 1000 },
    Target { name: "rank_table", run: files::rank_table, examples: files::rank_table_examples, mutations: 100 },
    Target { name: "chat_template", run: files::chat_template, examples: files::template_examples, mutations: 300 },
    Target { name: "tokenizer", run: files::tokenizer, examples: files::tokenizer_examples, mutations: 100 },
    Target { name: "model_config", run: files::model_config, examples: files::config_examples, mutations: 300 },
    Target { name: "weights", run: files::weights, examples: files::weights_examples, mutations: 60 },
];

/// The target of this name.
///
/// # Panics
/// If there is none: a fuzzer that runs nothing must not look well.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no target {name}"))
}

impl Target {
    /// Where its inputs are kept.
    pub fn corpus_dir(&self) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(self.name)
    }

    /// Its examples, then the committed inputs by name.
    pub fn corpus(&self) -> Vec<Vec<u8>> {
        let files = std::fs::read_dir(self.corpus_dir()).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = files.map(|file| file.path()).collect();
        paths.sort();
        let read = |path: &PathBuf| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (self.examples)().into_iter().chain(paths.iter().map(read)).collect()
    }
}
