//! Structured output: every field that asks for a form of the text, read into one grammar.
//!
//! At most one field may ask. Whether a grammar makes sense shows when it is compiled; here it is only bounded.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use types::Grammar;

use crate::check::{Fields, at_most, wrong};
use crate::{ApiError, Bounds};

/// What a client wants the text to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Structured {
    /// The field that asked, for errors.
    pub field: String,
    pub grammar: Grammar,
}

/// How a field's value becomes a grammar; `None` = it asks for nothing.
type Reader = fn(&str, &Value, &Bounds) -> Result<Option<Structured>, ApiError>;

const READERS: &[(&str, Reader)] = &[
    ("response_format", response_format),
    ("guided_json", json_schema),
    ("guided_regex", regex),
    ("guided_choice", choice),
    ("guided_grammar", grammar),
    ("structured_outputs", structured_outputs),
];

pub(crate) fn read(fields: &Fields<'_>, bounds: &Bounds) -> Result<Option<Structured>, ApiError> {
    let mut asked: Option<Structured> = None;
    for (name, reader) in READERS {
        let Some(value) = fields.get(name) else { continue };
        let Some(found) = reader(name, value, bounds)? else { continue };
        if let Some(before) = &asked {
            let message = format!("{} and {name} cannot be used together: one form of the text at most", before.field);
            return Err(ApiError::bad_field(*name, message));
        }
        asked = Some(found);
    }
    Ok(asked)
}

fn of(field: &str, grammar: Grammar) -> Result<Option<Structured>, ApiError> {
    Ok(Some(Structured { field: field.to_owned(), grammar }))
}

fn response_format(field: &str, value: &Value, bounds: &Bounds) -> Result<Option<Structured>, ApiError> {
    let kind = format_kind(field, value)?;
    match kind {
        "json_schema" => {
            let place = format!("{field}.json_schema");
            let Some(wrapped) = value.get("json_schema").filter(|wrapped| wrapped.is_object()) else {
                return Err(ApiError::bad_field(&place, format!("{place} is required with type json_schema")));
            };
            schema_entry(&place, wrapped, bounds)
        }
        _ => plain_format(field, kind),
    }
}

/// `text` of the responses endpoint, whose format holds the schema itself.
pub(crate) fn read_text(fields: &Fields<'_>, bounds: &Bounds) -> Result<Option<Structured>, ApiError> {
    let Some(text) = fields.get("text") else { return Ok(None) };
    let Value::Object(entries) = text else { return Err(wrong("text", "an object", text)) };
    let Some(format) = entries.get("format").filter(|format| !format.is_null()) else { return Ok(None) };
    match format_kind("text.format", format)? {
        "json_schema" => schema_entry("text.format", format, bounds),
        kind => plain_format("text.format", kind),
    }
}

fn format_kind<'a>(field: &str, value: &'a Value) -> Result<&'a str, ApiError> {
    let kind = value.get("type").and_then(Value::as_str);
    kind.ok_or_else(|| wrong(field, "an object with type text, json_object or json_schema", value))
}

fn plain_format(field: &str, kind: &str) -> Result<Option<Structured>, ApiError> {
    match kind {
        "text" => Ok(None),
        "json_object" => of(field, Grammar::JsonObject),
        "structural_tag" => Err(ApiError::not_supported(field, "structural_tag")),
        _ => Err(ApiError::bad_field(field, format!("{field}.type must be text, json_object or json_schema"))),
    }
}

fn schema_entry(place: &str, holder: &Value, bounds: &Bounds) -> Result<Option<Structured>, ApiError> {
    let place = format!("{place}.schema");
    match holder.get("schema") {
        Some(schema) => json_schema(&place, schema, bounds),
        None => Err(ApiError::bad_field(&place, format!("{place} is required"))),
    }
}

/// An object, or a string that holds one.
pub(crate) fn json_schema(field: &str, value: &Value, bounds: &Bounds) -> Result<Option<Structured>, ApiError> {
    let parsed;
    let schema = match value {
        Value::Object(_) => value,
        Value::String(text) => {
            at_most(field, "bytes", text.len(), bounds.grammar_bytes)?;
            parsed = crate::json::parse(text.as_bytes(), bounds)
                .map_err(|error| ApiError::bad_field(field, format!("{field}: {}", error.message)))?;
            &parsed
        }
        _ => return Err(wrong(field, "a JSON schema: an object, or a string that holds one", value)),
    };
    if !schema.is_object() {
        return Err(wrong(field, "a JSON schema: an object, or a string that holds one", schema));
    }
    let depth = depth(schema);
    if depth > bounds.schema_depth {
        let message = format!("{field} is nested {depth} deep, more than the {} allowed", bounds.schema_depth);
        return Err(ApiError::bad_field(field, message));
    }
    let text = schema.to_string();
    at_most(field, "bytes", text.len(), bounds.grammar_bytes)?;
    of(field, Grammar::JsonSchema(text.into()))
}

/// Levels of arrays and objects; a request's JSON is bounded, so this does not recurse far.
fn depth(value: &Value) -> u64 {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(entries) => 1 + entries.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn regex(field: &str, value: &Value, bounds: &Bounds) -> Result<Option<Structured>, ApiError> {
    of(field, Grammar::Regex(bounded(field, value, bounds.regex_bytes)?))
}

fn grammar(field: &str, value: &Value, bounds: &Bounds) -> Result<Option<Structured>, ApiError> {
    of(field, Grammar::Lark(bounded(field, value, bounds.grammar_bytes)?))
}

fn choice(field: &str, value: &Value, bounds: &Bounds) -> Result<Option<Structured>, ApiError> {
    let expected = "a list of texts that are not empty";
    let Value::Array(items) = value else { return Err(wrong(field, expected, value)) };
    if items.is_empty() {
        return Err(ApiError::bad_field(field, format!("{field} must not be empty")));
    }
    at_most(field, "entries", items.len(), bounds.choice_texts)?;
    let texts: Vec<Arc<str>> =
        items.iter().map(|item| bounded(field, item, bounds.grammar_bytes)).collect::<Result<_, _>>()?;
    at_most(field, "bytes", texts.iter().map(|text| text.len()).sum(), bounds.grammar_bytes)?;
    of(field, Grammar::Choice(texts.into()))
}

/// A text that is not empty.
fn bounded(field: &str, value: &Value, bytes_max: u64) -> Result<Arc<str>, ApiError> {
    let Value::String(text) = value else { return Err(wrong(field, "a string", value)) };
    if text.is_empty() {
        return Err(ApiError::bad_field(field, format!("{field} must not be empty")));
    }
    at_most(field, "bytes", text.len(), bytes_max)?;
    Ok(text.as_str().into())
}

/// vLLM's object: exactly one constraint, and how JSON is written.
fn structured_outputs(field: &str, value: &Value, bounds: &Bounds) -> Result<Option<Structured>, ApiError> {
    const READERS: &[(&str, Reader)] = &[
        ("json", json_schema),
        ("regex", regex),
        ("choice", choice),
        ("grammar", grammar),
        ("json_object", json_object),
        ("structural_tag", |field, _, _| Err(ApiError::not_supported(field, "structural_tag"))),
    ];
    let Value::Object(entries) = value else { return Err(wrong(field, "an object", value)) };
    let mut asked: Vec<Structured> = Vec::new();
    for (name, reader) in READERS {
        if let Some(value) = entries.get(*name).filter(|value| !value.is_null()) {
            asked.extend(reader(&format!("{field}.{name}"), value, bounds)?);
        }
    }
    match (asked.pop(), asked.is_empty()) {
        (Some(only), true) => Ok(Some(written(only, entries))),
        _ => {
            let names = "json, regex, choice, grammar and json_object";
            Err(ApiError::bad_field(field, format!("{field} must have exactly one of {names}")))
        }
    }
}

fn json_object(field: &str, value: &Value, _: &Bounds) -> Result<Option<Structured>, ApiError> {
    match value {
        Value::Bool(true) => of(field, Grammar::JsonObject),
        Value::Bool(false) => Ok(None),
        _ => Err(wrong(field, "true or false", value)),
    }
}

/// Honours what else the object says of JSON. `whitespace_pattern` has no effect; objects are closed anyway where they can be.
fn written(asked: Structured, entries: &Map<String, Value>) -> Structured {
    let flag = |name: &str| entries.get(name).and_then(Value::as_bool).unwrap_or(false);
    if !flag("disable_any_whitespace") {
        return asked;
    }
    let mut schema = match &asked.grammar {
        Grammar::JsonObject => json!({ "type": "object" }),
        Grammar::JsonSchema(schema) => serde_json::from_str(schema).unwrap_or_default(),
        _ => return asked,
    };
    schema["x-guidance"] = json!({ "whitespace_flexible": false });
    Structured { grammar: Grammar::JsonSchema(schema.to_string().into()), ..asked }
}
