//! `GET /openapi.json`, and the same as a page without script or foreign asset.

use std::fmt::Write;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Html;
use hyper::Response;
use serde_json::Value;

use super::{Api, json};

pub(super) async fn document(State(api): State<Arc<Api>>) -> Response<Body> {
    json(&api.document())
}

pub(super) async fn page(State(api): State<Arc<Api>>) -> Html<String> {
    Html(html(&api.document()))
}

impl Api {
    fn document(&self) -> Value {
        openai::openapi(env!("CARGO_PKG_VERSION"), &self.bounds.request)
    }
}

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>pdserve API</title>\
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse;width:100%}\
td,th{border-bottom:1px solid #ddd;padding:.25rem .5rem;text-align:left;vertical-align:top}code{font-size:13px;overflow-wrap:anywhere}td:first-child code{overflow-wrap:normal;white-space:nowrap}</style>\
<h1>pdserve API</h1><p>The same for programs: <a href=/openapi.json>/openapi.json</a></p>";

/// One heading per path, and a table of fields where there is a body.
fn html(document: &Value) -> String {
    let mut page = HEAD.to_owned();
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let summary = escaped(operation["summary"].as_str().unwrap_or_default());
            let _ = write!(page, "<h2><code>{} {}</code></h2><p>{summary}</p>", method.to_uppercase(), escaped(path));
            let reference = operation.pointer("/requestBody/content/application~1json/schema/$ref");
            let schema = reference.and_then(Value::as_str).and_then(|text| document.pointer(text.strip_prefix('#')?));
            page += &schema.map(fields).unwrap_or_default();
        }
    }
    page
}

fn fields(schema: &Value) -> String {
    let mut table = "<table><tr><th>field<th>values<th>default<th>meaning".to_owned();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let values = field.get("anyOf").and_then(|ways| ways.get(0)).filter(|_| field.get("type").is_none());
        let values = values.unwrap_or(field).as_object().cloned().unwrap_or_default();
        let values: serde_json::Map<_, _> =
            values.into_iter().filter(|(key, _)| key != "description" && key != "default").collect();
        let values = if values.is_empty() { String::new() } else { Value::Object(values).to_string() };
        let default = field.get("default").map(Value::to_string).unwrap_or_default();
        let doc = field["description"].as_str().unwrap_or_default();
        let [name, values, default, doc] = [name, &values, &default, doc].map(escaped);
        let _ =
            write!(table, "<tr><td><code>{name}</code><td><code>{values}</code><td><code>{default}</code><td>{doc}");
    }
    table + "</table>"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
