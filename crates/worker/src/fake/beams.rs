//! Beam search in its plainest form, over any model of the next token: what the searched answers are compared with.

use types::{BeamParams, EarlyStopping, GenerateSpec, TokenId};

/// A whole output with its summed logprob.
type Output = (Vec<TokenId>, f64);

/// The outputs that a search for `spec` must find, best first. `next` gives the most probable tokens after some output, best first, at
/// least twice the width of them.
pub fn beams(
    spec: &GenerateSpec,
    beam: BeamParams,
    eos: &[TokenId],
    mut next: impl FnMut(&[TokenId]) -> Vec<(TokenId, f32)>,
) -> Vec<Vec<TokenId>> {
    let width = beam.width as usize;
    let is_eos = |token: &TokenId| !spec.sampling.ignore_eos && eos.contains(token);
    let score = |(output, sum): &Output| {
        let len = spec.prompt.len() + output.iter().filter(|token| !is_eos(token)).count();
        sum / (len as f64).powf(beam.length_penalty.into())
    };
    let best_first = |list: &mut Vec<Output>| list.sort_by(|a, b| score(b).total_cmp(&score(a)));
    let (mut live, mut done): (Vec<Output>, Vec<Output>) = (vec![(Vec::new(), 0.0)], Vec::new());
    loop {
        let mut grown: Vec<Output> = Vec::new();
        for (output, sum) in &live {
            for (token, logprob) in next(output).into_iter().take(2 * width) {
                grown.push(([&output[..], &[token]].concat(), sum + f64::from(logprob)));
            }
        }
        grown.sort_by(|a, b| b.1.total_cmp(&a.1));
        grown.truncate(2 * width);
        live.clear();
        for (output, sum) in grown {
            let last = output.last().expect("it has just grown");
            let stops = is_eos(last) || spec.sampling.stop_token_ids.contains(last);
            let list = if stops || output.len() >= spec.sampling.max_tokens as usize { &mut done } else { &mut live };
            list.push((output, sum));
        }
        best_first(&mut done);
        let enough = done.len() >= width;
        done.truncate(width);
        let hope = live.first().map(|best| match beam.early_stopping {
            EarlyStopping::Yes => f64::NEG_INFINITY,
            EarlyStopping::Never if beam.length_penalty > 0.0 => {
                let len = spec.prompt.len() + spec.sampling.max_tokens as usize;
                best.1 / (len as f64).powf(beam.length_penalty.into())
            }
            _ => score(best),
        });
        if hope.is_none_or(|hope| enough && score(&done[width - 1]) >= hope) {
            return done.into_iter().take(spec.choices.len()).map(|(output, _)| output).collect();
        }
        live.truncate(width);
    }
}
