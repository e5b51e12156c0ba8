//! The two logprobs blocks, made from one neutral list of tokens.

use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

/// Stands for minus infinity, which JSON lacks.
const LOGPROB_MIN: f32 = -9999.0;

/// A token with its probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenChance {
    pub token: String,
    pub logprob: f32,
    /// The token's own bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
}

/// A sampled token and its most probable alternatives, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub sampled: TokenChance,
    pub top: Vec<TokenChance>,
}

/// `logprobs` of a chat choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatLogprobs {
    pub content: Vec<ChatLogprob>,
}

/// One token of [`ChatLogprobs`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatLogprob {
    #[serde(flatten)]
    pub sampled: TokenChance,
    pub top_logprobs: Vec<TokenChance>,
}

/// `logprobs` of a completion choice: four lists of equal length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    pub text_offset: Vec<usize>,
    pub token_logprobs: Vec<f32>,
    pub tokens: Vec<String>,
    pub top_logprobs: Vec<TopMap>,
}

/// Token text to logprob, in order; the sampled token is always in it.
#[derive(Clone, Debug, PartialEq)]
pub struct TopMap(Vec<(String, f32)>);

impl ChatLogprobs {
    pub fn new(tokens: &[TokenLogprob]) -> Self {
        let content = tokens.iter().map(|token| ChatLogprob {
            sampled: finite(&token.sampled),
            top_logprobs: token.top.iter().map(finite).collect(),
        });
        Self { content: content.collect() }
    }
}

impl CompletionLogprobs {
    /// `text_offset`: characters of the choice's text before the first of these tokens.
    pub fn new(tokens: &[TokenLogprob], text_offset: usize) -> Self {
        let mut offset = text_offset;
        let offsets = tokens.iter().map(|token| {
            let start = offset;
            offset += String::from_utf8_lossy(&token.sampled.bytes).chars().count();
            start
        });
        Self {
            text_offset: offsets.collect(),
            token_logprobs: tokens.iter().map(|token| at_least_min(token.sampled.logprob)).collect(),
            tokens: tokens.iter().map(|token| token.sampled.token.clone()).collect(),
            top_logprobs: tokens.iter().map(TopMap::new).collect(),
        }
    }
}

impl TopMap {
    /// Two tokens may have the same text; the more probable one keeps the key.
    fn new(token: &TokenLogprob) -> Self {
        let mut entries: Vec<(String, f32)> = Vec::with_capacity(token.top.len() + 1);
        for chance in token.top.iter().chain([&token.sampled]) {
            if entries.iter().all(|(text, _)| *text != chance.token) {
                entries.push((chance.token.clone(), at_least_min(chance.logprob)));
            }
        }
        Self(entries)
    }
}

impl Serialize for TopMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

fn finite(chance: &TokenChance) -> TokenChance {
    TokenChance { logprob: at_least_min(chance.logprob), ..chance.clone() }
}

/// NaN becomes the minimum too.
fn at_least_min(logprob: f32) -> f32 {
    logprob.max(LOGPROB_MIN)
}
