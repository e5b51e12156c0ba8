//! Prompts of a given size, each unlike any other from its first block on: text of made-up words, some of which come often and most
//! seldom, as in a language, or token ids of as many tokens.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// Words there are; the n-th most frequent is drawn in proportion to 1/n.
const WORDS: usize = 20_000;
/// Texts made in advance, of which every prompt is one behind a number of its own.
pub(super) const TEXTS: usize = 128;
/// Digits of that number, and a space.
const HEAD: usize = 9;

/// Writes texts.
#[derive(Debug)]
pub(super) struct Writer {
    words: Vec<String>,
    random: StdRng,
}

impl Writer {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        Self { words: (0..WORDS).map(|_| word(&mut random)).collect(), random }
    }

    /// A text of so many bytes.
    pub(super) fn text(&mut self, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes + 16);
        while text.len() < bytes {
            // Ranks whose logarithm is even: as many draws between 1 and 10 as between 10 and 100.
            let rank = (WORDS as f64).powf(self.random.random::<f64>()) as usize;
            text.push_str(&self.words[rank.min(WORDS) - 1]);
            text.push_str(match self.random.random_range(0..24) {
                0 => ". ",
                1 => ", ",
                2 => "\n",
                _ => " ",
            });
        }
        text.truncate(bytes);
        text
    }
}

/// Two letters to four syllables; one in fifty is a number.
fn word(random: &mut StdRng) -> String {
    if random.random_range(0..50) == 0 {
        return random.random_range(0..3000).to_string();
    }
    let mut letter = |of: &[u8]| char::from(of[random.random_range(0..of.len())]);
    let mut word = String::new();
    for _ in 0..1 + usize::from(letter(b"0111223") as u8 - b'0') {
        word.push(letter(b"tnshrdlcmwfgypbvk"));
        word.push(letter(b"eaoiu"));
        if letter(b"01") == '1' {
            word.push(letter(b"nrstldm"));
        }
    }
    word
}

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `GET /health`: what HTTP alone costs.
    Health,
    /// A completion of token ids.
    Ids,
    /// A completion of text.
    Text,
    /// A chat of one message.
    Chat,
}

impl Kind {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Health => "/health",
            Self::Ids | Self::Text => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
        }
    }
}

/// The requests of one kind and size, by number.
#[derive(Debug)]
pub(super) struct Bodies {
    pub(super) kind: Kind,
    /// What stands before and behind the prompt's number.
    parts: Vec<(String, String)>,
}

impl Bodies {
    /// `fields` are those beside the prompt.
    pub(super) fn new(kind: Kind, prompts: &[Value], fields: &Value) -> Self {
        Self { kind, parts: prompts.iter().map(|prompt| parts(kind, prompt, fields)).collect() }
    }

    /// Bodies of texts, each `bytes` long with its number.
    pub(super) fn texts(kind: Kind, writer: &mut Writer, count: usize, bytes: usize, fields: &Value) -> Self {
        let texts: Vec<Value> = (0..count).map(|_| writer.text(bytes.saturating_sub(HEAD)).into()).collect();
        Self::new(kind, &texts, fields)
    }

    /// The body of this request; no other of fewer than 10^8 begins alike.
    pub(super) fn body(&self, number: u64) -> String {
        let Some((before, behind)) = self.parts.get(number as usize % self.parts.len().max(1)) else {
            return String::new();
        };
        let head = match self.kind {
            // Low ids are plain bytes in most vocabularies.
            Kind::Health => String::new(),
            Kind::Ids => (0..HEAD - 1).map(|digit| format!("{},", 16 + (number >> (3 * digit)) % 8)).collect(),
            Kind::Text | Kind::Chat => format!("{:08} ", number % 100_000_000),
        };
        [before, head.as_str(), behind].concat()
    }
}

/// The JSON text cut where the prompt begins.
fn parts(kind: Kind, prompt: &Value, fields: &Value) -> (String, String) {
    let mut body = fields.clone();
    match kind {
        Kind::Health => return Default::default(),
        Kind::Ids | Kind::Text => body["prompt"] = prompt.clone(),
        Kind::Chat => body["messages"] = json!([{ "role": "user", "content": prompt }]),
    }
    let (text, prompt) = (body.to_string(), prompt.to_string());
    let at = text.find(&prompt).unwrap_or_default() + 1;
    (text[..at].to_owned(), text[at..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_their_size_and_repeat_with_the_seed() {
        let text = |seed| Writer::new(seed).text(1000);
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
        assert_eq!((text(1).len(), Writer::new(1).text(7).len()), (1000, 7));
    }

    #[test]
    fn some_words_come_often_and_most_seldom() {
        let text = Writer::new(1).text(1_000_000);
        let mut counts = std::collections::HashMap::new();
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
            *counts.entry(word).or_insert(0u32) += 1;
        }
        let most = counts.values().max().copied().unwrap_or_default();
        let total: u32 = counts.values().sum();
        assert!(counts.len() > 10_000 && (10..40).contains(&(total / most)), "{} {total} {most}", counts.len());
    }

    #[test]
    fn bodies_are_json_with_a_prompt_of_their_own() {
        let fields = json!({ "max_tokens": 2 });
        let parse = |bodies: &Bodies, number| serde_json::from_str::<Value>(&bodies.body(number)).unwrap();
        let texts = Bodies::texts(Kind::Text, &mut Writer::new(1), 2, 100, &fields);
        assert_eq!(parse(&texts, 0)["prompt"].as_str().unwrap().len(), 100);
        assert!(parse(&texts, 3)["prompt"].as_str().unwrap().starts_with("00000003 "));
        let chat = Bodies::new(Kind::Chat, &["hi".into()], &fields);
        assert_eq!(parse(&chat, 1)["messages"][0]["content"], "00000001 hi");
        let ids = Bodies::new(Kind::Ids, &[json!([5, 6])], &fields);
        assert_eq!(parse(&ids, 9)["prompt"], json!([17, 17, 16, 16, 16, 16, 16, 16, 5, 6]));
        assert_eq!(parse(&ids, 9)["max_tokens"], 2);
        assert_eq!(Bodies::new(Kind::Health, &[Value::Null], &fields).body(1), "");
    }
}
