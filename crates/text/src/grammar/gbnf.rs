//! GBNF, the EBNF with `::=` that llama.cpp and xgrammar read, put into the words of Lark.
//!
//! A rule that leads to no recursion becomes a terminal: one automaton, which is fast over a large vocabulary and matches exactly what
//! the rule says. Between terminals the longest match wins, as with any lexer.

use std::collections::{HashMap, HashSet};
use std::iter::Peekable;
use std::str::Chars;

use super::GrammarError;
use super::compile::quoted;

/// Rules of one grammar.
const RULES_MAX: usize = 1024;

#[derive(Debug, PartialEq)]
enum Token {
    Name(String),
    Define,
    /// A piece that Lark takes as it is.
    Piece(String),
}

struct Rule {
    name: String,
    body: Vec<Token>,
}

/// The grammar whose first rule is `root`, in the Lark notation.
pub(super) fn to_lark(text: &str) -> Result<String, GrammarError> {
    let rules = rules(tokens(text)?)?;
    let names: HashMap<&str, usize> = rules.iter().enumerate().map(|(at, rule)| (rule.name.as_str(), at)).collect();
    if names.len() < rules.len() {
        return Err(invalid("a rule is defined twice"));
    }
    let root = *names.get("root").ok_or_else(|| invalid("there is no rule root"))?;
    if let Some(name) = rules.iter().flat_map(Rule::references).find(|name| !names.contains_key(name)) {
        return Err(invalid(&format!("rule {name} is not defined")));
    }
    let terminals = terminals(&rules);
    let word = |at: usize| match terminals.contains(rules[at].name.as_str()) {
        true => format!("T{at}"),
        false => format!("r{at}"),
    };
    let mut lark = format!("start: {}\n", word(root));
    for (at, rule) in rules.iter().enumerate() {
        let words = rule.body.iter().map(|token| match token {
            Token::Name(name) => names.get(name.as_str()).map(|at| word(*at)).unwrap_or_default(),
            Token::Piece(piece) => piece.clone(),
            Token::Define => String::new(),
        });
        lark += &format!("{}: {}\n", word(at), words.collect::<Vec<_>>().join(" "));
    }
    Ok(lark)
}

impl Rule {
    fn references(&self) -> impl Iterator<Item = &str> {
        self.body.iter().filter_map(|token| match token {
            Token::Name(name) => Some(name.as_str()),
            _ => None,
        })
    }
}

/// Rules from which no recursion is reached.
fn terminals(rules: &[Rule]) -> HashSet<&str> {
    let mut found = HashSet::new();
    loop {
        let before = found.len();
        for rule in rules {
            if rule.references().all(|name| found.contains(name)) {
                found.insert(rule.name.as_str());
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// Cuts the tokens before every name that is followed by `::=`.
fn rules(tokens: Vec<Token>) -> Result<Vec<Rule>, GrammarError> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            Token::Name(name) if tokens.next_if_eq(&Token::Define).is_some() => {
                rules.push(Rule { name, body: Vec::new() });
            }
            Token::Define => return Err(invalid("::= must follow a rule's name")),
            token => match rules.last_mut() {
                Some(rule) => rule.body.push(token),
                None => return Err(invalid("it must begin with a rule: name ::= ...")),
            },
        }
        if rules.len() > RULES_MAX {
            return Err(invalid(&format!("more than the {RULES_MAX} rules allowed")));
        }
    }
    Ok(rules)
}

fn tokens(text: &str) -> Result<Vec<Token>, GrammarError> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '#' => drop(chars.by_ref().find(|c| *c == '\n')),
            ':' if chars.next() == Some(':') && chars.next() == Some('=') => tokens.push(Token::Define),
            '"' => tokens.push(Token::Piece(quoted(&literal(&mut chars)?))),
            '[' => tokens.push(Token::Piece(class(&mut chars)?)),
            '.' => tokens.push(Token::Piece(r"/(.|\n)/".to_owned())),
            '|' | '(' | ')' | '*' | '+' | '?' => tokens.push(Token::Piece(c.to_string())),
            '{' => {
                let count: String = chars.by_ref().take_while(|c| *c != '}').filter(|c| !c.is_whitespace()).collect();
                if !count.chars().all(|c| c.is_ascii_digit() || c == ',') {
                    return Err(invalid("a repetition is {count} or {least,most}"));
                }
                tokens.push(Token::Piece(format!("{{{count}}}")));
            }
            c if c.is_alphanumeric() || "_-".contains(c) => {
                let mut name = c.to_string();
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || "_-".contains(*c)) {
                    name.push(c);
                }
                tokens.push(Token::Name(name));
            }
            other => return Err(invalid(&format!("{other:?} has no meaning outside of quotes"))),
        }
    }
    Ok(tokens)
}

/// A string after its opening quote.
fn literal(chars: &mut Peekable<Chars<'_>>) -> Result<String, GrammarError> {
    let mut text = String::new();
    loop {
        match character(chars)? {
            ('"', false) => return Ok(text),
            (c, _) => text.push(c),
        }
    }
}

/// A class after its opening bracket, as a regular expression. Every character is written as its number, so none has a meaning.
fn class(chars: &mut Peekable<Chars<'_>>) -> Result<String, GrammarError> {
    let negated = if chars.next_if_eq(&'^').is_some() { "^" } else { "" };
    let mut ranges = String::new();
    loop {
        match character(chars)? {
            (']', false) if ranges.is_empty() => return Err(invalid("an empty character class")),
            (']', false) => return Ok(format!("/[{negated}{ranges}]/")),
            ('-', false) if !ranges.is_empty() && chars.peek() != Some(&']') => ranges.push('-'),
            (c, _) => ranges += &format!("\\u{{{:x}}}", u32::from(c)),
        }
    }
}

/// The next character, and whether it was escaped.
fn character(chars: &mut Peekable<Chars<'_>>) -> Result<(char, bool), GrammarError> {
    let open = || invalid("a quote or bracket is not closed");
    let c = chars.next().ok_or_else(open)?;
    if c != '\\' {
        return Ok((c, false));
    }
    let escaped = match chars.next().ok_or_else(open)? {
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'x' => number(chars, 2)?,
        'u' => number(chars, 4)?,
        'U' => number(chars, 8)?,
        other => other,
    };
    Ok((escaped, true))
}

fn number(chars: &mut Peekable<Chars<'_>>, digits: usize) -> Result<char, GrammarError> {
    let digits: String = chars.take(digits).collect();
    let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
    code.ok_or_else(|| invalid(&format!("{digits:?} is no character's number")))
}

fn invalid(reason: &str) -> GrammarError {
    GrammarError::Invalid(reason.to_owned())
}
