//! The logprobs blocks of answers and prompts, made from neutral lists of tokens.

use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use types::TokenId;

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

/// A token of a prompt and how likely the model found it.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    pub id: TokenId,
    pub token: String,
    /// Characters that it adds to the prompt's text; none for a special token.
    pub chars: usize,
    /// `None` for the first token, which follows nothing.
    pub score: Option<PromptScore>,
}

/// Part of a [`PromptToken`].
#[derive(Clone, Debug, PartialEq)]
pub struct PromptScore {
    pub logprob: f32,
    /// 1 = the most probable of the vocabulary.
    pub rank: u32,
    /// Most probable alternatives, best first.
    pub top: Vec<(TokenId, TokenChance)>,
}

/// `prompt_logprobs` of a completion choice or a chat answer: null for the first token, then a map from token id for each.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptLogprobs(Vec<Option<RankMap>>);

/// Token id to logprob, rank and text; the prompt's own token is always in it.
#[derive(Clone, Debug, PartialEq)]
struct RankMap(Vec<(TokenId, Ranked)>);

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Ranked {
    logprob: f32,
    rank: u32,
    decoded_token: String,
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

/// `logprobs` of a completion choice: four lists of equal length. Only the first token of an echoed prompt has no logprob.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    pub text_offset: Vec<usize>,
    pub token_logprobs: Vec<Option<f32>>,
    pub tokens: Vec<String>,
    pub top_logprobs: Vec<Option<TopMap>>,
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
            token_logprobs: tokens.iter().map(|token| Some(at_least_min(token.sampled.logprob))).collect(),
            tokens: tokens.iter().map(|token| token.sampled.token.clone()).collect(),
            top_logprobs: tokens.iter().map(|token| Some(TopMap::new(token))).collect(),
        }
    }

    /// An echoed prompt, whose text has `chars` characters, with `top` alternatives per token.
    pub fn of_prompt(prompt: &[PromptToken], chars: usize, top: u32) -> Self {
        let mut offset = 0;
        let offsets = prompt.iter().map(|token| {
            let start = offset;
            offset = (offset + token.chars).min(chars);
            start
        });
        let scores = || prompt.iter().map(|token| token.score.as_ref().map(|score| (token, score)));
        let logprobs = scores().map(|scored| scored.map(|(_, score)| at_least_min(score.logprob)));
        let tops = scores().map(|scored| scored.map(|(token, score)| TopMap::of_prompt(token, score, top)));
        Self {
            text_offset: offsets.collect(),
            token_logprobs: logprobs.collect(),
            tokens: prompt.iter().map(|token| token.token.clone()).collect(),
            top_logprobs: tops.collect(),
        }
    }

    /// Appends those of the tokens that follow.
    pub fn then(mut self, later: Self) -> Self {
        self.text_offset.extend(later.text_offset);
        self.token_logprobs.extend(later.token_logprobs);
        self.tokens.extend(later.tokens);
        self.top_logprobs.extend(later.top_logprobs);
        self
    }
}

impl PromptLogprobs {
    /// With `top` alternatives per token.
    pub fn new(prompt: &[PromptToken], top: u32) -> Self {
        let map = |token: &PromptToken| {
            let score = token.score.as_ref()?;
            let best = score.top.iter().take(top as usize).zip(1..);
            let mut entries: Vec<_> =
                best.map(|((id, chance), rank)| (*id, ranked(chance.logprob, rank, &chance.token))).collect();
            if entries.iter().all(|(id, _)| *id != token.id) {
                entries.push((token.id, ranked(score.logprob, score.rank, &token.token)));
            }
            Some(RankMap(entries))
        };
        Self(prompt.iter().map(map).collect())
    }
}

fn ranked(logprob: f32, rank: u32, token: &str) -> Ranked {
    Ranked { logprob: at_least_min(logprob), rank, decoded_token: token.to_owned() }
}

impl Serialize for RankMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(id, ranked)| (id.to_string(), ranked)))
    }
}

impl TopMap {
    fn of_prompt(token: &PromptToken, score: &PromptScore, top: u32) -> Self {
        let best = score.top.iter().take(top as usize).map(|(_, chance)| (chance.token.as_str(), chance.logprob));
        Self::distinct(best.chain([(token.token.as_str(), score.logprob)]))
    }

    fn new(token: &TokenLogprob) -> Self {
        Self::distinct(token.top.iter().chain([&token.sampled]).map(|chance| (chance.token.as_str(), chance.logprob)))
    }

    /// Two tokens may have the same text; the first, more probable one keeps the key.
    fn distinct<'a>(chances: impl Iterator<Item = (&'a str, f32)>) -> Self {
        let mut entries: Vec<(String, f32)> = Vec::new();
        for (token, logprob) in chances {
            if entries.iter().all(|(text, _)| text != token) {
                entries.push((token.to_owned(), at_least_min(logprob)));
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
