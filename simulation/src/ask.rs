//! What a client asks for, what it must get, and what it got.

use std::time::Duration;

use serde_json::{Value, json};
use types::{FinishReason, GenerateSpec, SamplingParams, TokenId};
use worker::fake::{oracle, oracle_within};

use crate::model::{Form, Model};

/// One request of one client.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// When it is sent.
    pub(crate) at: Duration,
    pub(crate) prompt: Vec<TokenId>,
    /// What a chat says, of which the prompt is made; otherwise the prompt's tokens are sent.
    pub(crate) message: Option<String>,
    pub(crate) presence_penalty: f32,
    pub(crate) logprobs: bool,
    pub(crate) choices: u32,
    pub(crate) max_tokens: u32,
    pub(crate) seed: u64,
    pub(crate) stop: Option<String>,
    /// What the text is held to.
    pub(crate) form: Option<Form>,
    pub(crate) stream: bool,
    /// When the client leaves.
    pub(crate) leaves: Option<Leave>,
    /// Sent when all faults were over: it must succeed.
    pub(crate) calm: bool,
}

/// When a client leaves that does not wait for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leave {
    After(Duration),
    /// In the middle of the hand-over: D has a piece of its KV.
    Landing,
}

/// What one choice is, or what is seen of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenId>,
    /// In hundredths, if they were asked for.
    pub(crate) logprobs: Vec<i64>,
    pub(crate) finish: Option<String>,
}

/// What a client saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) status: Option<u16>,
    pub(crate) choices: Vec<Text>,
    pub(crate) usage: Option<(u64, u64)>,
    /// Error events, or the body of an error answer.
    pub(crate) errors: Vec<String>,
    /// `[DONE]`s, or whole answers.
    pub(crate) ends: u32,
    /// The connection broke, or could not be made.
    pub(crate) broken: Option<String>,
    /// When it was over for the client.
    pub(crate) over: Option<Duration>,
}

impl Ask {
    pub(crate) fn path(&self) -> &'static str {
        if self.message.is_some() { "/v1/chat/completions" } else { "/v1/completions" }
    }

    pub(crate) fn body(&self) -> Value {
        let mut body = json!({
            "model": crate::model::NAME, "n": self.choices, "max_tokens": self.max_tokens, "seed": self.seed,
            "presence_penalty": self.presence_penalty, "stream": self.stream, "return_token_ids": true,
        });
        match &self.message {
            Some(message) => body["messages"] = json!([{"role": "user", "content": message}]),
            None => body["prompt"] = json!(self.prompt),
        }
        if self.logprobs {
            body["logprobs"] = if self.message.is_some() { json!(true) } else { json!(1) };
        }
        if self.stream {
            body["stream_options"] = json!({"include_usage": true});
        }
        if let Some(stop) = &self.stop {
            body["stop"] = json!([stop]);
        }
        if let Some((field, value)) = self.form.map(Form::field) {
            body[field] = value;
        }
        body
    }

    pub(crate) fn spec(&self) -> GenerateSpec {
        GenerateSpec {
            prompt: self.prompt.as_slice().into(),
            output: Vec::new(),
            choices: 0..self.choices,
            sampling: SamplingParams {
                max_tokens: self.max_tokens,
                seed: self.seed,
                presence_penalty: self.presence_penalty,
                ..SamplingParams::default()
            },
            cache_salt: Vec::new(),
        }
    }

    /// What an undisturbed cluster answers.
    pub(crate) fn expected(&self, model: &Model) -> Vec<Text> {
        let choices = match self.form {
            Some(form) => oracle_within(&self.spec(), &model.matcher(form)),
            None => oracle(&self.spec()),
        };
        choices.iter().map(|tokens| self.expected_choice(model, tokens)).collect()
    }

    fn expected_choice(&self, Model { tokenizer, .. }: &Model, sampled: &[types::SampledToken]) -> Text {
        let tokens: Vec<TokenId> = sampled.iter().map(|token| token.id).collect();
        let ended = sampled.last().and_then(|token| token.finish);
        let shown = if ended == Some(FinishReason::Stop) { &tokens[..tokens.len() - 1] } else { &tokens[..] };
        let whole = tokenizer.decode(shown, true);
        let hit = self.stop.as_ref().and_then(|stop| whole.find(stop.as_str()).map(|at| (at, stop)));
        let logprobs = |count: usize| match self.logprobs {
            true => sampled[..count].iter().map(|token| hundredths(token.logprob.into())).collect(),
            false => Vec::new(),
        };
        let Some((at, stop)) = hit else {
            let finish = if ended == Some(FinishReason::Stop) { "stop" } else { "length" };
            return Text { text: whole, logprobs: logprobs(tokens.len()), tokens, finish: Some(finish.into()) };
        };
        // The first token after which the stop string is certain.
        let certain = |count: &usize| {
            let so_far = tokenizer.decode(&shown[..*count], true);
            so_far.get(..at + stop.len()).is_some_and(|text| text.ends_with(stop.as_str()))
        };
        let count = (1..=shown.len()).find(certain).unwrap_or(shown.len());
        Text {
            text: whole[..at].to_owned(),
            tokens: tokens[..count].to_vec(),
            logprobs: logprobs(count),
            finish: Some("stop".into()),
        }
    }
}

/// As a number that survives being written as JSON.
pub(crate) fn hundredths(logprob: f64) -> i64 {
    (logprob * 100.0).round() as i64
}
