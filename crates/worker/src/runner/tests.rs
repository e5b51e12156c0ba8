use super::*;
use types::{BeamParams, EarlyStopping, GenerateSpec, Pooling};

use crate::fake::{self, Kind, Size, VOCAB, World, spec};

/// Admits everyone and computes everything: what a runner does without its planner's help.
struct AllAtOnce;

impl Planner for AllAtOnce {
    fn plan(&mut self, view: &QueueView<'_>) -> Plan {
        let admit: Vec<_> = view.waiting.iter().map(|seq| seq.id).collect();
        let rows = view.running.iter().chain(view.waiting).map(|seq| (seq.id, seq.pending)).collect();
        Plan { preempt: Vec::new(), admit, rows }
    }
}

/// As `AllAtOnce`, but everybody is preempted before each third step.
struct Harsh(u32);

impl Planner for Harsh {
    fn plan(&mut self, view: &QueueView<'_>) -> Plan {
        self.0 += 1;
        if self.0.is_multiple_of(3) {
            let both = view.running.iter().chain(view.waiting);
            return Plan { preempt: both.map(|seq| seq.id).collect(), ..Plan::default() };
        }
        AllAtOnce.plan(view)
    }
}

const SIZE: Size = Size { blocks: 64, block_size: 8, max_num_seqs: 16, max_num_batched_tokens: 64 };

fn world(planner: impl Planner + 'static) -> World {
    World::new(SIZE, Box::new(planner))
}

#[test]
fn every_kind_of_job_ends_with_the_oracles_tokens() {
    for kind in [Kind::Complete, Kind::FirstTokens, Kind::Continue] {
        for (prompt, choices) in [(1, 1), (7, 3), (8, 1), (8, 3), (9, 2), (33, 4)] {
            let mut world = world(AllAtOnce);
            assert!(world.submit("a", spec(0, prompt, choices, 20, 5), kind));
            world.run(200);
            world.check_end();
        }
    }
}

#[test]
fn preempted_sequences_draw_the_same_tokens() {
    for kind in [Kind::Complete, Kind::Continue] {
        let mut world = world(Harsh(0));
        world.submit("a", spec(0, 13, 3, 20, 5), kind);
        world.submit("b", spec(1, 8, 1, 20, 6), kind);
        world.run(500);
        world.check_end();
        assert!(world.runner.stats().preemptions > 0);
    }
}

#[test]
fn a_vector_is_made_of_the_whole_text_once() {
    for tokens in [64, 5] {
        for harsh in [false, true] {
            let planner: Box<dyn Planner> = if harsh { Box::new(Harsh(0)) } else { Box::new(AllAtOnce) };
            let mut world = World::new(Size { max_num_batched_tokens: tokens, ..SIZE }, planner);
            for (name, kind, prompt) in [
                ("a", Kind::Embed(Pooling::Mean), 9),
                ("b", Kind::Embed(Pooling::Mean), 9),
                ("c", Kind::Embed(Pooling::Last), 33),
                ("d", Kind::Embed(Pooling::Last), 33),
                ("e", Kind::Embed(Pooling::Mean), 1),
            ] {
                assert!(world.submit(name, spec(0, prompt, 1, 1, 5), kind));
                world.run(500);
                world.check_end();
            }
        }
    }
}

#[test]
fn a_search_finds_what_the_plain_one_finds() {
    let size = |blocks, rows, tokens| Size { blocks, max_num_seqs: rows, max_num_batched_tokens: tokens, ..SIZE };
    // Enough of everything; fewer rows than members; fewer tokens than members; blocks for hardly more than one of them.
    for size in [size(64, 16, 64), size(64, 3, 64), size(64, 16, 8), size(7, 16, 64)] {
        for (early_stopping, length_penalty) in [
            (EarlyStopping::No, 1.0),
            (EarlyStopping::Yes, 0.0),
            (EarlyStopping::Never, 2.0),
            (EarlyStopping::Never, -1.0),
        ] {
            for harsh in [false, true] {
                let planner: Box<dyn Planner> = if harsh { Box::new(Harsh(0)) } else { Box::new(AllAtOnce) };
                let mut world = World::new(size, planner);
                for (name, prompt, width, n, kind) in [("a", 13, 4, 2, Kind::Complete), ("b", 8, 3, 3, Kind::Continue)]
                {
                    let mut spec = spec(0, prompt, n, 12, 5);
                    spec.sampling.beam = Some(BeamParams { width, length_penalty, early_stopping });
                    assert!(world.submit(name, spec, kind));
                }
                world.submit("c", spec(1, 5, 2, 9, 5), Kind::Complete);
                world.run(5000);
                world.check_end();
            }
        }
    }
}

#[test]
fn a_search_can_be_cancelled_at_any_moment() {
    for steps in 0..12 {
        let mut world = World::new(Size { max_num_batched_tokens: 3, ..SIZE }, Box::new(AllAtOnce));
        let mut searched = spec(0, 9, 2, 20, 5);
        searched.sampling.beam = Some(BeamParams { width: 4, length_penalty: 1.0, early_stopping: EarlyStopping::No });
        world.submit("a", searched, Kind::Complete);
        for _ in 0..steps {
            world.step();
        }
        world.cancel("a", &[]);
        world.run(1);
        assert_eq!(world.pool.stats().leased, 0, "after {steps} steps: {:?}", world.pool.ledger());
    }
}

#[test]
fn a_prompt_is_scored_once_whatever_is_cached_or_preempted() {
    for (planner, tokens) in [(0, 64), (0, 5), (1, 64), (1, 5)] {
        let size = Size { max_num_batched_tokens: tokens, ..SIZE };
        let planner: Box<dyn Planner> = if planner == 0 { Box::new(AllAtOnce) } else { Box::new(Harsh(0)) };
        let mut world = World::new(size, planner);
        for (name, prompt, kind) in [
            ("a", 1, Kind::Complete),
            ("b", 33, Kind::Complete),
            ("c", 40, Kind::FirstTokens),
            ("d", 40, Kind::Continue),
        ] {
            let mut spec = spec(0, prompt, 2, 6, 5);
            spec.sampling.prompt_logprobs = Some(0);
            assert!(world.submit(name, spec, kind));
            world.run(500);
            world.check_end();
        }
    }
}

#[test]
fn a_landed_job_whose_first_tokens_were_its_last_ends_even_if_preempted() {
    let mut world = world(Harsh(2));
    world.submit("a", spec(0, 13, 3, 1, 5), Kind::Continue);
    world.run(5);
    world.check_end();
}

#[test]
fn a_resumed_attempt_continues_where_the_lost_one_stopped() {
    let whole = GenerateSpec { choices: 2..3, ..spec(0, 9, 1, 12, 5) };
    let expected = fake::oracle(&whole).remove(0);
    for emitted in 1..expected.len() {
        let output = expected[..emitted].iter().map(|token| token.id).collect();
        let rest = GenerateSpec { output, ..whole.clone() };
        assert_eq!(fake::oracle(&rest).remove(0), expected[emitted..]);
        for kind in [Kind::Complete, Kind::Continue] {
            let mut world = world(AllAtOnce);
            world.submit("a", rest.clone(), kind);
            world.run(200);
            world.check_end();
        }
    }
}

#[test]
fn a_repeated_prompt_is_found_but_its_last_token_is_computed() {
    let cached_of = |prompt_len: usize| {
        let mut world = world(AllAtOnce);
        world.submit("a", spec(0, prompt_len, 1, 1, 5), Kind::Complete);
        world.run(50);
        let mut second = Job { key: key("b"), spec: spec(0, prompt_len, 1, 1, 6), goal: Goal::Complete, matcher: None };
        second.spec.choices = 0..1;
        world.runner.submit(second, Duration::ZERO).unwrap();
        let stepped = world.runner.step(Duration::ZERO, &mut world.stepper);
        match &stepped.events[0].what {
            Happening::Sampled { prompt: Some(prompt), .. } => prompt.cached_tokens,
            other => panic!("{other:?}"),
        }
    };
    for (prompt_len, cached) in [(7, 0), (8, 0), (9, 8), (16, 8), (17, 16)] {
        assert_eq!(cached_of(prompt_len), cached, "prompt of {prompt_len}");
    }
}

#[test]
fn what_can_never_end_is_refused_at_once() {
    let refusal = |spec: GenerateSpec| {
        let mut world = World::new(Size { blocks: 4, ..SIZE }, Box::new(AllAtOnce));
        let refused =
            world.runner.submit(Job { key: key("a"), spec, goal: Goal::Complete, matcher: None }, Duration::ZERO);
        let failure = refused.unwrap_err();
        assert!(world.runner.is_idle());
        (failure.code, failure.message)
    };
    let too_long = |message: &str| (FailCode::FailTooLong, message.to_owned());
    assert_eq!(refusal(spec(0, 96, 1, 4, 0)), too_long("96 tokens leave no room to answer in a context of 96"));
    assert_eq!(refusal(spec(0, 33, 1, 1, 0)), too_long("needs 5 KV blocks of 8 tokens, there are 4"));
    assert_eq!(refusal(spec(0, 30, 1, 4, 0)), too_long("needs 5 KV blocks of 8 tokens, there are 4"));
    let foreign = GenerateSpec { prompt: vec![VOCAB].into(), ..spec(0, 1, 1, 1, 0) };
    assert_eq!(refusal(foreign), (FailCode::FailBadRequest, "token 61 is outside the vocabulary of 61".to_owned()));
}

#[test]
fn cancel_gives_back_everything_at_any_moment() {
    for steps in 0..6 {
        for choices in [&[][..], &[1], &[0, 1, 2]] {
            let mut world = World::new(Size { max_num_batched_tokens: 16, ..SIZE }, Box::new(AllAtOnce));
            world.submit("a", spec(0, 40, 3, 20, 5), Kind::Complete);
            for _ in 0..steps {
                world.step();
            }
            world.cancel("a", choices);
            world.run(200);
            world.check_end();
        }
    }
}

#[test]
fn the_urgent_are_served_first_whenever_they_came() {
    let mut world = World::new(Size { max_num_seqs: 1, ..SIZE }, Box::new(AllAtOnce));
    for (name, priority) in [("a", 5), ("b", 0), ("c", -5), ("d", 0)] {
        let mut spec = spec(0, 9, 1, 1, 5);
        spec.sampling.priority = priority;
        world.runner.submit(Job { key: key(name), spec, goal: Goal::Complete, matcher: None }, Duration::ZERO).unwrap();
    }
    let mut ended = Vec::new();
    for _ in 0..20 {
        let stepped = world.runner.step(Duration::ZERO, &mut world.stepper);
        let over = stepped.events.into_iter().filter(|event| event.what == Happening::Finished);
        ended.extend(over.map(|event| event.key.request.to_string()));
    }
    assert_eq!(ended, ["c", "b", "d", "a"]);
}

fn key(name: &str) -> RequestKey {
    RequestKey { request: name.into(), epoch: 0 }
}
