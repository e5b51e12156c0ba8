//! What grammars cost: `cargo run --release -p text --example grammar_speed [MODEL_DIR]`.
//!
//! Follows texts token by token and prints the time of compiling, of forking and of each set of allowed tokens (taking the last token
//! included). Without a model directory it makes a byte-level vocabulary of 151,936 entries, the size of today's large ones.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use text::{Grammars, Tokenizer};
use types::{Grammar, TokenId};

/// Times that each text is followed, each from its start; of a token's times the best counts, so that a busy machine adds little.
const ROUNDS: usize = 20;

fn main() {
    let made = tempfile::tempdir().unwrap();
    let dir = std::env::args().nth(1).map_or_else(|| synthetic(made.path()), PathBuf::from);
    let tokenizer = Tokenizer::load(&dir).unwrap();
    let ids: HashMap<Vec<u8>, TokenId> =
        (0..tokenizer.vocab_size() as u32).map(|id| (tokenizer.token_bytes(id), id)).collect();
    let grammars = Grammars::new(tokenizer.clone());
    let start = Instant::now();
    grammars.compile(&Grammar::JsonObject).unwrap();
    println!("vocabulary {}, made ready in {:?}", tokenizer.vocab_size(), start.elapsed());
    println!(
        "{:<14}{:>8}{:>12}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "grammar", "tokens", "compile us", "fork us", "median us", "mean us", "p95 us", "max us"
    );
    for (name, grammar, text) in cases() {
        measure(&grammars, name, &grammar, &longest(&ids, text.as_bytes()));
    }
}

fn cases() -> Vec<(&'static str, Grammar, String)> {
    let schema = r#"{"type": "object", "properties": {
        "id": {"type": "integer", "minimum": 0}, "name": {"type": "string", "maxLength": 40}, "mail": {"type": "string", "format": "email"},
        "kind": {"enum": ["person", "company", "machine"]}, "since": {"type": "string", "format": "date"},
        "notes": {"type": "array", "items": {"type": "object", "properties": {"text": {"type": "string"}, "stars": {"type": "number"}}, "required": ["text"]}}},
        "required": ["id", "name", "kind", "notes"]}"#;
    let note =
        r#"{"text": "It was a dark and stormy night; the rain fell in torrents, except at intervals.", "stars": 4.5}"#;
    let person = format!(
        r#"{{"id": 271828, "name": "Edward Bulwer-Lytton", "mail": "edward@example.org", "kind": "person", "since": "1830-08-04", "notes": [{}]}}"#,
        [note; 6].join(", ")
    );
    let lark = "start: (sum \";\")+\nsum: term (/[+-]/ term)*\nterm: atom (/[*\\/]/ atom)*\natom: NUMBER | NAME | \"(\" sum \")\"\nNUMBER: /[0-9]+/\nNAME: /[a-z]+/";
    vec![
        ("json object", Grammar::JsonObject, person.clone()),
        ("json schema", Grammar::JsonSchema(schema.into()), person),
        (
            "regex",
            Grammar::Regex(r"(\d{4}-\d{2}-\d{2} [A-Z]+ [^\n]{5,200}\n)+".into()),
            "2026-11-21 WARN it was a dark and stormy night\n".repeat(10),
        ),
        (
            "choice",
            Grammar::Choice(["positive", "negative", "neither of the two"].map(Into::into).into()),
            "neither of the two".into(),
        ),
        ("lark", Grammar::Lark(lark.into()), "(alpha+12*beta)/(gamma-7);count*100+offset;".repeat(8)),
    ]
}

fn measure(grammars: &Grammars, name: &str, grammar: &Grammar, text: &[TokenId]) {
    let start = Instant::now();
    let matcher = grammars.compile(grammar).unwrap();
    let compile = start.elapsed();
    let (mut times, mut fork) = (vec![Duration::MAX; text.len() + 1], Duration::MAX);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut matcher = matcher.fork();
        fork = fork.min(start.elapsed());
        for (at, best) in times.iter_mut().enumerate() {
            let start = Instant::now();
            let set = matcher.next(&text[..at]).unwrap();
            *best = start.elapsed().min(*best);
            assert!(text.get(at).map_or(set.end, |id| set.contains(*id)), "{name}: token {at} is refused");
        }
    }
    times.sort_unstable();
    let micros = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e6);
    let (median, p95) = (times[times.len() / 2], times[times.len() * 95 / 100]);
    let mean = times.iter().sum::<Duration>() / times.len() as u32;
    let shown = [compile, fork, median, mean, p95, times[times.len() - 1]].map(micros);
    println!(
        "{name:<14}{:>8}{:>12}{:>10}{:>10}{:>10}{:>10}{:>10}",
        text.len(),
        shown[0],
        shown[1],
        shown[2],
        shown[3],
        shown[4],
        shown[5]
    );
}

/// The text cut into the longest tokens there are.
fn longest(ids: &HashMap<Vec<u8>, TokenId>, mut text: &[u8]) -> Vec<TokenId> {
    let mut tokens = Vec::new();
    while !text.is_empty() {
        let (len, id) = (1..=text.len().min(32)).rev().find_map(|len| Some((len, *ids.get(&text[..len])?))).unwrap();
        tokens.push(id);
        text = &text[len..];
    }
    tokens
}

/// A tokenizer file of 256 bytes, made-up words with and without a space, numbers, punctuation and wide characters.
fn synthetic(dir: &Path) -> PathBuf {
    let byte_char = |byte: u8| match u32::from(byte) {
        code @ 0x00..=0x20 => char::from_u32(0x100 + code),
        code @ 0x7f..=0xa0 => char::from_u32(0x121 + code - 0x7f),
        0xad => char::from_u32(0x143),
        code => char::from_u32(code),
    };
    let mapped = |text: &str| text.bytes().filter_map(byte_char).collect::<String>();
    let mut words: Vec<String> = (0..=255).filter_map(byte_char).map(String::from).collect();
    let mut random = StdRng::seed_from_u64(7);
    let syllables = [
        "a", "be", "con", "dar", "ed", "for", "ing", "ion", "er", "th", "st", "or", "my", "ni", "ght", "ra", "in",
        "tex", "na", "me",
    ];
    let marks = [
        "\", \"", "\": \"", "\": ", "{\"", "\"}", "\"]", ", ", "; ", "();\n", "\n    ", "\n\n", "  ", "->", "==",
        "...", "\": {\"", "\"},", "[{\"",
    ];
    words.extend(marks.iter().map(|mark| mapped(mark)));
    words.extend((0..1000).map(|number| number.to_string()).filter(|number| number.len() > 1));
    let mut seen: std::collections::HashSet<String> = words.iter().cloned().collect();
    while words.len() < 151_936 {
        let word = match random.random_range(0..20) {
            0 => (0..random.random_range(1..4))
                .filter_map(|_| char::from_u32(random.random_range(0x4e00..0x9fa5)))
                .collect(),
            1 => {
                marks[random.random_range(0..marks.len())].repeat(random.random_range(1..4))
                    + syllables[random.random_range(0..20)]
            }
            kind => {
                let word: String =
                    (0..random.random_range(1..6)).map(|_| syllables[random.random_range(0..20)]).collect();
                if kind < 12 { format!(" {word}") } else { word }
            }
        };
        let word = mapped(&word);
        if seen.insert(word.clone()) {
            words.push(word);
        }
    }
    let vocab: serde_json::Map<_, _> = words.into_iter().enumerate().map(|(id, word)| (word, id.into())).collect();
    let file = serde_json::json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] } });
    std::fs::write(dir.join("tokenizer.json"), file.to_string()).unwrap();
    dir.to_owned()
}
