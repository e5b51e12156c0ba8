use proptest::prelude::*;
use worker::fake::{Kind, Size, World, check_plan, spec};

use super::*;

fn check(script: &str, expected: &str) {
    check_plan(&mut DecodePlanner::default(), script, expected);
}

#[test]
fn all_running_decodes_come_first() {
    check(
        "budget=8
         run 0 pending=20 held=3
         run 1
         run 2
         wait 3 pending=5 missing=1",
        "preempt [] admit [] rows [1:1 2:1 0:6]",
    );
}

#[test]
fn waiting_ones_are_admitted_in_order_into_the_rest_of_the_budget() {
    check(
        "budget=8 blocks=10
         run 0
         wait 1 pending=4 missing=1
         wait 2 pending=20 cached=16 missing=1
         wait 3 pending=4 missing=1",
        "preempt [] admit [1 2] rows [0:1 1:4 2:3]",
    );
}

/// Who decodes waits for the whole step.
#[test]
fn prompts_take_small_steps_beside_decodes() {
    check("budget=2048\n run 0\n run 1 pending=2000", "preempt [] admit [] rows [0:1 1:256]");
    check(
        "budget=2048 blocks=500
         run 0
         wait 1 pending=200 missing=13
         wait 2 pending=200 missing=13
         wait 3 pending=200 missing=13
         wait 4 held=3",
        "preempt [] admit [1 2 4] rows [0:1 1:200 2:56 4:1]",
    );
    let unlimited = &mut DecodePlanner { long_prefill_token_threshold: 0 };
    check_plan(unlimited, "budget=2048\n run 0\n run 1 pending=4000", "preempt [] admit [] rows [0:1 1:2047]");
}

/// More prompts in a step would end no sooner, and the first of them later.
#[test]
fn a_full_step_takes_no_further_prompt() {
    check(
        "budget=2048 blocks=500
         wait 0 pending=2000 missing=125
         wait 1 pending=400 missing=25",
        "preempt [] admit [0] rows [0:2000]",
    );
    check(
        "budget=2048 blocks=500
         wait 0 pending=300 missing=20
         wait 1 pending=400 missing=25
         wait 2 pending=400 missing=25",
        "preempt [] admit [0 1] rows [0:300 1:212]",
    );
}

#[test]
fn who_waits_for_a_later_step_keeps_the_room_for_its_prompt() {
    let script = |blocks: u32| {
        format!(
            "budget=2048 blocks={blocks}
             run 0
             wait 1 pending=256 missing=16
             wait 2 pending=256 missing=16
             wait 3 held=2 missing=1"
        )
    };
    // Besides the prompts and the one block, each of the four will want another.
    check(&script(37), "preempt [] admit [1 3] rows [0:1 1:256 3:1]");
    check(&script(36), "preempt [] admit [1] rows [0:1 1:256]");
}

#[test]
fn a_large_one_is_not_starved_by_small_ones() {
    check(
        "blocks=4
         run 0
         wait 1 pending=60 missing=4
         wait 2 pending=4 missing=1",
        "preempt [] admit [] rows [0:1]",
    );
    check(
        "slots=2
         run 0
         wait 1 slots=2
         wait 2",
        "preempt [] admit [] rows [0:1]",
    );
}

#[test]
fn nobody_begins_in_the_room_that_those_who_run_will_need() {
    let script = |blocks: u32| {
        format!(
            "blocks={blocks}
             run 0 held=4 growth=6
             wait 1 pending=9 missing=2 growth=3"
        )
    };
    check(&script(10), "preempt [] admit [] rows [0:1]");
    check(&script(11), "preempt [] admit [1] rows [0:1 1:9]");
}

#[test]
fn who_was_preempted_comes_back_before_who_never_ran() {
    let script = |blocks: u32| {
        format!(
            "blocks={blocks}
             run 0 held=4 growth=1
             wait 1 pending=40 missing=5
             wait 2 pending=4 missing=1"
        )
    };
    check(&script(6), "preempt [] admit [] rows [0:1]");
    check(&script(7), "preempt [] admit [1] rows [0:1 1:40]");
}

#[test]
fn the_less_urgent_is_preempted_whenever_it_came() {
    check(
        "blocks=0
         run 9 prio=1 held=2 missing=1
         run 0 prio=2 held=2 missing=1",
        "preempt [0] admit [] rows [9:1]",
    );
}

#[test]
fn the_latest_arrival_is_preempted() {
    check(
        "blocks=0
         run 0 held=2 missing=1
         run 1 held=2
         run 2 held=2 missing=1
         wait 3 pending=4 missing=1",
        "preempt [2] admit [] rows [0:1 1:1]",
    );
}

#[test]
fn who_waits_with_blocks_is_preempted_before_who_runs() {
    check(
        "blocks=0
         run 0 held=2 missing=1
         run 1 held=2
         wait 2 held=1",
        "preempt [2] admit [] rows [0:1 1:1]",
    );
}

#[test]
fn the_earliest_waits_for_blocks_that_others_hold() {
    check("blocks=0\n run 0 held=2 missing=1\n wait 1", "preempt [] admit [] rows []");
}

#[test]
fn alone_a_sequence_may_always_try() {
    check("blocks=1\n wait 0 pending=20 missing=2", "preempt [] admit [0] rows [0:20]");
    check(
        "blocks=1 slots=2
         wait 0 pending=20 missing=2 slots=3
         wait 1 held=1",
        "preempt [1] admit [0] rows [0:20]",
    );
    // The hits themselves may be all that is available.
    check(
        "blocks=2
         wait 0 pending=20 hits=2 missing=1
         wait 1 held=1",
        "preempt [1] admit [0] rows [0:20]",
    );
}

#[derive(Clone, Debug)]
enum Op {
    Submit { family: u32, prompt: usize, choices: u32, max_tokens: u32, landed: bool },
    Cancel { job: usize, choice: Option<u32> },
    Steps(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..3u32, 1..60usize, 1..4u32, 1..30u32, any::<bool>()).prop_map(
            |(family, prompt, choices, max_tokens, landed)| Op::Submit { family, prompt, choices, max_tokens, landed }
        ),
        1 => (0..24usize, prop::option::of(0..3u32)).prop_map(|(job, choice)| Op::Cancel { job, choice }),
        4 => (1..6u8).prop_map(Op::Steps),
    ]
}

fn size() -> impl Strategy<Value = Size> {
    (12..40u32, prop_oneof![Just(8u32), Just(16)], 1..9u32, 1..48u32).prop_map(
        |(blocks, block_size, max_num_seqs, max_num_batched_tokens)| Size {
            blocks,
            block_size,
            max_num_seqs,
            max_num_batched_tokens,
        },
    )
}

fn run(size: Size, ops: Vec<Op>) -> World {
    let mut world = World::new(size, Box::new(DecodePlanner::default()));
    for (place, op) in ops.into_iter().enumerate() {
        match op {
            Op::Submit { family, prompt, choices, max_tokens, landed } => {
                let kind = if landed { Kind::Continue } else { Kind::Complete };
                world.submit(&place.to_string(), spec(family, prompt, choices, max_tokens, place as u64), kind);
            }
            Op::Cancel { job, choice } => world.cancel(&job.to_string(), choice.as_slice()),
            Op::Steps(steps) => (0..steps).for_each(|_| _ = world.step()),
        }
    }
    world.run(20_000);
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is submitted, cancelled and preempted: every job ends once with the oracle's tokens, and every block comes back.
    #[test]
    fn every_job_ends_right_whatever_the_size(size in size(), ops in prop::collection::vec(op(), 1..40)) {
        let world = run(size, ops);
        world.check_end();
        prop_assert!(world.stepper.tokens_max <= size.max_num_batched_tokens as usize);
        prop_assert!(world.stepper.rows_max <= size.max_num_seqs as usize);
    }
}

#[test]
fn a_tiny_pool_preempts_and_still_answers_right() {
    let size = Size { blocks: 12, block_size: 8, max_num_seqs: 8, max_num_batched_tokens: 32 };
    let submit = |family| Op::Submit { family, prompt: 20, choices: 3, max_tokens: 30, landed: false };
    let world = run(size, (0..6).map(submit).collect());
    world.check_end();
    assert!(world.runner.stats().preemptions > 0, "the case is meant to preempt");
}

#[test]
fn once_it_is_known_how_long_texts_become_nobody_is_preempted() {
    // Nine blocks each in the end: four fit, and who knows nothing begins ten.
    let size = Size { blocks: 40, block_size: 8, max_num_seqs: 32, max_num_batched_tokens: 64 };
    let mut world = World::new(size, Box::new(DecodePlanner::default()));
    let mut wave = |name: &str, families: std::ops::Range<u32>| {
        for number in families {
            let mut whole = spec(number, 10, 1, 60, u64::from(number));
            whole.sampling.ignore_eos = true;
            assert!(world.submit(&format!("{name} {number}"), whole, Kind::Complete));
        }
        world.run(20_000);
        world.check_end();
        world.runner.stats().preemptions
    };
    let first = wave("first", 0..12);
    assert!(first > 0, "the case is meant to preempt");
    assert_eq!(wave("second", 12..24), first);
}
