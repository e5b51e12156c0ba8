//! No number that a client sends leads to anything but a value in range or a 400 that names the field.

use super::{FACTS, decided, resolved, with};
use crate::{Bounds, Endpoint, FIELDS, Kind};

/// The corners of every integer and float type, and what is no number at all.
const CORNERS: &[&str] = &[
    "-1",
    "0",
    "1",
    "0.5",
    "1.0",
    "2",
    "20",
    "21",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993.0",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-2147483649",
    "-9223372036854775808",
    "-9223372036854775809",
    "1e308",
    "-1e308",
    "5e-324",
    "1e-46",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-0.0",
    "\"1\"",
    "true",
    "[1]",
    "{}",
    "1e",
    "0x10",
    "01",
];

/// Fields with numbers inside; `@` is where the number goes.
const NESTED: &[(&str, &str)] = &[
    ("stop_token_ids", "[@]"),
    ("logit_bias", r#"{"5": @}"#),
    ("allowed_token_ids", "[@]"),
    ("bad_words", "[@]"),
    ("chat_template", "@"),
    ("prompt", "[1, @]"),
    ("prompt", "[[@]]"),
    ("prompt", "[@]"),
    ("tokens", "[@]"),
    ("input", "[@]"),
    ("input", r#"[{"role": @, "content": [@]}]"#),
    ("stop", "[@]"),
    ("stream_options", r#"{"include_usage": @}"#),
    ("tools", "[@]"),
    ("messages", "[@]"),
    ("messages", r#"[{"role": @, "content": @}]"#),
    ("documents", "[@]"),
    ("chat_template_kwargs", r#"{"x": @}"#),
];

#[test]
fn every_field_takes_every_corner_or_refuses_it_by_name() {
    for field in FIELDS {
        for endpoint in field.on {
            CORNERS.iter().for_each(|corner| check_corner(*endpoint, field.name, corner));
        }
    }
}

#[test]
fn numbers_inside_fields() {
    for (field, shape) in NESTED {
        let rows = FIELDS.iter().filter(|row| row.name == *field && matches!(row.kind, Kind::Structured { .. }));
        for endpoint in rows.flat_map(|row| row.on) {
            CORNERS.iter().for_each(|corner| check_corner(*endpoint, field, &shape.replace('@', corner)));
        }
    }
}

fn check_corner(endpoint: Endpoint, field: &str, json: &str) {
    let body = with(endpoint, field, json);
    match resolved(endpoint, &body) {
        Ok(sampling) => {
            let numbers = [
                sampling.temperature,
                sampling.top_p,
                sampling.min_p,
                sampling.presence_penalty,
                sampling.frequency_penalty,
            ];
            assert!(numbers.iter().all(|number| (-2.0..=2.0).contains(number)), "{body}: {sampling:?}");
            assert!(sampling.top_p > 0.0 && sampling.repetition_penalty > 0.0, "{body}: {sampling:?}");
            assert!(sampling.temperature == 0.0 || sampling.temperature >= 0.01, "{body}: {sampling:?}");
            assert!(
                sampling.max_tokens <= FACTS.max_model_len && sampling.min_tokens <= sampling.max_tokens,
                "{body}: {sampling:?}"
            );
            assert!(sampling.allowed_token_ids.iter().all(|id| *id < FACTS.vocab_size), "{body}: {sampling:?}");
            assert!(sampling.logprobs.unwrap_or(0) <= 20, "{body}: {sampling:?}");
            assert!(
                sampling.logit_bias.iter().all(|(id, bias)| *id < FACTS.vocab_size && bias.abs() <= 100.0),
                "{body}: {sampling:?}"
            );
        }
        Err(error) => {
            assert_eq!(error.status(), 400, "{body}: {error}");
            let named = error.param.as_deref().is_some_and(|param| param.starts_with(field));
            let about_json = error.message.contains("not valid JSON");
            let about_context = error.message.contains("maximum context length is 4096 tokens");
            assert!(named || about_json || about_context, "{body}: {error:?}");
            assert!(error.body().len() <= 4096, "{body}");
        }
    }
}

#[test]
fn a_refusal_names_the_bounds_and_the_value() {
    let bounds = Bounds::default();
    for field in FIELDS {
        let (below, above, ends) = match &field.kind {
            Kind::Number { min, max, .. } => (min - 1.0, max + 1.0, [min.to_string(), max.to_string()]),
            Kind::Integer { min, max } if *min > i64::MIN => {
                let max = max(&bounds);
                ((min - 1) as f64, (max + 1) as f64, [min.to_string(), max.to_string()])
            }
            _ => continue,
        };
        for value in [below, above] {
            let json = serde_json::Number::from_f64(value).unwrap().to_string();
            let error = decided(field.on[0], &with(field.on[0], field.name, &json)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(field.name));
            assert!(
                ends.iter().chain([&json]).all(|part| error.message.contains(part.as_str())),
                "{}: {error}",
                field.name
            );
        }
    }
}

#[test]
fn every_known_field_has_an_effect_or_is_refused() {
    let samples = |kind: &Kind| match kind {
        Kind::Bool => vec!["true", "false"],
        Kind::Number { .. } => vec!["0.25"],
        Kind::Integer { .. } => vec!["1", "2"],
        Kind::Text { .. } => vec!["\"abc\""],
        Kind::NotYet { .. } => vec!["true", "2", "{}", "\"abc\""],
        // Their effects are in the table of requests.
        Kind::Structured { .. } | Kind::Accepted => Vec::new(),
    };
    // Says nothing without tools; its effect is in the table of requests.
    for field in FIELDS.iter().filter(|field| field.name != "parallel_tool_calls") {
        for endpoint in field.on {
            let plain = decided(*endpoint, &with(*endpoint, "nothing", "1")).unwrap();
            let samples = samples(&field.kind);
            let seen = samples
                .iter()
                .any(|sample| decided(*endpoint, &with(*endpoint, field.name, sample)) != Ok(plain.clone()));
            assert!(samples.is_empty() || seen, "{} is accepted and does nothing on {endpoint:?}", field.name);
        }
    }
}

#[test]
fn a_default_is_what_leaving_out_means() {
    for field in FIELDS {
        for (endpoint, default) in field.on.iter().flat_map(|endpoint| field.default.map(|json| (endpoint, json))) {
            let plain = decided(*endpoint, &with(*endpoint, "nothing", "1"));
            assert_eq!(decided(*endpoint, &with(*endpoint, field.name, default)), plain, "{} {endpoint:?}", field.name);
        }
    }
}

#[test]
fn null_is_absent() {
    for field in FIELDS.iter().filter(|field| !["prompt", "messages", "tokens", "input"].contains(&field.name)) {
        // On the plain server a null max_tokens asks for the rest of the context.
        let special = |endpoint: &&Endpoint| field.name == "max_tokens" && **endpoint == Endpoint::Generate;
        for endpoint in field.on.iter().filter(|endpoint| !special(endpoint)) {
            let plain = decided(*endpoint, &with(*endpoint, "nothing", "1"));
            assert_eq!(decided(*endpoint, &with(*endpoint, field.name, "null")), plain, "{}", field.name);
        }
    }
}

#[test]
fn a_field_stands_once_per_endpoint() {
    for endpoint in [
        Endpoint::Completions,
        Endpoint::Chat,
        Endpoint::Responses,
        Endpoint::Embeddings,
        Endpoint::Generate,
        Endpoint::Tokenize,
        Endpoint::Detokenize,
    ] {
        let mut names: Vec<_> =
            FIELDS.iter().filter(|field| field.on.contains(&endpoint)).map(|field| field.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{endpoint:?}");
    }
}

#[test]
fn every_bound_stands_on_the_page_of_bounds() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/bounds.md")).unwrap();
    for bound in Bounds::TABLE {
        let row = format!("| {} | {} | {} |", bound.name, bound.default, bound.doc);
        assert!(
            page.contains(&row),
            "docs/bounds.md lacks {row}; UPDATE_DOCS=1 cargo test -p tests bounds writes it anew"
        );
    }
}
