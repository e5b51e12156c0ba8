//! `POST /v1/responses`, the text subset: input in, one message out, whole or as named events. Nothing is stored.

use serde_json::{Map, Value, json};

use crate::check::{Fields, at_most, check_text, wrong};
use crate::error::Shown;
use crate::fields::find;
use crate::json::parse_object;
use crate::structured;
use crate::{ApiError, Bounds, ChatMessage, Conversation, Endpoint, Finish, Generation, Head, Usage};

/// A request that can be served.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponsesRequest {
    pub generation: Generation,
    pub conversation: Conversation,
    /// What the answer repeats of the request.
    pub repeated: Repeated,
}

/// Part of [`ResponsesRequest`].
#[derive(Clone, Debug, PartialEq)]
pub struct Repeated {
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    temperature: f64,
    top_p: f64,
    format: Value,
}

impl ResponsesRequest {
    /// Parses and validates a body.
    pub fn read(body: &[u8], bounds: &Bounds) -> Result<Self, ApiError> {
        let mut object = parse_object(body, bounds)?;
        // What this endpoint does not know must not reach the code that it shares with others.
        object.retain(|name, _| find(Endpoint::Responses, name).is_some());
        let fields = Fields::check(&object, Endpoint::Responses, bounds)?;
        check_tool_choice(&fields)?;
        let mut generation = Generation::read(&fields, bounds)?;
        generation.max_tokens = fields.count("max_output_tokens");
        generation.structured = structured::read_text(&fields, bounds)?;
        let instructions = match fields.get("instructions") {
            Some(value) => Some(check_text("instructions", value, bounds.body_bytes)?.to_owned()),
            None => None,
        };
        let system = instructions.clone().map(|text| plain_message("system", text));
        let repeated = Repeated {
            instructions,
            max_output_tokens: generation.max_tokens,
            temperature: fields.number("temperature").unwrap_or(1.0),
            top_p: fields.number("top_p").unwrap_or(1.0),
            format: fields
                .get("text")
                .and_then(|text| text.get("format"))
                .filter(|format| !format.is_null())
                .cloned()
                .unwrap_or_else(|| json!({ "type": "text" })),
        };
        let conversation = Conversation {
            chat_template: None,
            messages: system.into_iter().chain(read_input(&fields, bounds)?).collect(),
            add_special_tokens: false,
            add_generation_prompt: true,
            continue_final_message: false,
            tools: None,
            documents: None,
            chat_template_kwargs: Map::new(),
        };
        Ok(Self { generation, conversation, repeated })
    }
}

fn plain_message(role: &str, text: String) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: Some(text), extra: Map::new() }
}

fn check_tool_choice(fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.get("tool_choice").map(Value::as_str) {
        None | Some(Some("auto" | "none")) => Ok(()),
        Some(_) => Err(ApiError::not_supported("tool_choice", "calling tools")),
    }
}

fn read_input(fields: &Fields<'_>, bounds: &Bounds) -> Result<Vec<ChatMessage>, ApiError> {
    match fields.get("input") {
        None => Err(ApiError::bad_field("input", "input is required")),
        Some(Value::String(text)) => Ok(vec![plain_message("user", text.clone())]),
        Some(Value::Array(items)) if items.is_empty() => Err(ApiError::bad_field("input", "input must not be empty")),
        Some(Value::Array(items)) => {
            at_most("input", "entries", items.len(), bounds.messages)?;
            items.iter().enumerate().map(|(at, item)| read_item(&format!("input[{at}]"), item, bounds)).collect()
        }
        Some(value) => Err(wrong("input", "a string or a list of messages", value)),
    }
}

fn read_item(place: &str, item: &Value, bounds: &Bounds) -> Result<ChatMessage, ApiError> {
    let Value::Object(entries) = item else { return Err(wrong(place, "an object", item)) };
    match entries.get("type").map(Value::as_str) {
        None | Some(Some("message")) => {}
        Some(kind) => {
            let what = format!("input of type {:?}", Shown::text(kind.unwrap_or_default()));
            return Err(ApiError::not_supported(&format!("{place}.type"), &what));
        }
    }
    let role = check_text(&format!("{place}.role"), entries.get("role").unwrap_or(&Value::Null), bounds.name_chars)?;
    // The interface's newer word for the same; templates know the older one.
    let role = if role == "developer" { "system" } else { role };
    let content = format!("{place}.content");
    let text = match entries.get("content").unwrap_or(&Value::Null) {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let parts = parts.iter().enumerate().map(|(at, part)| read_part(&format!("{content}[{at}]"), part));
            parts.collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        value => return Err(wrong(&content, "a string or a list of parts", value)),
    };
    Ok(plain_message(role, text))
}

fn read_part<'a>(place: &str, part: &'a Value) -> Result<&'a str, ApiError> {
    match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
        (Some("input_text" | "output_text" | "text"), Some(text)) => Ok(text),
        (Some(kind @ ("input_image" | "input_file" | "input_audio")), _) => {
            Err(ApiError::not_supported(&format!("{place}.type"), &format!("content of type {kind:?}")))
        }
        _ => Err(wrong(place, "an object with type input_text and text", part)),
    }
}

/// Builds the answer, whole or as events; the events count themselves.
#[derive(Clone, Debug)]
pub struct Responding {
    head: Head,
    repeated: Repeated,
    text: String,
    finish: Option<Finish>,
    sequence_number: u64,
}

impl Responding {
    pub fn new(head: Head, repeated: Repeated) -> Self {
        Self { head, repeated, text: String::new(), finish: None, sequence_number: 0 }
    }

    /// Takes what came, without an event.
    pub fn add(&mut self, text: &str, finish: Option<Finish>) {
        self.text.push_str(text);
        self.finish = finish.or(self.finish.take());
    }

    /// The finished answer.
    pub fn body(&self, usage: Usage) -> Value {
        self.response(self.status(), vec![self.message(self.status())], self.usage(usage))
    }

    /// The events before the first text.
    pub fn opening(&mut self) -> String {
        let empty = self.response("in_progress", Vec::new(), Value::Null);
        let item = json!({ "type": "message", "id": self.message_id(), "role": "assistant", "status": "in_progress", "content": [] });
        let part = self.at_part(json!({ "part": part("") }));
        [
            self.event("response.created", json!({ "response": empty })),
            self.event("response.in_progress", json!({ "response": empty })),
            self.event("response.output_item.added", json!({ "output_index": 0, "item": item })),
            self.event("response.content_part.added", part),
        ]
        .concat()
    }

    /// The event for more text; none for no text.
    pub fn delta(&mut self, text: &str, finish: Option<Finish>) -> String {
        self.add(text, finish);
        if text.is_empty() {
            return String::new();
        }
        let delta = self.at_part(json!({ "delta": text, "logprobs": [] }));
        self.event("response.output_text.delta", delta)
    }

    /// The events after the last text.
    pub fn closing(&mut self, usage: Usage) -> String {
        let whole = self.at_part(json!({ "text": self.text, "logprobs": [] }));
        let part = self.at_part(json!({ "part": part(&self.text) }));
        let (item, response) = (self.message(self.status()), self.body(usage));
        let last = if self.status() == "incomplete" { "response.incomplete" } else { "response.completed" };
        [
            self.event("response.output_text.done", whole),
            self.event("response.content_part.done", part),
            self.event("response.output_item.done", json!({ "output_index": 0, "item": item })),
            self.event(last, json!({ "response": response })),
        ]
        .concat()
    }

    /// The event for an error inside a running stream.
    pub fn failed(&mut self, error: &ApiError) -> String {
        let mut response = self.response("failed", vec![self.message("incomplete")], Value::Null);
        response["error"] = json!({ "code": "server_error", "message": error.message });
        self.event("response.failed", json!({ "response": response }))
    }

    fn status(&self) -> &'static str {
        let whole = self.finish.as_ref().is_some_and(|finish| finish.reason() == "stop");
        if whole { "completed" } else { "incomplete" }
    }

    fn message_id(&self) -> String {
        format!("msg_{}", self.head.id.trim_start_matches("resp_"))
    }

    fn message(&self, status: &str) -> Value {
        json!({ "type": "message", "id": self.message_id(), "role": "assistant", "status": status, "content": [part(&self.text)] })
    }

    /// Where the one part of the one message stands.
    fn at_part(&self, mut event: Value) -> Value {
        event["item_id"] = Value::from(self.message_id());
        event["output_index"] = Value::from(0);
        event["content_index"] = Value::from(0);
        event
    }

    fn event(&mut self, kind: &str, mut data: Value) -> String {
        data["type"] = Value::from(kind);
        data["sequence_number"] = Value::from(self.sequence_number);
        self.sequence_number += 1;
        format!("event: {kind}\ndata: {data}\n\n")
    }

    fn usage(&self, usage: Usage) -> Value {
        json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": { "cached_tokens": usage.prompt_tokens_details.cached_tokens },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": usage.total_tokens,
        })
    }

    fn response(&self, status: &str, output: Vec<Value>, usage: Value) -> Value {
        let Repeated { instructions, max_output_tokens, temperature, top_p, format } = &self.repeated;
        let incomplete = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
        json!({
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": incomplete,
            "instructions": instructions,
            "max_output_tokens": max_output_tokens,
            "metadata": {},
            "model": self.head.model,
            "output": output,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "service_tier": null,
            "store": false,
            "temperature": temperature,
            "text": { "format": format },
            "tool_choice": "auto",
            "tools": [],
            "top_p": top_p,
            "truncation": "disabled",
            "usage": usage,
        })
    }
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}
