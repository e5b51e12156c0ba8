//! `GET /v1/models` and `GET /v1/models/{name}`: one card per served name.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use hyper::Response;
use openai::{ApiError, ModelCard, ModelList};

use super::{Api, error, json};

pub(super) async fn list(State(api): State<Arc<Api>>) -> Response<Body> {
    let cards = api.served_names.iter().map(|name| card_of(&api, name)).collect();
    json(&ModelList::new(cards))
}

/// A served name may be a path, so everything after `/v1/models/` is the name.
pub(super) async fn card(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Response<Body> {
    let rooted = format!("/{name}");
    match api.served_names.iter().find(|served| **served == name || **served == rooted) {
        Some(name) => json(&card_of(&api, name)),
        None => error::response(&ApiError::unknown_model(&name, api.served_name())),
    }
}

fn card_of(api: &Api, name: &str) -> ModelCard {
    ModelCard::new(name, api.served_name(), api.started, api.max_model_len())
}
