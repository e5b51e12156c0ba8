//! Every target over its corpus and seeded mutations of it: nothing panics, nothing grows, and what is right is still taken.

#![expect(clippy::unwrap_used, reason = "a failing unwrap fails the test")]

use fuzz_targets::{Mutator, TARGETS, Target};

/// Resident memory may grow by so much over a whole target: far above its inputs, far below what one foreign length could ask for.
const GROWTH_KIB_MAX: u64 = 192 << 10;
/// Committed inputs are small and few: what a fuzzer found worth keeping, not all that it found.
const INPUT_BYTES_MAX: u64 = 4 << 10;
const INPUTS_MAX: usize = 40;
/// They are mutations already, so they get so many times fewer than examples.
const MUTATED_BEFORE: usize = 20;

fn check(target: &Target) {
    let (corpus, examples) = (target.corpus(), (target.examples)());
    for example in &examples {
        assert!((target.run)(example), "{} refuses {:?}", target.name, String::from_utf8_lossy(example));
    }
    let before = peak_kib();
    let mut mutator = Mutator::new(7);
    for (number, input) in corpus.iter().enumerate() {
        (target.run)(input);
        let mutations = if number < examples.len() { target.mutations } else { target.mutations / MUTATED_BEFORE };
        for _ in 0..mutations {
            let mutated = mutator.mutate(input, &corpus[(number + 1) % corpus.len()]);
            let ran = std::panic::catch_unwind(|| (target.run)(&mutated));
            assert!(ran.is_ok(), "{} panics on {:?}", target.name, mutated.escape_ascii().to_string());
        }
    }
    let grown = peak_kib().saturating_sub(before);
    assert!(grown <= GROWTH_KIB_MAX, "{} took {grown} KiB more, at most {GROWTH_KIB_MAX}", target.name);
}

/// Most resident memory of this process so far.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// One test, so that no other thread's memory is counted; every target under its name in the output.
#[test]
fn every_parser_takes_or_refuses() {
    for target in TARGETS {
        println!("{}", target.name);
        check(target);
    }
}

#[test]
fn every_target_has_a_small_corpus() {
    for target in TARGETS {
        let inputs: Vec<_> = std::fs::read_dir(target.corpus_dir()).unwrap().map(Result::unwrap).collect();
        assert!((1..=INPUTS_MAX).contains(&inputs.len()), "{}: {} inputs", target.name, inputs.len());
        for input in inputs {
            let bytes = input.metadata().unwrap().len();
            assert!(bytes <= INPUT_BYTES_MAX, "{} has {bytes} bytes", input.path().display());
        }
    }
}

#[test]
fn every_target_has_a_fuzzer_and_every_corpus_a_target() {
    let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for target in TARGETS {
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "fuzz/Cargo.toml lacks {}", target.name);
        assert!(fuzz.join("fuzz_targets").join(format!("{}.rs", target.name)).is_file(), "{}", target.name);
    }
    for entry in std::fs::read_dir(fuzz.join("corpus")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(TARGETS.iter().any(|target| target.name == name), "corpus/{name} belongs to no target");
    }
}
