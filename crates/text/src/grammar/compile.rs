//! From the client's words to an automaton, or to a sentence about what is wrong with them.

use llguidance::ParserFactory;
use llguidance::api::TopLevelGrammar;
use serde_json::Value;
use types::Grammar;

use super::{GrammarError, Matcher, gbnf, schema};

/// Of a message to the client.
const REASON_CHARS_MAX: usize = 300;

pub(super) fn compile(factory: &ParserFactory, grammar: &Grammar) -> Result<Matcher, GrammarError> {
    let parser = factory.create_parser(translate(grammar)?).map_err(|error| reason(&error))?;
    let end = factory.tok_env().eos_token();
    let matcher = Matcher::new(llguidance::Matcher::new(Ok(parser)), end);
    // Some grammars only show that nothing satisfies them, or that they are too large, when the first token is asked for.
    matcher.fork().next(&[])?;
    Ok(matcher)
}

fn translate(grammar: &Grammar) -> Result<TopLevelGrammar, GrammarError> {
    Ok(match grammar {
        Grammar::JsonObject => TopLevelGrammar::from_json_schema(schema::any_object()),
        Grammar::JsonSchema(text) => TopLevelGrammar::from_json_schema(schema::parse(text)?),
        Grammar::Regex(regex) => TopLevelGrammar::from_regex(anchored(regex)),
        Grammar::Choice(texts) => TopLevelGrammar::from_lark(alternatives(texts)),
        Grammar::Lark(text) if text.contains("::=") => TopLevelGrammar::from_lark(gbnf::to_lark(text)?),
        Grammar::Lark(text) => TopLevelGrammar::from_lark(text.to_string()),
    })
}

/// The whole text is matched anyway; anchors at the ends say the same and are not known below.
fn anchored(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(body) if !body.ends_with('\\') => body,
        _ => regex,
    }
}

fn alternatives(texts: &[std::sync::Arc<str>]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    // A terminal: one text may begin with another.
    format!("start: TEXT\nTEXT: {}", quoted.join(" | "))
}

/// A literal of the Lark notation, whose strings are those of JSON.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The compiler's words, without its inner state.
pub(super) fn reason(error: &anyhow::Error) -> GrammarError {
    let text = error.to_string();
    let text = text.split("\n<").next().unwrap_or_default();
    let lines: Vec<&str> = text.lines().take_while(|line| !is_excerpt(line)).collect();
    GrammarError::Invalid(match lines.join("\n").trim() {
        text if text.contains("NoExtension") => "no text satisfies it".to_owned(),
        text if text.starts_with("panic") => "it cannot be followed".to_owned(),
        text => shortened(text),
    })
}

/// A line of the source with its number in front, which the compiler shows below its words.
fn is_excerpt(line: &str) -> bool {
    let rest = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
    rest.starts_with(" | ") && rest.len() < line.trim_start().len()
}

/// The beginning, which names the place, and the end, which says what is wrong.
fn shortened(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= REASON_CHARS_MAX {
        return text.to_owned();
    }
    let half = REASON_CHARS_MAX / 2;
    let (start, end) = (&chars[..half], &chars[chars.len() - half..]);
    start.iter().chain(&[' ', '.', '.', '.', ' ']).chain(end).collect()
}
