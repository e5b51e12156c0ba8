//! The first seeds, so that every change passes through some hundred faults. The command in ARCHITECTURE.md runs thousands.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use simulation::{Model, Outcome, Plan, Sabotage, run};

/// Each costs about a second of one core in a debug build.
const SEEDS: u64 = 10;
const REPEATED: u64 = 2;

fn check(seeds: impl Iterator<Item = u64>) -> Outcome {
    let model = Model::new().unwrap();
    let mut total = Outcome::default();
    for seed in seeds {
        match run(Plan::new(seed, &model), &model) {
            Ok(outcome) => total.add(&outcome),
            Err(violation) => {
                panic!("{}\n  again: cargo run --release -p simulation -- --seed {seed}", violation.0)
            }
        }
    }
    total
}

#[test]
fn even_seeds_hold() {
    let total = check((0..SEEDS).step_by(2));
    assert!(total.whole > 3 * total.refused, "hardly anything is answered: {total:?}");
}

#[test]
fn odd_seeds_hold() {
    check((1..SEEDS).step_by(2));
}

#[test]
fn equal_seeds_run_equally() {
    for seed in 0..REPEATED {
        assert_eq!(check(seed..=seed), check(seed..=seed), "seed {seed}");
    }
}

#[test]
fn what_is_wrong_is_found() {
    let model = Model::new().unwrap();
    let cases = [
        (Sabotage::Leak, "ask0 epoch 0, which was over"),
        (Sabotage::Double, "found Text"),
        (Sabotage::Silence, "it never ended"),
    ];
    for (sabotage, expected) in cases {
        let plan = Plan::new(0, &model).sabotaged(sabotage);
        let found = run(plan, &model).unwrap_err().0;
        assert!(found.contains(expected), "{sabotage:?}: {found}");
    }
}
