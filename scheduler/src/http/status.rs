//! For operators and probes: is it alive, does it serve, what does it count.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::State;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::json;

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

pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response<Body> {
    let mut response = Response::new(Body::from(api.metrics().render()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(telemetry::CONTENT_TYPE));
    response
}

pub(super) async fn version() -> Response<Body> {
    super::json(&json!({ "version": env!("CARGO_PKG_VERSION") }))
}
