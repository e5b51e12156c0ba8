use proptest::prelude::*;
use worker::fake::{Kind, Size, World, check_plan, spec};

use super::*;

fn check(script: &str, expected: &str) {
    check_plan(&mut PrefillPlanner, script, expected);
}

#[test]
fn a_long_prompt_is_chunked_and_the_rest_of_the_budget_filled() {
    check(
        "budget=16
         run 0 pending=10
         wait 1 pending=100 missing=7",
        "preempt [] admit [1] rows [0:10 1:6]",
    );
    check("budget=16\n run 0 pending=40\n wait 1 pending=5 missing=1", "preempt [] admit [] rows [0:16]");
}

/// A quarter of the budget, unless somebody whom it would overtake has waited long enough.
#[test]
fn short_prompts_do_not_wait_for_a_long_one() {
    check("budget=16\n run 0 pending=40\n wait 1 pending=4 missing=1", "preempt [] admit [1] rows [0:12 1:4]");
    check(
        "budget=16
         run 0 pending=40
         wait 1 pending=90 missing=1
         wait 2 pending=3 missing=1
         wait 3 pending=2 missing=1
         wait 4 pending=1 missing=1",
        "preempt [] admit [2 4] rows [0:12 2:3 4:1]",
    );
    check(
        "budget=16
         run 0 pending=40
         wait 1 pending=90 missing=1 passed=8
         wait 2 pending=3 missing=1",
        "preempt [] admit [] rows [0:16]",
    );
}

/// More prompts in a step would end no sooner, and the first of them later.
#[test]
fn a_full_step_takes_no_further_prompt() {
    check(
        "budget=2048 blocks=500
         wait 0 pending=512 missing=32
         wait 1 pending=512 missing=32",
        "preempt [] admit [0] rows [0:512]",
    );
    check(
        "budget=2048 blocks=500
         run 0 pending=1600
         wait 1 pending=600 missing=38
         wait 2 pending=300 missing=19",
        "preempt [] admit [2] rows [0:1300 2:300]",
    );
    check("budget=2048\n run 0 pending=9000\n wait 1 pending=600 missing=38", "preempt [] admit [] rows [0:2048]");
}

#[test]
fn a_warm_prefix_goes_first() {
    check(
        "budget=16
         wait 0 pending=10 missing=1
         wait 1 pending=32 cached=24 missing=1
         wait 2 pending=32 cached=16 missing=1",
        "preempt [] admit [1 2] rows [1:8 2:8]",
    );
}

#[test]
fn priority_goes_before_patience_and_warmth() {
    check(
        "budget=16
         wait 5 prio=0 pending=10 missing=1
         wait 0 prio=1 pending=8 missing=1 passed=9
         wait 1 prio=1 pending=32 cached=30 missing=1",
        "preempt [] admit [5 0] rows [5:10 0:6]",
    );
}

#[test]
fn patience_ends() {
    check(
        "budget=16
         wait 0 pending=10 missing=1 passed=8
         wait 1 pending=32 cached=24 missing=1",
        "preempt [] admit [0 1] rows [0:10 1:6]",
    );
}

#[test]
fn who_is_next_is_not_gone_round() {
    check(
        "blocks=3
         wait 0 pending=60 missing=4
         wait 1 pending=4 missing=1",
        "preempt [] admit [] rows []",
    );
    check("slots=1\n run 0 pending=4\n wait 1 pending=4", "preempt [] admit [] rows [0:4]");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Every prompt gets its first tokens, the same whatever budget, pool and company.
    #[test]
    fn every_prompt_gets_its_first_tokens(
        blocks in 12..40u32,
        max_num_seqs in 1..6u32,
        max_num_batched_tokens in 1..48u32,
        prompts in prop::collection::vec((0..3u32, 1..90usize, 1..4u32, 0..4u8), 1..30),
    ) {
        let size = Size { blocks, block_size: 8, max_num_seqs, max_num_batched_tokens };
        let mut world = World::new(size, Box::new(PrefillPlanner));
        for (place, (family, prompt, choices, steps)) in prompts.into_iter().enumerate() {
            world.submit(&place.to_string(), spec(family, prompt, choices, 4, 7), Kind::FirstTokens);
            (0..steps).for_each(|_| _ = world.step());
        }
        world.run(20_000);
        world.check_end();
        prop_assert_eq!(world.runner.stats().preemptions, 0);
        prop_assert!(world.stepper.tokens_max <= max_num_batched_tokens as usize);
    }
}
