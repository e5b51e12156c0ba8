//! Bodies made from /openapi.json: whatever they ask for, the answer is no 5xx.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use crate::support::Cluster;
use crate::support::client::{get, post};

const BODIES: usize = 150;
/// Answers are kept short: the test is about what comes in.
const LENGTHS: [&str; 3] = ["max_tokens", "max_completion_tokens", "max_output_tokens"];
const TEXTS: [&str; 5] = ["hi", "", "user", "\u{e9}\u{1f600}", "<|end|>"];

/// A value of a schema, or one just outside its bounds.
fn value(random: &mut StdRng, schema: &Value) -> Value {
    if let Some(ways) = schema["anyOf"].as_array().or(schema["enum"].as_array()) {
        let way = ways.choose(random).unwrap();
        return if way.is_object() { value(random, way) } else { way.clone() };
    }
    if let Some(only) = schema.get("const") {
        return only.clone();
    }
    let end = |name: &str, other: i64| schema[name].as_i64().unwrap_or(other);
    match schema["type"].as_str() {
        Some("integer") => {
            let (low, high) = (end("minimum", -5), end("maximum", 40));
            json!(*[low, low.saturating_sub(1), high, high.saturating_add(1), 1, 2, 3].choose(random).unwrap())
        }
        Some("number") => json!(random.random_range(-3.0..3.0)),
        Some("boolean") => json!(random.random_bool(0.5)),
        Some("string") => json!(TEXTS.choose(random).unwrap()),
        Some("array") => (0..random.random_range(0..3)).map(|_| value(random, &schema["items"])).collect(),
        Some("object") => Value::Object(object(random, schema, 0.5)),
        Some("null") => Value::Null,
        _ => [json!(null), json!(1), json!("a"), json!({}), json!([])].choose(random).unwrap().clone(),
    }
}

/// What is required, and others with this probability.
fn object(random: &mut StdRng, schema: &Value, others: f64) -> Map<String, Value> {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let mut entries = Map::new();
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        if required.iter().any(|required| required == name) || random.random_bool(others) {
            entries.insert(name.clone(), value(random, schema));
        }
    }
    entries
}

#[tokio::test]
async fn no_body_of_the_document_is_answered_with_a_5xx() {
    let cluster = Cluster::start(1, 1, |_| {}).await;
    let document = get(cluster.address(), "/openapi.json").await.json();
    let mut random = StdRng::seed_from_u64(7);
    for (path, methods) in document["paths"].as_object().unwrap() {
        let Some(reference) = methods.pointer("/post/requestBody/content/application~1json/schema/$ref") else {
            continue;
        };
        let schema = document.pointer(reference.as_str().unwrap().strip_prefix('#').unwrap()).unwrap();
        let mut served = 0;
        for _ in 0..BODIES {
            let others = *[0.0, 0.03, 0.2].choose(&mut random).unwrap();
            let mut body = object(&mut random, schema, others);
            let lengths = LENGTHS.iter().filter(|name| schema["properties"].get(**name).is_some());
            lengths.for_each(|name| drop(body.insert((*name).to_owned(), json!(3))));
            let answer = post(cluster.address(), path, Value::Object(body.clone())).await;
            assert!(answer.status < 500, "{path} {}: {}", json!(body), answer.text());
            served += usize::from(answer.status == 200);
        }
        assert!(served > 0, "{path}: every body was refused, so nothing was tried");
    }
}
