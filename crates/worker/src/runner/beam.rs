//! Beam search as a pure state machine: candidates of every live sequence in, the next live sequences out.
//!
//! The rule is vLLM 0.6's. Of all continuations the 2 x width with the highest summed logprob count; those that end go to the finished
//! ones, of which the best `width` are kept; of the others the best `width` live on. A sequence's score is its summed logprob divided by
//! its length (prompt included, EOS not) to the power of the length penalty.

use types::{BeamParams, EarlyStopping, FinishReason, GenerateSpec, SampledToken, TokenId};

/// Tokens that may follow a sequence, with their logprobs, best first.
pub(super) type Candidates = Vec<(TokenId, f32)>;

/// See the module's head.
pub(super) struct BeamSearch {
    params: BeamParams,
    rules: Rules,
    /// Every token that was kept once, linked to the one before it.
    nodes: Vec<Node>,
    live: Vec<Hypothesis>,
    /// Best first, at most `width`.
    finished: Vec<Hypothesis>,
}

/// What the search must know of its request and the model.
struct Rules {
    choices: std::ops::Range<u32>,
    prompt_len: usize,
    /// Most tokens of an output.
    output_max: usize,
    /// Not counted in a sequence's length.
    eos: Vec<TokenId>,
    /// Tokens that end a sequence.
    ends: Vec<TokenId>,
    /// Alternatives to report with each token.
    alternatives: usize,
}

struct Node {
    before: Option<usize>,
    id: TokenId,
    logprob: f32,
    top: Candidates,
}

#[derive(Clone, Copy)]
struct Hypothesis {
    /// `None` before the first token.
    last: Option<usize>,
    output_len: usize,
    sum: f64,
    finish: Option<FinishReason>,
    ends_with_eos: bool,
}

/// What follows a step.
pub(super) enum Next {
    /// The new live sequences, in order.
    Live(Vec<Child>),
    /// The search is over: each choice's tokens, best first.
    Over(Vec<Vec<SampledToken>>),
}

/// A live sequence: the one that was `parent` before, and one token.
pub(super) struct Child {
    pub(super) parent: usize,
    pub(super) token: TokenId,
}

impl BeamSearch {
    /// A search for `spec`'s choices, which has no output yet. `None` if it asks for draws.
    pub(super) fn new(spec: &GenerateSpec, eos: &[TokenId], max_model_len: u32) -> Option<Self> {
        let (sampling, prompt_len) = (&spec.sampling, spec.prompt.len());
        let eos = if sampling.ignore_eos { Vec::new() } else { eos.to_vec() };
        let rules = Rules {
            choices: spec.choices.clone(),
            prompt_len,
            output_max: (sampling.max_tokens as usize).min((max_model_len as usize).saturating_sub(prompt_len)),
            ends: [&eos[..], &sampling.stop_token_ids].concat(),
            eos,
            alternatives: sampling.logprobs.unwrap_or(0) as usize,
        };
        let root = Hypothesis { last: None, output_len: 0, sum: 0.0, finish: None, ends_with_eos: false };
        let (nodes, finished) = (Vec::new(), Vec::new());
        Some(Self { params: sampling.beam?, rules, nodes, live: vec![root], finished })
    }

    /// Takes the candidates of every live sequence, in their order.
    pub(super) fn advance(&mut self, candidates: &[Candidates]) -> Next {
        let width = self.params.width as usize;
        let grown = self.grow(candidates, 2 * width);
        let (ended, mut running): (Vec<_>, Vec<_>) = grown.into_iter().partition(|(_, grown)| grown.finish.is_some());
        self.finished.extend(ended.into_iter().map(|(_, ended)| ended));
        let mut finished = std::mem::take(&mut self.finished);
        finished.sort_by(|one, other| self.score(other).total_cmp(&self.score(one)));
        let full = finished.len() >= width;
        finished.truncate(width);
        self.finished = finished;
        let over = match (running.first(), self.finished.last()) {
            (Some((_, best)), Some(worst)) => full && self.score(worst) >= self.reach(best),
            (running, _) => running.is_none(),
        };
        if over {
            return Next::Over(self.answers());
        }
        running.truncate(width);
        self.live = running.iter().map(|(_, live)| *live).collect();
        Next::Live(running.into_iter().map(|(parent, live)| self.child(parent, &live)).collect())
    }

    fn child(&self, parent: usize, live: &Hypothesis) -> Child {
        let node = live.last.and_then(|last| self.nodes.get(last));
        Child { parent, token: node.map_or(0, |node| node.id) }
    }

    /// The `count` continuations with the highest sum, best first; equal ones by parent, then by rank.
    fn grow(&mut self, candidates: &[Candidates], count: usize) -> Vec<(usize, Hypothesis)> {
        let of_parent = |(parent, (live, candidates)): (usize, (&Hypothesis, &Candidates))| {
            let sum = live.sum;
            let grown = candidates.iter().map(move |&(id, logprob)| (parent, id, logprob, sum + f64::from(logprob)));
            grown.collect::<Vec<_>>()
        };
        let mut all: Vec<_> = self.live.iter().zip(candidates).enumerate().flat_map(of_parent).collect();
        all.sort_by(|one, other| other.3.total_cmp(&one.3));
        all.truncate(count);
        let mut grown = Vec::with_capacity(all.len());
        for (parent, id, logprob, sum) in all {
            let before = self.live.get(parent).copied();
            let top = candidates.get(parent).map_or(&[][..], |of_parent| of_parent);
            let top = top.iter().take(self.rules.alternatives).copied().collect();
            let (before, len) = before.map_or((None, 0), |live| (live.last, live.output_len));
            self.nodes.push(Node { before, id, logprob, top });
            let last = Some(self.nodes.len() - 1);
            let (finish, ends_with_eos) = (self.rules.finish(id, len + 1), self.rules.eos.contains(&id));
            grown.push((parent, Hypothesis { last, output_len: len + 1, sum, finish, ends_with_eos }));
        }
        grown
    }

    fn score(&self, of: &Hypothesis) -> f64 {
        let len = self.rules.prompt_len + of.output_len - usize::from(of.ends_with_eos);
        self.score_at(of, len)
    }

    fn score_at(&self, of: &Hypothesis, len: usize) -> f64 {
        of.sum / (len.max(1) as f64).powf(f64::from(self.params.length_penalty))
    }

    /// The best score that a running sequence is taken to be able to reach.
    fn reach(&self, of: &Hypothesis) -> f64 {
        match self.params.early_stopping {
            EarlyStopping::Yes => f64::NEG_INFINITY,
            EarlyStopping::Never if self.params.length_penalty > 0.0 => {
                self.score_at(of, self.rules.prompt_len + self.rules.output_max)
            }
            EarlyStopping::No | EarlyStopping::Never => self.score(of),
        }
    }

    /// The best sequences. Where fewer were found than choices were asked for, the last one stands for the rest.
    fn answers(&self) -> Vec<Vec<SampledToken>> {
        let last = self.finished.len().saturating_sub(1);
        let best = |at: usize| self.finished.get(at.min(last));
        let choices = self.rules.choices.clone().enumerate();
        choices.filter_map(|(at, choice)| best(at).map(|found| self.tokens(found, choice))).collect()
    }

    fn tokens(&self, of: &Hypothesis, choice: u32) -> Vec<SampledToken> {
        let mut tokens = Vec::with_capacity(of.output_len);
        let mut at = of.last;
        while let Some(node) = at.and_then(|at| self.nodes.get(at)) {
            let (id, logprob, top) = (node.id, node.logprob, node.top.clone());
            tokens.push(SampledToken { choice, id, position: 0, logprob, top, finish: None });
            at = node.before;
        }
        tokens.reverse();
        for (token, position) in tokens.iter_mut().zip(0..) {
            token.position = position;
        }
        if let Some(last) = tokens.last_mut() {
            last.finish = of.finish;
        }
        tokens
    }
}

impl Rules {
    fn finish(&self, id: TokenId, output_len: usize) -> Option<FinishReason> {
        match self.ends.contains(&id) {
            true => Some(FinishReason::Stop),
            false => (output_len >= self.output_max).then_some(FinishReason::Length),
        }
    }
}
