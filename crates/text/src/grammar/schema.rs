//! A client's JSON schema as it is compiled: with bounds on what a model may add for ever.
//!
//! Everything added here only narrows: what the compiled schema accepts, the client's accepts, too.

use serde_json::{Map, Value, json};

use super::GrammarError;

/// Between the parts of a JSON value there may be one of these, or nothing.
const WHITESPACE: &str = r" |\n[ \t]{0,32}";
/// Where a schema holds further schemas by name, one, or in a list.
const NAMED: &[&str] = &["properties", "patternProperties", "$defs", "definitions"];
const NESTED: &[&str] = &["items", "additionalProperties", "contains", "prefixItems", "anyOf", "oneOf", "allOf"];
/// With one of these, which properties an object may have is said elsewhere, too.
const MIXING: &[&str] = &["anyOf", "oneOf", "allOf", "$ref", "if", "dependentSchemas", "unevaluatedProperties"];
/// Say themselves what other properties there may be, or how many.
const OPEN: &[&str] = &["additionalProperties", "patternProperties", "propertyNames", "minProperties"];

pub(super) fn any_object() -> Value {
    spaced(json!({ "type": "object" }))
}

pub(super) fn parse(text: &str) -> Result<Value, GrammarError> {
    let schema: Value = serde_json::from_str(text).map_err(|error| GrammarError::Invalid(error.to_string()))?;
    if !schema.is_object() {
        return Err(GrammarError::Invalid("a JSON schema is an object".into()));
    }
    let mut schema = spaced(schema);
    if !any(&schema, &mixes) {
        each(&mut schema, &close);
    }
    Ok(schema)
}

/// Says how JSON may be spaced, unless the schema does.
fn spaced(mut schema: Value) -> Value {
    if let Value::Object(entries) = &mut schema {
        entries.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": WHITESPACE }));
    }
    schema
}

/// Whether an object's properties come from several places, so that closing one of them could exclude another's.
fn mixes(schema: &Map<String, Value>) -> bool {
    let several = schema.get("allOf").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
    several || schema.contains_key("properties") && MIXING.iter().any(|key| schema.contains_key(*key))
}

/// No further properties where the schema lists some and says nothing of others: a model could add them until its last token.
fn close(schema: &mut Map<String, Value>) {
    let Some(Value::Object(properties)) = schema.get("properties") else { return };
    let required = schema.get("required").and_then(Value::as_array);
    let listed = |name: &Value| name.as_str().is_some_and(|name| properties.contains_key(name));
    let complete = required.is_none_or(|names| names.iter().all(listed));
    if complete && OPEN.iter().all(|key| !schema.contains_key(*key)) {
        schema.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}

/// Whether a schema or one inside it is such. The text was bounded in depth before.
fn any(value: &Value, is: &dyn Fn(&Map<String, Value>) -> bool) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| any(item, is)),
        Value::Object(schema) => {
            let named = NAMED.iter().filter_map(|key| schema.get(*key)?.as_object()).flat_map(Map::values);
            let nested = NESTED.iter().filter_map(|key| schema.get(*key));
            is(schema) || named.chain(nested).any(|inner| any(inner, is))
        }
        _ => false,
    }
}

/// Changes a schema and all inside it.
fn each(value: &mut Value, change: &dyn Fn(&mut Map<String, Value>)) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| each(item, change)),
        Value::Object(schema) => {
            change(schema);
            for (key, inner) in schema.iter_mut() {
                match inner {
                    Value::Object(named) if NAMED.contains(&key.as_str()) => {
                        named.values_mut().for_each(|inner| each(inner, change));
                    }
                    inner if NESTED.contains(&key.as_str()) => each(inner, change),
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_closed_where_that_only_narrows() {
        let check = |schema: Value, expected: Option<Value>| {
            let mut found = parse(&schema.to_string()).unwrap();
            found.as_object_mut().unwrap().remove("x-guidance");
            assert_eq!(found, expected.unwrap_or(schema));
        };
        let a = json!({ "properties": { "a": {} } });
        let closed = json!({ "properties": { "a": {} }, "additionalProperties": false });
        check(a.clone(), Some(closed.clone()));
        check(json!({ "items": a, "default": a }), Some(json!({ "items": closed, "default": a })));
        check(json!({ "anyOf": [a, { "type": "null" }] }), Some(json!({ "anyOf": [closed, { "type": "null" }] })));
        check(json!({ "$defs": { "properties": a } }), Some(json!({ "$defs": { "properties": closed } })));
        let open = [
            json!({ "properties": { "a": {} }, "required": ["b"] }),
            json!({ "properties": { "a": {} }, "additionalProperties": { "type": "string" } }),
            json!({ "properties": { "a": {} }, "minProperties": 2 }),
            json!({ "allOf": [a, a] }),
            json!({ "properties": { "a": a }, "anyOf": [a] }),
            json!({ "type": "object" }),
        ];
        open.into_iter().for_each(|schema| check(schema, None));
    }
}
