//! Grammars over the demo model's vocabulary and over one of realistic size.

use std::path::Path;
use std::sync::LazyLock;

use types::{Grammar, TokenId};

use super::{GrammarError, Grammars, Matcher};
use crate::Tokenizer;

static TOKENIZER: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pdserve/model")).unwrap());
static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| Grammars::new(TOKENIZER.clone()));

fn schema(text: &str) -> Grammar {
    Grammar::JsonSchema(text.into())
}

/// Feeds a text token by token; how many of its bytes were allowed, and whether it may end there.
fn follow(matcher: &mut Matcher, text: &str) -> (usize, bool) {
    let ids = TOKENIZER.encode(text, false).unwrap();
    for at in 0..=ids.len() {
        let set = matcher.next(&ids[..at]).unwrap();
        match ids.get(at) {
            Some(id) if !set.contains(*id) => return (TOKENIZER.decode(&ids[..at], false).len(), set.end),
            Some(_) => {}
            None => return (text.len(), set.end),
        }
    }
    unreachable!("the loop ends with the text")
}

fn accepts(grammar: &Grammar, text: &str) -> bool {
    let mut matcher = GRAMMARS.compile(grammar).unwrap_or_else(|error| panic!("{grammar:?}: {error}"));
    follow(&mut matcher, text) == (text.len(), true)
}

#[test]
fn texts_of_each_kind_of_grammar() {
    let check = |grammar: Grammar, yes: &[&str], no: &[&str]| {
        yes.iter().for_each(|text| assert!(accepts(&grammar, text), "{grammar:?} should take {text:?}"));
        no.iter().for_each(|text| assert!(!accepts(&grammar, text), "{grammar:?} should refuse {text:?}"));
    };
    check(
        Grammar::JsonObject,
        &["{}", r#"{"a": [1, null, {"ä": "\n 😀"}]}"#, "{\n  \"a\": 1\n}"],
        &["", "[]", "{", r#"{"a"}"#, "{} ", "{  }"],
    );
    check(Grammar::Regex("^[a-c]+(-\\d{2})?$".into()), &["a", "abc-42"], &["", "abd", "abc-4", "abc-422"]);
    check(
        Grammar::Choice(["yes", "yes, sir", "no \"no\""].map(Into::into).into()),
        &["yes", "yes, sir", "no \"no\""],
        &["", "ye", "no"],
    );
    check(Grammar::Lark("start: \"(\" start? \")\" | /[0-9]+/".into()), &["()", "((7))", "12"], &["(", "(()", "a"]);
    let person = r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name"], "additionalProperties": false}"#;
    check(
        schema(person),
        &[r#"{"name": "Bob", "age": 7}"#, r#"{"name":"äöü"}"#],
        &["{}", r#"{"name": "Robert"}"#, r#"{"name": "Bob", "age": -1}"#, r#"{"name": "Bob", "x": 1}"#],
    );
}

#[test]
fn what_is_wrong_is_said() {
    let check = |grammar: Grammar, part: &str| match GRAMMARS.compile(&grammar) {
        Err(GrammarError::Invalid(reason)) => {
            assert!(reason.contains(part) && reason.len() < 400, "{grammar:?}: {reason:?}")
        }
        other => panic!("{grammar:?}: {:?}", other.err()),
    };
    check(schema("{"), "EOF");
    check(schema("[]"), "an object");
    check(schema(r#"{"type": "nothing"}"#), "type");
    check(schema(r##"{"$ref": "#/nowhere"}"##), "nowhere");
    check(schema(r#"{"not": {"type": "string"}}"#), "not");
    check(schema(r##"{"$ref": "#"}"##), "no text satisfies it");
    check(Grammar::Regex("(a".into()), "unclosed");
    check(Grammar::Regex(format!("{}(", "a".repeat(4000)).into()), "unclosed");
    check(Grammar::Regex("a^b".into()), "");
    check(Grammar::Lark("begin: \"a\"".into()), "start");
    check(Grammar::Lark("".into()), "");
}

/// The state is a function of the tokens: asked at every step, once at the end, or by a fork.
#[test]
fn a_replayed_text_leads_to_the_same_place() {
    let grammar = schema(r#"{"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}}"#);
    let ids: Vec<TokenId> = TOKENIZER.encode(r#"{"a": ["one", "two and th"#, false).unwrap();
    let mut stepped = GRAMMARS.compile(&grammar).unwrap();
    let sets: Vec<_> = (0..=ids.len()).map(|at| stepped.next(&ids[..at]).unwrap()).collect();
    for at in 0..=ids.len() {
        let mut fresh = GRAMMARS.compile(&grammar).unwrap();
        assert_eq!(fresh.next(&ids[..at]).unwrap(), sets[at], "after {at} tokens");
        assert_eq!(fresh.fork().next(&ids).unwrap(), sets[ids.len()]);
    }
}

#[test]
fn special_tokens_are_no_text() {
    let mut matcher = GRAMMARS.compile(&Grammar::Regex("(.|\\n)*".into())).unwrap();
    let set = matcher.next(&[]).unwrap();
    let specials: Vec<TokenId> = (0..TOKENIZER.vocab_size() as u32).filter(|id| TOKENIZER.is_special(*id)).collect();
    assert!(!specials.is_empty() && specials.iter().all(|id| !set.contains(*id)));
    assert!(set.end && !set.has_no_token());
}

#[test]
fn gbnf_is_read_as_llama_cpp_writes_it() {
    let json = r#"
        root   ::= object # the whole text
        value  ::= object | array | string | number | ("true" | "false" | "null") ws
        object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
        array  ::= "[" ws ( value ("," ws value)* )? "]" ws
        string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
        number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
        ws ::= | " " | "\n" [ \t]{0,20}
    "#;
    let json = Grammar::Lark(json.into());
    for text in ["{}", r#"{"a": [1, -2.5e3, "x\n\u00e4 \"😀\"", true], "b": {"c": null}}"#, "{ \"a\": 1}"] {
        assert!(accepts(&json, text), "{text}");
    }
    for text in ["", "[1]", r#"{"a"}"#, r#"{"a": 01x}"#, r#"{"a": "\q"}"#] {
        assert!(!accepts(&json, text), "{text}");
    }
    let greedy = Grammar::Lark("root ::= [a-z]* \"x\" last-part\nlast-part ::= [\\-\\]^]{2}".into());
    assert!(
        accepts(&greedy, "xxx-]") && accepts(&greedy, "x^^") && !accepts(&greedy, "ab--") && !accepts(&greedy, "x-")
    );
    let check = |text: &str, part: &str| match GRAMMARS.compile(&Grammar::Lark(text.into())) {
        Err(GrammarError::Invalid(reason)) => assert!(reason.contains(part), "{text}: {reason}"),
        other => panic!("{text}: {:?}", other.err()),
    };
    check("a ::= \"b\"", "no rule root");
    check("root ::= b", "rule b is not defined");
    check("root ::= \"b\" root ::= \"c\"", "twice");
    check("root ::= \"b", "not closed");
    check("\"b\" ::= root", "begin with a rule");
    check("root ::= []", "empty character class");
    check("root ::= \"\\uD800\"", "no character's number");
    check("root ::= \"a\"{x}", "a repetition is");
    check("root ::= %", "no meaning");
    check("root ::= root", "");
}
