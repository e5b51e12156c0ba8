//! The door: routes, what all of them share, and what happens around each request.

mod body;
mod chat;
mod completions;
mod docs;
mod embeddings;
mod error;
mod generate;
mod keys;
mod models;
mod plain;
mod reading;
mod responses;
mod sse;
mod status;
mod tokenize;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::routing::{get, post};
use futures::FutureExt;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use hyper::{Request, Response, Uri, Version};
use openai::{ApiError, ErrorKind, ModelFacts};
use serde::Serialize;
use telemetry::SchedulerMetrics;
use text::{ChatTemplate, Grammars, Tokenizer};
use tokio::sync::Semaphore;
use tower::ServiceExt;
use tower_http::cors::CorsLayer;
use tracing::error;
use types::Pooling;

use crate::admission::Admission;
use crate::bounds::Bounds;
use crate::cluster::Cluster;
use crate::config::Protocol;
use crate::stored::Stored;

use keys::Key;
pub(crate) use keys::Keys;
pub(crate) use reading::Dialect;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What every handler needs.
pub(crate) struct Api {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) grammars: Grammars,
    pub(crate) template: Option<ChatTemplate>,
    /// Requests may bring a template of their own.
    pub(crate) trust_request_chat_template: bool,
    pub(crate) dialect: Dialect,
    pub(crate) stored: Stored,
    pub(crate) served_names: Vec<String>,
    /// How `/v1/embeddings` makes a vector of a text.
    pub(crate) pooling: Pooling,
    /// From the flags and config.json; the workers' word is added when they are there.
    pub(crate) model_len_max: Option<u32>,
    pub(crate) bounds: Bounds,
    /// Bytes of large bodies that may still arrive.
    pub(crate) arriving: Semaphore,
    pub(crate) protocol: Protocol,
    pub(crate) keys: Keys,
    /// Whether `/server_info` answers.
    pub(crate) server_info: bool,
    /// Unix seconds.
    pub(crate) started: u64,
    pub(crate) draining: AtomicBool,
}

/// Who asks.
#[derive(Clone, Debug)]
struct Caller {
    /// Id of the request being handled, as its response header says it.
    id: String,
    /// The account it runs on, where keys are asked for.
    key: Option<Arc<Key>>,
}

/// Every route of an [`Api`], made once and shared by all connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Routes {
    router: axum::Router,
    url_bytes_max: usize,
}

impl Routes {
    pub(crate) fn new(api: Arc<Api>) -> Self {
        Self { url_bytes_max: api.bounds.url_bytes, router: routes(api) }
    }
}

/// Handles one request to its response. A panic ends only this request.
pub(crate) async fn answer(routes: Routes, mut request: Request<Body>) -> Response<Body> {
    let id = client_id(request.headers().get(REQUEST_ID));
    request.extensions_mut().insert(Caller { id: id.clone(), key: None });
    let ends = ends_connection(&request);
    let Routes { router, url_bytes_max } = routes;
    let routed = async {
        if url_bytes(request.uri()) > url_bytes_max {
            let message = format!("the URL is longer than the {url_bytes_max} bytes allowed");
            return Ok(error::response(&ApiError::new(ErrorKind::UrlTooLong, message)));
        }
        router.oneshot(request).await
    };
    let response = AssertUnwindSafe(routed).catch_unwind().await;
    let mut response = match response {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            error!(request_id = id, "a handler panicked");
            error::response(&ApiError::new(ErrorKind::Internal, "internal error"))
        }
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    if ends {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Where someone in front of us may see another end of this request than we do, nothing after it is taken for a request: not all
/// agree on chunks beside a length, or on what follows an upgrade.
fn ends_connection(request: &Request<Body>) -> bool {
    let doubtful = [TRANSFER_ENCODING, UPGRADE].iter().any(|name| request.headers().contains_key(name));
    doubtful && request.version() <= Version::HTTP_11
}

fn routes(api: Arc<Api>) -> axum::Router {
    let routes = match api.protocol {
        Protocol::OpenAi => openai_routes(),
        Protocol::Plain { .. } => axum::Router::new().route("/generate", post(plain::create)),
    };
    routes
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .route("/metrics", get(status::metrics))
        .route("/metrics/", get(status::metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(api.clone(), keys::guard))
        // Chat pages are served from elsewhere; there are no cookies to protect.
        .layer(CorsLayer::permissive())
        .with_state(api)
}

fn openai_routes() -> axum::Router<Arc<Api>> {
    axum::Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::card))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", get(responses::read).delete(responses::delete))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/ping", get(status::health).post(status::health))
        .route("/load", get(status::load))
        .route("/server_info", get(status::server_info))
        .route("/version", get(status::version))
        .route("/openapi.json", get(docs::document))
        .route("/docs", get(docs::page))
}

async fn not_found() -> Response<Body> {
    error::response(&ApiError::new(ErrorKind::NotFound, "no such path"))
}

async fn method_not_allowed() -> Response<Body> {
    error::response(&ApiError::new(ErrorKind::MethodNotAllowed, "this path does not take that method"))
}

impl Api {
    /// What prompts are checked against. The workers' word wins once one is there.
    fn facts(&self) -> ModelFacts {
        let model = self.cluster.model();
        let reported = model.as_ref().map(|model| model.max_model_len);
        let max_model_len = [self.model_len_max, reported].into_iter().flatten().min().unwrap_or(u32::MAX);
        let vocab_size = model.map_or(self.tokenizer.vocab_size() as u32, |model| model.vocab_size);
        ModelFacts { vocab_size, max_model_len }
    }

    /// The context's length, as soon as someone has said it.
    fn max_model_len(&self) -> Option<u32> {
        Some(self.facts().max_model_len).filter(|&len| len != u32::MAX)
    }

    /// The name that responses say.
    fn served_name(&self) -> &str {
        self.served_names.first().map_or("", String::as_str)
    }

    fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if !self.served_names.iter().any(|name| name == asked) => {
                Err(ApiError::unknown_model(asked, self.served_name()))
            }
            _ => Ok(()),
        }
    }

    fn metrics(&self) -> &SchedulerMetrics {
        self.cluster.metrics()
    }

    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

/// Path and query, which is all that HTTP/1 sends.
fn url_bytes(uri: &Uri) -> usize {
    uri.path_and_query().map_or(0, |sent| sent.as_str().len())
}

fn json(body: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(body) {
        Ok(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(_) => error::response(&ApiError::new(ErrorKind::Internal, "internal error")),
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A random id that needs no word with the system.
fn unique_id() -> String {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid().simple().to_string()
}

/// Characters of a client's own id that are kept.
const CLIENT_ID_CHARS: usize = 64;

/// The client's own id as far as it is harmless, or a new one.
fn client_id(header: Option<&HeaderValue>) -> String {
    let harmless = |c: &char| c.is_ascii_alphanumeric() || "-_.:".contains(*c);
    let sent: String = header
        .and_then(|value| value.to_str().ok())
        .map(|text| text.chars().filter(harmless).take(CLIENT_ID_CHARS).collect())
        .unwrap_or_default();
    if sent.is_empty() { unique_id() } else { sent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_id_is_kept_as_far_as_it_is_harmless() {
        let check = |sent: &'static str, expected: &str| {
            assert_eq!(client_id(Some(&HeaderValue::from_static(sent))), expected);
        };
        check("abc-1_2.3:4", "abc-1_2.3:4");
        check("a b/c#d\"e", "abcde");
        let long = HeaderValue::from_str(&"x".repeat(1000)).unwrap();
        assert_eq!(client_id(Some(&long)).len(), CLIENT_ID_CHARS);
        assert_eq!(client_id(Some(&HeaderValue::from_static("###"))).len(), 32, "a new one");
        assert_ne!(client_id(None), client_id(None));
    }
}
