use proptest::prelude::*;

use super::*;

fn names() -> std::sync::Arc<[String]> {
    ["f", "get_weather"].map(str::to_owned).into()
}

fn parser(kind: &str) -> ToolParser {
    match kind {
        "hermes" => ToolParser::new(ToolFormat::Hermes, names(), u32::MAX),
        "llama3_json" => ToolParser::new(ToolFormat::Llama3Json, names(), u32::MAX),
        "mistral" => ToolParser::new(ToolFormat::Mistral, names(), u32::MAX),
        "list" => ToolParser::list(names(), u32::MAX),
        "named" => ToolParser::named("f".to_owned()),
        _ => panic!("{kind}"),
    }
}

const KINDS: [&str; 5] = ["hermes", "llama3_json", "mistral", "list", "named"];

/// The parts of all pieces, neighbours of a kind joined, and whether a call can be made.
fn parts(mut parser: ToolParser, pieces: &[&str]) -> (Vec<Part>, bool) {
    let mut joined: Vec<Part> = Vec::new();
    let pushed: Vec<Part> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    for part in pushed.into_iter().chain(parser.finish()) {
        match (joined.last_mut(), part) {
            (Some(Part::Content(text)), Part::Content(more)) => text.push_str(&more),
            (Some(Part::Arguments { index, text }), Part::Arguments { index: same, text: more }) if *index == same => {
                text.push_str(&more)
            }
            (_, part) => joined.push(part),
        }
    }
    (joined, parser.has_called())
}

/// As text: content as it is, calls as `[index name arguments]`.
fn shown(parts: &[Part]) -> String {
    let show = |part: &Part| match part {
        Part::Content(text) => text.clone(),
        Part::Call { index, name } => format!("⟨{index} {name} "),
        Part::Arguments { text, .. } => format!("{text}⟩"),
    };
    parts.iter().map(show).collect()
}

fn check(kind: &str, text: &str, expected: &str) {
    let (found, called) = parts(parser(kind), &[text]);
    assert_eq!(shown(&found), expected, "{kind} {text:?}");
    assert_eq!(called, expected.contains("}⟩"), "{kind} {text:?}");
}

#[test]
fn hermes() {
    let check = |text: &str, expected: &str| check("hermes", text, expected);
    check("Hello.\n", "Hello.\n");
    check(
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, \"}\"]}}\n</tool_call>",
        "⟨0 f {\"a\": [1, \"}\"]}⟩",
    );
    check(
        "Let me see.\n\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n<tool_call>{\"arguments\": {\"b\":2}, \"name\": \"get_weather\"}</tool_call>\n",
        "Let me see.⟨0 f {}⟩⟨1 get_weather {\"b\":2}⟩",
    );
    check("<tool_call>{\"name\": \"f\"}</tool_call> and so on ", "⟨0 f {}⟩ and so on ");
    check("<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>", "⟨0 f {}⟩");
    check("<tool_call>{\"name\": \"\\u0066\", \"parameters\": {}, \"id\": 7}</tool_call>", "⟨0 f {}⟩");
    // The end mark, or the object's own end, may be missing.
    check("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}", "⟨0 f {\"a\": 1}⟩");
    check("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}\n</tool_call>", "⟨0 f {\"a\": 1}⟩");
    check("<tool_call>{\"name\": \"f\", \"arguments\": {}}<tool_call>{\"name\": \"f\"}", "⟨0 f {}⟩⟨1 f {}⟩");
}

#[test]
fn what_is_no_call_is_content() {
    for text in [
        "a <tool_calls> b",
        "<tool_call>",
        " <tool_call>\nno\n</tool_call> ",
        "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": 1, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"{}\"}</tool_call>",
        "<tool_call>{\"arguments\": {\"a\": 1}}</tool_call>",
        "<tool_call>{\"name\": \"f\" \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"name\": \"f\"}</tool_call>",
        "<tool_call>[{\"name\": \"f\", \"arguments\": {}}]</tool_call>",
        "<tool_call>{\"name\": \"f\"",
        "<<tool_call",
    ] {
        check("hermes", text, text);
    }
    check("hermes", "<tool_call>{x<tool_call>{\"name\": \"f\"}</tool_call>", "<tool_call>{x⟨0 f {}⟩");
    // Once a call has been told, what does not belong to it follows as content.
    check(
        "hermes",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": oops}}</tool_call> end",
        "⟨0 f {\"a\": ⟩oops}}</tool_call> end",
    );
}

#[test]
fn llama3_json() {
    let check = |text: &str, expected: &str| check("llama3_json", text, expected);
    check("{\"name\": \"f\", \"parameters\": {\"a\": 1}}", "⟨0 f {\"a\": 1}⟩");
    check("\n<|python_tag|>{\"name\": \"f\", \"parameters\": {}}", "⟨0 f {}⟩");
    check(
        "{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}; {\"name\": \"get_weather\", \"parameters\": {\"b\": 2}}",
        "⟨0 f {}⟩⟨1 get_weather {\"b\": 2}⟩",
    );
    check("{\"name\": \"f\", \"parameters\": {}} Done.", "⟨0 f {}⟩ Done.");
    check("{\"name\": \"f\", \"parameters\": {}}; done", "⟨0 f {}⟩; done");
    for text in
        ["Sure: {\"name\": \"f\", \"parameters\": {}}", "{\"answer\": 42}", "{", "<|python_tag|>print(1)", "{}{}"]
    {
        check(text, text);
    }
}

#[test]
fn mistral() {
    let check = |text: &str, expected: &str| check("mistral", text, expected);
    check(
        "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"get_weather\", \"arguments\": {}}]",
        "⟨0 f {\"a\": 1}⟩⟨1 get_weather {}⟩",
    );
    check("[TOOL_CALLS]{\"name\": \"f\", \"arguments\": {}}", "⟨0 f {}⟩");
    check("So: [TOOL_CALLS]f{\"a\": 1}[TOOL_CALLS]get_weather[ARGS]{}", "So:⟨0 f {\"a\": 1}⟩⟨1 get_weather {}⟩");
    check("[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{\"a\": 1}", "⟨0 f {\"a\": 1}⟩");
    for text in ["[TOOL_CALLS]", "[TOOL_CALLS]g{\"a\": 1}", "[TOOL_CALLS][]", "[1, 2]", "[TOOL_CALLS]f says hi"] {
        check(text, text);
    }
}

#[test]
fn what_a_grammar_enforces() {
    check(
        "list",
        "[{\"name\": \"f\", \"parameters\": {\"a\": 1}},\n{\"name\": \"f\", \"parameters\": {}}]\n",
        "⟨0 f {\"a\": 1}⟩⟨1 f {}⟩",
    );
    check("list", "[{\"name\": \"f\", \"parameters\": {\"a\": ", "⟨0 f {\"a\": ⟩");
    check("named", " {\"a\": {}} ", "⟨0 f {\"a\": {}}⟩");
    check("named", "hello", "hello");
}

#[test]
fn calls_beyond_the_limit_are_left_out() {
    let parser = ToolParser::new(ToolFormat::Hermes, names(), 1);
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";
    assert_eq!(shown(&parts(parser, &[call, "\n", call]).0), "⟨0 f {\"a\": 1}⟩");
}

#[test]
fn names_and_arguments_are_told_as_they_come() {
    let mut parser = parser("hermes");
    let call = |text: &str| Part::Arguments { index: 0, text: text.to_owned() };
    assert_eq!(parser.push("Hi <tool_"), [Part::Content("Hi".to_owned())]);
    assert_eq!(parser.push("call>{\"name\": \"f\", "), []);
    assert_eq!(parser.push("\"arguments\": {\"a\""), [Part::Call { index: 0, name: "f".to_owned() }, call("{\"a\"")]);
    assert_eq!(parser.push(": 1"), [call(": 1")]);
    assert_eq!(parser.push("}}"), [call("}")]);
}

/// Text that often is a call, or nearly one.
fn any_text() -> impl Strategy<Value = String> {
    let fragment = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        "{\"name\": \"f\", \"arguments\": {\"a\": 1}}",
        "{\"name\": \"get_weather\", \"parameters\": {",
        "\"ü\": [1, {}]}}",
        "{",
        "}",
        "[",
        "]",
        ",",
        ";",
        " ",
        "\n",
        "\"name\"",
        ":",
        "\"f\"",
        "f{",
        "Hi 😀",
        "<",
        "null",
        "1",
    ]);
    prop::collection::vec(fragment, 0..10).prop_map(|fragments| fragments.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8192))]

    #[test]
    fn any_split_gives_the_parts_of_the_whole_text(text in any_text(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).filter(|at| text.is_char_boundary(*at)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        for kind in KINDS {
            let whole = parts(parser(kind), &[&text]);
            prop_assert_eq!(&parts(parser(kind), &pieces), &whole, "{} {:?}", kind, &pieces);
            // Without a call nothing is lost, not even white space.
            if !whole.0.iter().any(|part| matches!(part, Part::Call { .. })) {
                prop_assert_eq!(shown(&whole.0), text.as_str(), "{}", kind);
            }
            let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<Vec<_>>();
            let content: String = whole.0.iter().filter_map(|part| match part { Part::Content(text) => Some(text.as_str()), _ => None }).collect();
            prop_assert!(content.chars().filter(|c| *c == '😀').count() == text.matches('😀').count(), "{} {:?} {:?}", kind, letters(&text), content);
        }
    }
}
