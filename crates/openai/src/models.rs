//! `GET /v1/models` and `GET /v1/models/{id}`.

use serde::Serialize;

/// The list of served models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelList {
    object: &'static str,
    pub data: Vec<ModelCard>,
}

/// One served name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelCard {
    pub id: String,
    object: &'static str,
    /// Unix seconds.
    pub created: u64,
    owned_by: &'static str,
    pub root: String,
    parent: Option<String>,
    pub max_model_len: Option<u32>,
    permission: [Permission; 1],
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Permission {
    id: String,
    object: &'static str,
    created: u64,
    allow_create_engine: bool,
    allow_sampling: bool,
    allow_logprobs: bool,
    allow_search_indices: bool,
    allow_view: bool,
    allow_fine_tuning: bool,
    organization: &'static str,
    group: Option<String>,
    is_blocking: bool,
}

impl ModelList {
    pub fn new(data: Vec<ModelCard>) -> Self {
        Self { object: "list", data }
    }
}

impl ModelCard {
    /// `root` names the model behind the served name; `None` for `max_model_len` until a worker has registered.
    pub fn new(name: &str, root: &str, created: u64, max_model_len: Option<u32>) -> Self {
        let permission = Permission {
            id: format!("modelperm-{name}"),
            object: "model_permission",
            created,
            allow_create_engine: false,
            allow_sampling: true,
            allow_logprobs: true,
            allow_search_indices: false,
            allow_view: true,
            allow_fine_tuning: false,
            organization: "*",
            group: None,
            is_blocking: false,
        };
        Self {
            id: name.to_owned(),
            object: "model",
            created,
            owned_by: "pdserve",
            root: root.to_owned(),
            parent: None,
            max_model_len,
            permission: [permission],
        }
    }
}
