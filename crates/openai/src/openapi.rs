//! The OpenAPI document of the server, made from the table of fields so that it says what is checked.

use serde_json::{Map, Value, json};

use crate::fields::{Endpoint, FIELDS, Field, Kind};
use crate::{Bounds, ErrorKind};

/// An endpoint with a body: path, name of its schema, what it does, fields that must be there.
struct Operation {
    endpoint: Endpoint,
    path: &'static str,
    schema: &'static str,
    summary: &'static str,
    required: &'static [&'static str],
}

const OPERATIONS: &[Operation] = &[
    Operation {
        endpoint: Endpoint::Chat,
        path: "/v1/chat/completions",
        schema: "ChatCompletionRequest",
        summary: "Answer a conversation",
        required: &["messages"],
    },
    Operation {
        endpoint: Endpoint::Completions,
        path: "/v1/completions",
        schema: "CompletionRequest",
        summary: "Continue one or many prompts",
        required: &["prompt"],
    },
    Operation {
        endpoint: Endpoint::Responses,
        path: "/v1/responses",
        schema: "ResponsesRequest",
        summary: "Answer items with items; kept for a while",
        required: &["input"],
    },
    Operation {
        endpoint: Endpoint::Embeddings,
        path: "/v1/embeddings",
        schema: "EmbeddingsRequest",
        summary: "Vectors of texts, of length 1",
        required: &[],
    },
    Operation {
        endpoint: Endpoint::Tokenize,
        path: "/tokenize",
        schema: "TokenizeRequest",
        summary: "Token ids of a text or a conversation",
        required: &[],
    },
    Operation {
        endpoint: Endpoint::Detokenize,
        path: "/detokenize",
        schema: "DetokenizeRequest",
        summary: "Text of token ids",
        required: &["tokens"],
    },
];

/// Paths that are only read.
const PAGES: &[(&str, &str)] = &[
    ("/v1/models", "Served models"),
    ("/health", "200 while the process runs"),
    ("/ping", "The same as /health"),
    ("/ready", "200 when a prompt came back through every instance"),
    ("/metrics", "Prometheus text"),
    ("/load", "Requests in flight"),
    ("/version", "Version of the server"),
    ("/server_info", "Limits and instances; only with --server-info"),
    ("/openapi.json", "This document"),
    ("/docs", "This document as a page"),
];

/// The document of a server of this version that checks requests against `bounds`.
pub fn openapi(version: &str, bounds: &Bounds) -> Value {
    let operations = OPERATIONS.iter().map(|operation| (operation.path.to_owned(), json!({ "post": post(operation) })));
    let pages = PAGES.iter().map(|(path, summary)| {
        let get = json!({ "summary": summary, "responses": { "200": { "description": summary }, "401": refused(ErrorKind::Unauthorized) } });
        ((*path).to_owned(), json!({ "get": get }))
    });
    let schemas = OPERATIONS.iter().map(|operation| (operation.schema.to_owned(), schema(operation, bounds)));
    let error = json!({ "type": "object", "required": ["message", "type", "code"], "properties": {
        "message": { "type": "string" },
        "type": { "type": "string" },
        "param": { "type": ["string", "null"], "description": "the field at fault" },
        "code": { "type": "integer", "description": "the HTTP status" },
    } });
    let error = json!({ "type": "object", "required": ["error"], "properties": { "error": error } });
    json!({
        "openapi": "3.1.0",
        "info": { "title": "pdserve", "version": version },
        "paths": operations.chain(pages).chain([stored()]).collect::<Map<_, _>>(),
        "security": [{}, { "key": [] }],
        "components": {
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas.chain([("Error".to_owned(), error)]).collect::<Map<_, _>>(),
        },
    })
}

fn post(operation: &Operation) -> Value {
    let reference = json!({ "$ref": format!("#/components/schemas/{}", operation.schema) });
    let mut responses = Map::new();
    responses.insert("200".to_owned(), json!({ "description": "The answer; server-sent events with stream" }));
    for kind in [
        ErrorKind::BadRequest,
        ErrorKind::Unauthorized,
        ErrorKind::NotFound,
        ErrorKind::TooLarge,
        ErrorKind::TooManyRequests,
        ErrorKind::Unavailable,
    ] {
        responses.insert(kind.status().to_string(), refused(kind));
    }
    json!({
        "summary": operation.summary,
        "requestBody": { "required": true, "content": { "application/json": { "schema": reference } } },
        "responses": responses,
    })
}

/// An answer of `/v1/responses` that was kept.
fn stored() -> (String, Value) {
    let id = json!([{ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } }]);
    let method = |summary: &str| {
        json!({ "summary": summary, "parameters": id, "responses": {
            "200": { "description": summary },
            "401": refused(ErrorKind::Unauthorized),
            "404": refused(ErrorKind::NotFound),
        } })
    };
    let path = json!({ "get": method("A kept answer"), "delete": method("Forget a kept answer") });
    ("/v1/responses/{id}".to_owned(), path)
}

fn refused(kind: ErrorKind) -> Value {
    let schema = match kind {
        ErrorKind::Unauthorized => json!({ "type": "object", "properties": { "error": { "type": "string" } } }),
        _ => json!({ "$ref": "#/components/schemas/Error" }),
    };
    json!({ "description": kind.as_str(), "content": { "application/json": { "schema": schema } } })
}

fn schema(operation: &Operation, bounds: &Bounds) -> Value {
    let fields = FIELDS.iter().filter(|field| field.on.contains(&operation.endpoint));
    let properties = fields.map(|field| {
        let required = operation.required.contains(&field.name);
        (field.name.to_owned(), property(field, required, bounds))
    });
    json!({ "type": "object", "properties": properties.collect::<Map<_, _>>(), "required": operation.required })
}

/// A null is the same as leaving a field out.
fn property(field: &Field, required: bool, bounds: &Bounds) -> Value {
    let (mut values, doc) = (values(&field.kind, bounds), description(field));
    if !required && values.as_object().is_some_and(|schema| !schema.is_empty()) {
        values = json!({ "anyOf": [values, { "type": "null" }] });
    }
    if !doc.is_empty() {
        values["description"] = Value::from(doc);
    }
    if let Some(default) = field.default.and_then(|json| serde_json::from_str(json).ok()) {
        values["default"] = default;
    }
    values
}

fn description(field: &Field) -> String {
    match &field.kind {
        Kind::NotYet { what, .. } if field.doc.is_empty() => format!("not supported yet: {what}"),
        Kind::NotYet { what, .. } => format!("not supported yet: {what}; {}", field.doc),
        _ => field.doc.to_owned(),
    }
}

fn values(kind: &Kind, bounds: &Bounds) -> Value {
    match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Number { min, max, min_allowed: true } => json!({ "type": "number", "minimum": min, "maximum": max }),
        Kind::Number { min, max, .. } => json!({ "type": "number", "exclusiveMinimum": min, "maximum": max }),
        Kind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max(bounds) }),
        Kind::Text { chars_max } => json!({ "type": "string", "maxLength": chars_max(bounds) }),
        Kind::Structured { schema } => serde_json::from_str(schema).unwrap_or_else(|_| json!({})),
        Kind::Accepted | Kind::NotYet { .. } => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_stands_in_the_document_with_its_bounds() {
        let document = openapi("1", &Bounds::default());
        for operation in OPERATIONS {
            let reference = &document["paths"][operation.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
                ["$ref"];
            let schema = document.pointer(reference.as_str().unwrap().strip_prefix('#').unwrap()).unwrap();
            for field in FIELDS.iter().filter(|field| field.on.contains(&operation.endpoint)) {
                assert!(schema["properties"][field.name].is_object(), "{}: {}", operation.path, field.name);
            }
        }
        let chat = &document["components"]["schemas"]["ChatCompletionRequest"]["properties"];
        let check = |name: &str, expected: Value| assert_eq!(chat[name], expected, "{name}");
        check(
            "top_p",
            json!({ "anyOf": [{ "type": "number", "exclusiveMinimum": 0.0, "maximum": 1.0 }, { "type": "null" }], "default": 1 }),
        );
        check(
            "n",
            json!({ "anyOf": [{ "type": "integer", "minimum": 1, "maximum": 8 }, { "type": "null" }], "description": "choices per prompt", "default": 1 }),
        );
        check("kv_transfer_params", json!({ "description": "ignored: a client never names addresses or blocks" }));
        assert_eq!(chat["messages"]["type"], "array", "required, so never null");
    }

    #[test]
    fn schemas_and_defaults_of_the_table_are_json() {
        for field in FIELDS {
            if let Kind::Structured { schema } = field.kind {
                assert!(serde_json::from_str::<Value>(schema).is_ok_and(|schema| schema.is_object()), "{}", field.name);
            }
            assert!(field.default.is_none_or(|json| serde_json::from_str::<Value>(json).is_ok()), "{}", field.name);
        }
    }
}
