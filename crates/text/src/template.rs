//! Renders a conversation with the model's own chat template.

use std::path::Path;

use serde_json::{Map, Value};

use crate::Error;

/// One message as templates see it: `extra` holds `name`, `tool_calls`, `tool_call_id` and whatever else the client sent.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Message {
    pub role: String,
    pub content: Option<String>,
    pub extra: Map<String, Value>,
}

/// What else a template may look at.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    pub add_generation_prompt: bool,
    /// Leave the last message open, so that the model goes on with it.
    pub continue_final_message: bool,
    /// JSON as the client sent it.
    pub tools: Option<Value>,
    pub documents: Option<Value>,
    /// Further variables (`chat_template_kwargs`).
    pub variables: Map<String, Value>,
    /// Seconds since the epoch, for `strftime_now` (UTC).
    pub now_unix: u64,
}

/// A compiled chat template. Clones share it.
#[derive(Clone)]
pub struct ChatTemplate {}

impl ChatTemplate {
    /// Reads the template of a model directory; `None` when it has none.
    pub fn load(_model_dir: &Path) -> Result<Option<Self>, Error> {
        unimplemented!()
    }
    /// The prompt text of a conversation.
    pub fn render(&self, _messages: &[Message], _options: &RenderOptions) -> Result<String, Error> {
        unimplemented!()
    }
}
