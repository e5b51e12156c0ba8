//! For operators and probes: is it alive, does it serve, what does it count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::Api;

/// The process runs; says nothing about the workers.
pub(super) async fn health() -> StatusCode {
    StatusCode::OK
}

/// 200 when a canary prompt came back through every connected instance; the body says how each instance is either way.
pub(super) async fn ready(State(api): State<Arc<Api>>) -> Response<Body> {
    let draining = api.draining.load(Ordering::Relaxed);
    let (served, instances) = api.cluster.report();
    let ready = served && !draining;
    let body = json!({
        "ready": ready,
        "draining": draining,
        "requests_in_flight": api.admission.in_flight(),
        "instances": instances,
    });
    let mut response = super::json(&body);
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// Requests in flight.
pub(super) async fn load(State(api): State<Arc<Api>>) -> Response<Body> {
    super::json(&json!({ "server_load": api.admission.in_flight() }))
}

/// How this server is set up, in the frame that vLLM's clients know; `config_format=text` gives the part about the server as a string.
pub(super) async fn server_info(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Response<Body> {
    if !api.server_info {
        return super::not_found().await;
    }
    let (_, instances) = api.cluster.report();
    let limits = openai::Bounds::TABLE.iter().map(|bound| (bound.name, bound.default)).collect::<BTreeMap<_, _>>();
    let config = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "served_model_names": api.served_names,
        "max_model_len": api.max_model_len(),
        "max_concurrent_requests": api.bounds.requests,
        "max_waiting_requests": api.bounds.waiting,
        "request_limits": limits,
        "instances": instances,
    });
    let as_text = query.is_some_and(|query| query.split('&').any(|pair| pair == "config_format=text"));
    let config = if as_text { Value::String(config.to_string()) } else { config };
    super::json(&json!({ "vllm_config": config, "vllm_env": {}, "system_env": {} }))
}

pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response<Body> {
    let mut response = Response::new(Body::from(api.metrics().render()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(telemetry::CONTENT_TYPE));
    response
}

pub(super) async fn version() -> Response<Body> {
    super::json(&json!({ "version": env!("CARGO_PKG_VERSION") }))
}
