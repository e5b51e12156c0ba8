//! Whatever bytes come in, the answer is a valid request or a small 4xx.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::resolved;
use crate::{Endpoint, FIELDS};

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..30).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-3.0..3.0).prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        prop::sample::select(vec!["user", "assistant", "text", "none", "auto", "x"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let key = prop_oneof![
            prop::sample::select(vec![
                "role",
                "content",
                "type",
                "text",
                "tool_calls",
                "function",
                "arguments",
                "include_usage",
                "5"
            ])
            .prop_map(str::to_owned),
            "\\PC{0,6}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4).prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    prop::sample::select(vec![
        Endpoint::Completions,
        Endpoint::Chat,
        Endpoint::Responses,
        Endpoint::Embeddings,
        Endpoint::Generate,
        Endpoint::Tokenize,
        Endpoint::Detokenize,
    ])
}

fn check(endpoint: Endpoint, body: &str) -> Result<(), TestCaseError> {
    if let Err(error) = resolved(endpoint, body) {
        prop_assert!((400..500).contains(&error.status()), "{body}: {error}");
        prop_assert!(error.body().len() <= 4096, "{body}");
        prop_assert!(serde_json::from_str::<Value>(&error.body()).is_ok(), "{body}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_values_in_known_fields(
        endpoint in any_endpoint(),
        fields in prop::collection::vec((prop::sample::select(FIELDS.iter().map(|field| field.name).collect::<Vec<_>>()), any_value()), 0..8),
    ) {
        let mut body = json!({ "prompt": "x", "input": "x", "messages": [{ "role": "user", "content": "x" }] });
        fields.into_iter().for_each(|(name, value)| body[name] = value);
        check(endpoint, &body.to_string())?;
    }

    #[test]
    fn damaged_bodies(endpoint in any_endpoint(), at in 0usize..90, junk in "[\\[\\]{}\",:0-9e.\\\\-]{0,4}|\\PC{0,3}") {
        let mut body = r#"{"prompt": [1, 2], "messages": [{"role": "user", "content": "x"}], "stop": ["a"], "n": 1}"#.to_owned();
        body.replace_range(at..(at + junk.len()).min(body.len()).max(at), &junk);
        check(endpoint, &body)?;
    }
}
