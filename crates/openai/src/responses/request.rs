//! What is asked, and what the answer repeats of it.

use serde_json::{Map, Value, json};

use super::items::{plain, read_input};
use crate::check::{Fields, at_most, check_text, wrong};
use crate::fields::find;
use crate::json::parse_object;
use crate::tools::{Form, Tools};
use crate::{ApiError, Bounds, ChatMessage, Conversation, Endpoint, Generation, structured};

/// A request that can be served.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponsesRequest {
    pub generation: Generation,
    /// What was said so far, without the instructions. At least one message.
    pub messages: Vec<ChatMessage>,
    /// `None`: the answer holds no calls.
    pub tools: Option<Tools>,
    /// Id of the answer whose conversation this one goes on with.
    pub previous: Option<String>,
    /// Keep the answer, so that another request can go on from it.
    pub store: bool,
    pub repeated: Repeated,
    instructions: Option<String>,
    /// A list, for the template.
    shown_tools: Option<Value>,
}

/// The fields that an answer repeats.
#[derive(Clone, Debug, PartialEq)]
pub struct Repeated(pub(super) Map<String, Value>);

impl ResponsesRequest {
    /// Parses and validates a body.
    pub fn read(body: &[u8], bounds: &Bounds) -> Result<Self, ApiError> {
        let mut object = parse_object(body, bounds)?;
        // What this endpoint does not know must not reach the code that it shares with others.
        object.retain(|name, _| find(Endpoint::Responses, name).is_some());
        let fields = Fields::check(&object, Endpoint::Responses, bounds)?;
        let mut generation = Generation::read(&fields, bounds)?;
        generation.max_tokens = fields.count("max_output_tokens");
        generation.structured = structured::read_text(&fields, bounds)?;
        let (tools, shown_tools) = Tools::read(&fields, Form::Flat, bounds)?;
        tools.iter().try_for_each(|tools| tools.enforce(&mut generation, bounds))?;
        let instructions = match fields.get("instructions") {
            Some(value) => Some(check_text("instructions", value, bounds.body_bytes)?.to_owned()),
            None => None,
        };
        Ok(Self {
            generation,
            messages: read_input(&fields, bounds)?,
            tools,
            previous: fields.text("previous_response_id").map(str::to_owned),
            store: fields.bool("store").unwrap_or(true),
            repeated: Repeated::read(&fields)?,
            instructions,
            shown_tools,
        })
    }

    /// Puts an earlier conversation in front.
    pub fn go_on_from(&mut self, earlier: &[ChatMessage], bounds: &Bounds) -> Result<(), ApiError> {
        let messages = earlier.len() + self.messages.len();
        at_most("previous_response_id", "messages together with input", messages, bounds.messages)?;
        self.messages.splice(0..0, earlier.iter().cloned());
        Ok(())
    }

    /// What the chat template is given. Instructions hold for one request only, so they are no part of what was said.
    pub fn conversation(&self) -> Conversation {
        let system = self.instructions.clone().map(|text| plain("system", text));
        Conversation {
            messages: system.into_iter().chain(self.messages.iter().cloned()).collect(),
            add_special_tokens: false,
            add_generation_prompt: true,
            continue_final_message: false,
            tools: self.shown_tools.clone(),
            documents: None,
            chat_template: None,
            chat_template_kwargs: Map::new(),
        }
    }
}

impl Repeated {
    fn read(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let metadata = fields.get("metadata").cloned().unwrap_or_else(|| json!({}));
        if !metadata.is_object() {
            return Err(wrong("metadata", "an object", &metadata));
        }
        let said = |name: &str, otherwise: Value| (name.to_owned(), fields.get(name).cloned().unwrap_or(otherwise));
        let repeated = [
            said("instructions", Value::Null),
            said("max_output_tokens", Value::Null),
            ("metadata".to_owned(), metadata),
            said("parallel_tool_calls", json!(true)),
            said("previous_response_id", Value::Null),
            said("store", json!(true)),
            ("temperature".to_owned(), json!(fields.number("temperature").unwrap_or(1.0))),
            said("text", json!({ "format": { "type": "text" } })),
            said("tool_choice", json!("auto")),
            said("tools", json!([])),
            ("top_p".to_owned(), json!(fields.number("top_p").unwrap_or(1.0))),
        ];
        Ok(Self(repeated.into_iter().collect()))
    }
}
