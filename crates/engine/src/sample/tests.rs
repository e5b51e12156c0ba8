use types::{SamplingParams, TokenSet};

use super::*;

const EOS: TokenId = 7;

fn sampler() -> Sampler {
    Sampler::new(Isa::PORTABLE, vec![EOS], 100)
}

/// Eight tokens, best first: 3, 5, 0, ...
const LOGITS: [f32; 8] = [1.0, -1.0, 0.5, 3.0, -2.0, 2.0, 0.0, -3.0];

fn sample(params: &SamplingParams, prompt: &[TokenId], output: &[TokenId]) -> SampledToken {
    sampler().sample(&LOGITS, &SampleRequest { params, choice: 0, prompt, output, constraint: None }).unwrap().unwrap()
}

fn greedy() -> SamplingParams {
    SamplingParams::default()
}

fn hot(seed: u64) -> SamplingParams {
    SamplingParams { temperature: 1.0, seed, ..greedy() }
}

/// How often each token is drawn in 4000 positions.
fn shares(params: &SamplingParams) -> Vec<f64> {
    let mut counts = vec![0.0; LOGITS.len()];
    for seed in 0..4000 {
        let params = SamplingParams { seed, ..params.clone() };
        counts[sample(&params, &[1], &[]).id as usize] += 1.0 / 4000.0;
    }
    counts
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|logit| (f64::from(*logit) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[test]
fn greedy_takes_the_largest_after_adjustment() {
    let check = |params: SamplingParams, prompt: &[TokenId], output: &[TokenId], expected: TokenId| {
        assert_eq!(sample(&params, prompt, output).id, expected, "{params:?} {prompt:?} {output:?}");
    };
    check(greedy(), &[1], &[], 3);
    check(SamplingParams { temperature: 1e-9, ..greedy() }, &[1], &[], 3);
    check(SamplingParams { logit_bias: vec![(4, 10.0)], ..greedy() }, &[1], &[], 4);
    check(SamplingParams { logit_bias: vec![(3, -100.0), (99, 5.0)], ..greedy() }, &[1], &[], 5);
    // Repetition counts the prompt, presence and frequency only the output.
    check(SamplingParams { repetition_penalty: 2.0, ..greedy() }, &[3], &[], 5);
    check(SamplingParams { repetition_penalty: 2.0, ..greedy() }, &[1], &[3], 5);
    check(SamplingParams { presence_penalty: 1.5, ..greedy() }, &[3], &[], 3);
    check(SamplingParams { presence_penalty: 1.5, ..greedy() }, &[3], &[3], 5);
    check(SamplingParams { frequency_penalty: 0.6, ..greedy() }, &[1], &[3], 3);
    check(SamplingParams { frequency_penalty: 0.6, ..greedy() }, &[1], &[3, 3], 5);
}

#[test]
fn a_repeated_token_below_zero_gets_less_likely() {
    let params = SamplingParams { repetition_penalty: 2.0, ..greedy() };
    let request = SampleRequest { params: &params, choice: 0, prompt: &[1, 3], output: &[], constraint: None };
    let adjusted = adjust::adjust(&LOGITS, &request, Ends::default(), None).unwrap();
    assert_eq!((adjusted[1], adjusted[3], adjusted[0]), (-2.0, 1.5, 1.0));
}

#[test]
fn ties_go_to_the_lowest_id() {
    let logits = [0.0, 2.0, 2.0, 2.0];
    let request = SampleRequest {
        params: &SamplingParams { logprobs: Some(3), ..greedy() },
        choice: 0,
        prompt: &[],
        constraint: None,
        output: &[],
    };
    let token = sampler().sample(&logits, &request).unwrap().unwrap();
    let ids: Vec<TokenId> = token.top.iter().map(|(id, _)| *id).collect();
    assert_eq!((token.id, ids), (1, vec![1, 2, 3]));
}

#[test]
fn logprobs_are_those_of_the_raw_logits() {
    let params = SamplingParams { logit_bias: vec![(4, 100.0)], logprobs: Some(2), ..hot(1) };
    let token = sample(&params, &[1], &[]);
    let expected = softmax(&LOGITS, 1.0);
    assert_eq!(token.id, 4);
    assert!((f64::from(token.logprob) - expected[4].ln()).abs() < 1e-6);
    assert_eq!(token.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 5]);
    assert!((f64::from(token.top[1].1) - expected[5].ln()).abs() < 1e-6);
    assert!(sample(&hot(1), &[1], &[]).top.is_empty());
}

#[test]
fn draws_follow_the_distribution() {
    for temperature in [0.5, 1.0, 2.0] {
        let found = shares(&SamplingParams { temperature, ..hot(0) });
        for (found, expected) in found.iter().zip(softmax(&LOGITS, f64::from(temperature))) {
            assert!((found - expected).abs() < 0.03, "temperature {temperature}: {found} instead of {expected}");
        }
    }
}

#[test]
fn filters_keep_the_right_tokens() {
    // Probabilities of 3, 5, 0, 2: 0.61, 0.22, 0.083, 0.050.
    let check = |params: SamplingParams, mut expected: Vec<usize>| {
        let found: Vec<usize> =
            shares(&params).iter().enumerate().filter(|(_, share)| **share > 0.0).map(|(id, _)| id).collect();
        expected.sort_unstable();
        assert_eq!(found, expected, "{params:?}");
    };
    check(SamplingParams { top_k: 2, ..hot(0) }, vec![3, 5]);
    check(SamplingParams { top_k: 1, ..hot(0) }, vec![3]);
    check(SamplingParams { top_p: 0.5, ..hot(0) }, vec![3]);
    check(SamplingParams { top_p: 0.7, ..hot(0) }, vec![3, 5]);
    check(SamplingParams { top_p: 0.0, ..hot(0) }, vec![3]);
    check(SamplingParams { min_p: 0.3, ..hot(0) }, vec![3, 5]);
    check(SamplingParams { min_p: 1.0, ..hot(0) }, vec![3]);
    // Top-p is taken of what top-k leaves: 3 alone has 0.73 of {3, 5}.
    check(SamplingParams { top_k: 2, top_p: 0.7, ..hot(0) }, vec![3]);
}

#[test]
fn a_wide_nucleus_is_found_too() {
    let logits: Vec<f32> = (0..5000).map(|i| (i % 7) as f32 * 1e-3).collect();
    let params = SamplingParams { top_p: 0.999, ..hot(0) };
    let ids: Vec<usize> =
        (0..50).map(|i| draw::draw(Isa::PORTABLE, &logits, 6e-3, &params, f64::from(i) / 50.0)).collect();
    assert!(ids.iter().any(|id| logits[*id] == 0.0) && ids.iter().any(|id| logits[*id] == 6e-3));
    assert_eq!(draw::draw(Isa::PORTABLE, &logits, 6e-3, &params, 0.0), 6, "the first of the best");
}

/// The token that `uniform` picks, with the vocabulary sorted. `weights` are those of the tokens.
fn drawn_of_sorted(weights: &[f32], params: &SamplingParams, uniform: f64) -> usize {
    let mut tokens: Vec<(f32, usize)> = weights.iter().copied().zip(0..).collect();
    tokens.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let weight = |(weight, _): &(f32, usize)| draw::rounded(*weight);
    tokens.retain(|token| weight(token) > 0.0);
    tokens.truncate(if params.top_k > 0 { params.top_k as usize } else { usize::MAX });
    let upto = |count: usize| tokens[..count].iter().map(weight).sum::<f64>();
    let total = if params.top_k > 0 && (params.top_k as usize) < weights.len() {
        upto(tokens.len())
    } else {
        draw::total(weights)
    };
    let goal = f64::from(params.top_p) * total;
    tokens.truncate((1..tokens.len()).find(|count| upto(*count) >= goal).unwrap_or(tokens.len()));
    let goal = uniform * tokens.iter().map(weight).sum::<f64>();
    let picked = (1..tokens.len()).find(|count| tokens[..*count].iter().map(weight).sum::<f64>() > goal);
    tokens[picked.unwrap_or(tokens.len()) - 1].1
}

/// Flat or steep, in many values or few, with equal ones: the tokens of a sorted vocabulary.
#[test]
fn a_draw_is_that_of_a_sorted_vocabulary() {
    let of = |case: u64, what: u32, count: usize| (random::uniform(case, what, 0) * count as f64) as usize;
    for case in 0..2000 {
        let (size, values) = (1 + of(case, 0, 400), 1 + of(case, 1, 1000));
        let steepness = [1e-4, 1e-2, 0.1, 1.0, 40.0][of(case, 2, 5)];
        let score = |id: u32| (random::uniform(case, 3, id) * values as f64).floor() as f32 / values as f32;
        let scores: Vec<f32> = (0..size as u32).map(|id| score(id) * steepness).collect();
        let params = SamplingParams {
            top_k: [0, 1, 5, 100][of(case, 4, 4)],
            top_p: [0.0, 0.3, 0.9, 0.999, 0.99999][of(case, 5, 5)],
            min_p: [0.0, 0.01][of(case, 6, 2)],
            ..hot(0)
        };
        let max = scores.iter().copied().fold(f32::MIN, f32::max);
        let mut weights = Vec::new();
        kernels::softmax_weights(Isa::PORTABLE, &scores, max, 1.0, params.min_p, &mut weights);
        for draw in 0..10 {
            let uniform = random::uniform(case, 7, draw) * f64::from(draw > 0);
            let found = draw::draw(Isa::PORTABLE, &scores, max, &params, uniform);
            assert_eq!(found, drawn_of_sorted(&weights, &params, uniform), "case {case}, {params:?}");
        }
    }
}

#[test]
fn the_same_seed_choice_and_position_draw_the_same() {
    let draw = |seed, choice, output: &[TokenId]| {
        let request = SampleRequest { params: &hot(seed), choice, prompt: &[1], output, constraint: None };
        (0..40)
            .map(|i| sampler().sample(&LOGITS.map(|l| l * (1.0 + i as f32 / 100.0)), &request).unwrap().unwrap().id)
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(5, 0, &[2]), draw(5, 0, &[4]));
    let tokens: Vec<TokenId> = (0..60).map(|i| sample(&hot(5), &[1], &vec![0; i]).id).collect();
    assert!(tokens.iter().any(|id| *id != tokens[0]), "positions differ");
    let choices: Vec<TokenId> = (0..60).map(|choice| draw(5, choice, &[])[0]).collect();
    assert!(choices.iter().any(|id| *id != choices[0]), "choices differ");
}

#[test]
fn choices_end_where_they_should() {
    use FinishReason::{Length, Stop};
    let eos = |params: SamplingParams| SamplingParams { logit_bias: vec![(EOS, 100.0)], ..params };
    let check = |params: SamplingParams, prompt: usize, output: usize, id: TokenId, finish: Option<FinishReason>| {
        let token = sample(&params, &vec![1; prompt], &vec![1; output]);
        assert_eq!((token.id, token.finish, token.position), (id, finish, output as u32), "{params:?}");
    };
    check(greedy(), 1, 0, 3, None);
    check(eos(greedy()), 1, 0, EOS, Some(Stop));
    check(eos(SamplingParams { ignore_eos: true, ..greedy() }), 1, 0, EOS, None);
    check(SamplingParams { stop_token_ids: vec![3], ..greedy() }, 1, 0, 3, Some(Stop));
    check(SamplingParams { stop_token_ids: vec![3], ignore_eos: true, ..greedy() }, 1, 0, 3, Some(Stop));
    check(SamplingParams { max_tokens: 3, ..greedy() }, 1, 1, 3, None);
    check(SamplingParams { max_tokens: 3, ..greedy() }, 1, 2, 3, Some(Length));
    check(SamplingParams { max_tokens: 500, ..greedy() }, 90, 8, 3, None);
    check(SamplingParams { max_tokens: 500, ..greedy() }, 90, 9, 3, Some(Length));
    // Too early to end: EOS and stop tokens are out of reach, unless EOS is a token like any other.
    check(eos(SamplingParams { min_tokens: 2, ..greedy() }), 1, 1, 3, None);
    check(eos(SamplingParams { min_tokens: 2, ..greedy() }), 1, 2, EOS, Some(Stop));
    check(SamplingParams { min_tokens: 2, stop_token_ids: vec![3], ..greedy() }, 1, 1, 5, None);
    check(eos(SamplingParams { min_tokens: 2, ignore_eos: true, ..greedy() }), 1, 1, EOS, None);
}

#[test]
fn forbidden_tokens_are_out_of_reach() {
    let bad = |words: &[&[TokenId]]| words.iter().map(|word| word.to_vec()).collect::<Vec<_>>();
    let only = |ids: &[TokenId], params: SamplingParams| SamplingParams { allowed_token_ids: ids.to_vec(), ..params };
    let check = |params: SamplingParams, output: &[TokenId], expected: TokenId| {
        assert_eq!(sample(&params, &[3], output).id, expected, "{params:?} {output:?}");
    };
    check(only(&[4, 0, 99], greedy()), &[], 0);
    check(only(&[4], SamplingParams { logit_bias: vec![(3, 100.0)], ..greedy() }), &[], 4);
    check(SamplingParams { bad_words: bad(&[&[3]]), ..greedy() }, &[], 5);
    // A word of several tokens is in the way only where the output (not the prompt) already has its beginning.
    let word = SamplingParams { bad_words: bad(&[&[3, 3], &[1, 2, 3]]), ..greedy() };
    check(word.clone(), &[], 3);
    check(word.clone(), &[2], 3);
    check(word.clone(), &[3], 5);
    check(word, &[0, 1, 2], 5);
    // What would leave nothing gives way; the list of allowed tokens does not.
    check(only(&[3, 5], SamplingParams { bad_words: bad(&[&[3], &[5]]), ..greedy() }), &[], 3);
    check(only(&[EOS], SamplingParams { min_tokens: 5, ..greedy() }), &[], EOS);
    assert!(
        shares(&only(&[1, 2], hot(0))).iter().enumerate().all(|(id, share)| (*share > 0.0) == (id == 1 || id == 2))
    );
}

#[test]
fn what_is_not_a_number_is_refused() {
    let request = SampleRequest { params: &greedy(), choice: 0, prompt: &[1], output: &[], constraint: None };
    let one_bad = std::array::from_fn(|i| if i == 4 { f32::NAN } else { LOGITS[i] });
    for bad in [[f32::NAN; 8], [f32::INFINITY; 8], [f32::NEG_INFINITY; 8], one_bad] {
        assert_eq!(sampler().sample(&bad, &request), Err(NotANumber), "{bad:?}");
    }
}

#[test]
fn the_largest_are_found_in_order() {
    assert_eq!(draw::largest(&LOGITS, 3), [3, 5, 0]);
    assert_eq!(draw::largest(&LOGITS, 0), [0usize; 0]);
    assert_eq!(draw::largest(&LOGITS, 20), [3, 5, 0, 2, 6, 1, 4, 7]);
}

/// Allows these tokens, and the end or not.
#[derive(Debug)]
struct Fixed(&'static [TokenId], bool);

impl crate::Constraint for Fixed {
    fn next(&self, _output: &[TokenId]) -> TokenSet {
        TokenSet::new(self.0.to_vec(), self.1)
    }
}

#[test]
fn a_constraint_leaves_only_what_it_allows_and_ends_where_it_may() {
    use FinishReason::Stop;
    let check = |params: SamplingParams, allowed, end, expected: Option<(TokenId, Option<FinishReason>)>| {
        let constraint = Fixed(allowed, end);
        for (seed, temperature) in [(0, 0.0), (1, 1.0), (2, 2.0)] {
            let params = SamplingParams { temperature, seed, ..params.clone() };
            let constraint = Some(&constraint as &dyn crate::Constraint);
            let request = SampleRequest { params: &params, choice: 0, prompt: &[1], output: &[0], constraint };
            let found = sampler().sample(&LOGITS, &request).unwrap().map(|token| (token.id, token.finish));
            assert_eq!(found, expected, "{params:?} {allowed:?} {end}");
        }
    };
    let end_bias = SamplingParams { logit_bias: vec![(EOS, 100.0)], ..greedy() };
    check(greedy(), &[4], false, Some((4, None)));
    check(SamplingParams { logit_bias: vec![(3, 100.0)], ..greedy() }, &[4], false, Some((4, None)));
    check(greedy(), &[], true, Some((EOS, Some(Stop))));
    check(end_bias.clone(), &[4], true, Some((EOS, Some(Stop))));
    check(end_bias.clone(), &[4, EOS], false, Some((4, None)));
    // What would go on does so, but a text that is complete ends.
    let longer = [
        SamplingParams { ignore_eos: true, ..end_bias.clone() },
        SamplingParams { min_tokens: 5, stop_token_ids: vec![3], ..end_bias },
    ];
    for params in longer {
        check(params.clone(), &[4, 200], true, Some((4, None)));
        check(params, &[], true, Some((EOS, Some(Stop))));
    }
    let stops = SamplingParams { min_tokens: 5, stop_token_ids: vec![3], ..greedy() };
    check(stops.clone(), &[3, 4], false, Some((4, None)));
    check(stops, &[3], false, Some((3, Some(Stop))));
    let only = SamplingParams { allowed_token_ids: vec![4, 5], bad_words: vec![vec![5]], ..greedy() };
    check(only.clone(), &[3, 4, 5], false, Some((4, None)));
    check(only.clone(), &[3], true, Some((EOS, Some(Stop))));
    check(only, &[3], false, None);
    check(greedy(), &[], false, None);
    check(greedy(), &[200], false, None);
}
