//! Builds the answer from its parts, item by item. Events tell of every step and count themselves.

use serde_json::{Value, json};

use super::items::{assistant, call};
use super::request::Repeated;
use crate::{ApiError, ChatMessage, ChatPart, Finish, Head, Usage};

/// An answer that grows.
#[derive(Clone, Debug)]
pub struct Responding {
    head: Head,
    repeated: Repeated,
    items: Vec<Item>,
    /// Whether the last item goes on.
    open: bool,
    finish: Option<Finish>,
    sequence_number: u64,
}

#[derive(Clone, Debug)]
enum Item {
    Reasoning(String),
    Message(String),
    Call { id: String, name: String, arguments: String },
}

impl Item {
    /// What its `content` holds, if it is of a kind that has one.
    fn part(&self) -> Option<Value> {
        match self {
            Self::Reasoning(text) => Some(json!({ "type": "reasoning_text", "text": text })),
            Self::Message(text) => {
                Some(json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] }))
            }
            Self::Call { .. } => None,
        }
    }
}

impl Responding {
    pub fn new(head: Head, repeated: Repeated) -> Self {
        Self { head, repeated, items: Vec::new(), open: false, finish: None, sequence_number: 0 }
    }

    /// The events before the first part.
    pub fn opening(&mut self) -> String {
        let empty = self.response("in_progress", Vec::new(), Value::Null);
        let created = self.event("response.created", json!({ "response": empty }));
        created + &self.event("response.in_progress", json!({ "response": empty }))
    }

    /// Takes what came; the events for it.
    pub fn add(&mut self, parts: Vec<ChatPart>, finish: Option<Finish>) -> String {
        self.finish = finish.or(self.finish.take());
        parts.into_iter().map(|part| self.part(part)).collect()
    }

    /// Takes the end; the events for it. An answer has at least one item.
    pub fn close(&mut self, usage: Usage) -> String {
        let mut events = String::new();
        if self.items.is_empty() {
            events += &self.begin(Item::Message(String::new()));
        }
        events += &self.end_item(self.status());
        let last = if self.status() == "incomplete" { "response.incomplete" } else { "response.completed" };
        let response = self.body(usage);
        events + &self.event(last, json!({ "response": response }))
    }

    /// The event for an error inside a running stream.
    pub fn fail(&mut self, error: &ApiError) -> String {
        let mut response = self.response("failed", self.output("incomplete"), Value::Null);
        response["error"] = json!({ "code": "server_error", "message": error.message });
        self.event("response.failed", json!({ "response": response }))
    }

    /// The answer as it is when it has been closed.
    pub fn body(&self, usage: Usage) -> Value {
        let reasoning = usage.completion_tokens_details.unwrap_or_default().reasoning_tokens;
        let usage = json!({
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": { "cached_tokens": usage.prompt_tokens_details.cached_tokens },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": { "reasoning_tokens": reasoning },
            "total_tokens": usage.total_tokens,
        });
        self.response(self.status(), self.output(self.status()), usage)
    }

    /// The answer as a message of the conversation.
    pub fn message(&self) -> ChatMessage {
        let (mut reasoning, mut content, mut calls) = (String::new(), String::new(), Vec::new());
        for item in &self.items {
            match item {
                Item::Reasoning(text) => reasoning.push_str(text),
                Item::Message(text) => content.push_str(text),
                Item::Call { id, name, arguments } => {
                    calls.push(call(id, name, serde_json::from_str(arguments).unwrap_or_else(|_| json!({}))));
                }
            }
        }
        assistant(&reasoning, &content, calls)
    }

    fn part(&mut self, part: ChatPart) -> String {
        match (part, self.items.last_mut().filter(|_| self.open)) {
            (ChatPart::Content(text) | ChatPart::Reasoning(text), _) if text.is_empty() => String::new(),
            (ChatPart::Reasoning(more), Some(Item::Reasoning(text))) => {
                text.push_str(&more);
                self.event_in_item("response.reasoning_text.delta", json!({ "content_index": 0, "delta": more }))
            }
            (ChatPart::Content(more), Some(Item::Message(text))) => {
                text.push_str(&more);
                let delta = json!({ "content_index": 0, "delta": more, "logprobs": [] });
                self.event_in_item("response.output_text.delta", delta)
            }
            (ChatPart::Arguments { text: more, .. }, Some(Item::Call { arguments, .. })) => {
                arguments.push_str(&more);
                self.event_in_item("response.function_call_arguments.delta", json!({ "delta": more }))
            }
            // Arguments always follow their call.
            (ChatPart::Arguments { .. }, _) => String::new(),
            (ChatPart::Call { id, name, .. }, _) => self.begin(Item::Call { id, name, arguments: String::new() }),
            (part @ ChatPart::Reasoning(_), _) => self.begin(Item::Reasoning(String::new())) + &self.part(part),
            (part @ ChatPart::Content(_), _) => self.begin(Item::Message(String::new())) + &self.part(part),
        }
    }

    fn begin(&mut self, item: Item) -> String {
        let ended = self.end_item("completed");
        let (at, part) = (self.items.len(), item.part());
        let mut shown = self.shown(at, &item, "in_progress");
        if shown["content"].is_array() {
            shown["content"] = json!([]);
        }
        self.items.push(item);
        self.open = true;
        let added = self.event("response.output_item.added", json!({ "output_index": at, "item": shown }));
        let part = part
            .map(|part| self.event_in_item("response.content_part.added", json!({ "content_index": 0, "part": part })));
        ended + &added + &part.unwrap_or_default()
    }

    /// The events that close the open item, if one is.
    fn end_item(&mut self, status: &str) -> String {
        let Some(item) = self.items.last().filter(|_| self.open) else { return String::new() };
        let (at, part) = (self.items.len() - 1, item.part());
        let shown = self.shown(at, item, status);
        let (kind, data) = match item {
            Item::Reasoning(text) => ("response.reasoning_text.done", json!({ "content_index": 0, "text": text })),
            Item::Message(text) => {
                ("response.output_text.done", json!({ "content_index": 0, "text": text, "logprobs": [] }))
            }
            Item::Call { name, arguments, .. } => {
                ("response.function_call_arguments.done", json!({ "name": name, "arguments": arguments }))
            }
        };
        self.open = false;
        let mut events = self.event_in_item(kind, data);
        if let Some(part) = part {
            let data = json!({ "content_index": 0, "part": part });
            events += &self.event_in_item("response.content_part.done", data);
        }
        events + &self.event("response.output_item.done", json!({ "output_index": at, "item": shown }))
    }

    fn shown(&self, at: usize, item: &Item, status: &str) -> Value {
        let id = self.item_id(at, item);
        match item {
            Item::Reasoning(_) => json!({
                "type": "reasoning", "id": id, "status": status, "summary": [], "content": [item.part()],
            }),
            Item::Message(_) => json!({
                "type": "message", "id": id, "role": "assistant", "status": status, "content": [item.part()],
            }),
            Item::Call { id: call_id, name, arguments } => json!({
                "type": "function_call", "id": id, "call_id": call_id, "name": name, "arguments": arguments, "status": status,
            }),
        }
    }

    fn item_id(&self, at: usize, item: &Item) -> String {
        let kind = match item {
            Item::Reasoning(_) => "rs",
            Item::Message(_) => "msg",
            Item::Call { .. } => "fc",
        };
        format!("{kind}_{}_{at}", self.head.id.trim_start_matches("resp_"))
    }

    /// All items; `status` is the last one's.
    fn output(&self, status: &str) -> Vec<Value> {
        let last = self.items.len().saturating_sub(1);
        let status = |at| if at == last { status } else { "completed" };
        self.items.iter().enumerate().map(|(at, item)| self.shown(at, item, status(at))).collect()
    }

    fn status(&self) -> &'static str {
        let whole = self.finish.as_ref().is_some_and(|finish| ["stop", "tool_calls"].contains(&finish.reason()));
        if whole { "completed" } else { "incomplete" }
    }

    /// An event that says which item it is about: the last one.
    fn event_in_item(&mut self, kind: &str, mut data: Value) -> String {
        if let Some((at, item)) = self.items.iter().enumerate().next_back() {
            data["item_id"] = Value::from(self.item_id(at, item));
            data["output_index"] = Value::from(at);
        }
        self.event(kind, data)
    }

    fn event(&mut self, kind: &str, mut data: Value) -> String {
        data["type"] = Value::from(kind);
        data["sequence_number"] = Value::from(self.sequence_number);
        self.sequence_number += 1;
        format!("event: {kind}\ndata: {data}\n\n")
    }

    fn response(&self, status: &str, output: Vec<Value>, usage: Value) -> Value {
        let incomplete = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
        let mut response = json!({
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": incomplete,
            "model": self.head.model,
            "output": output,
            "service_tier": null,
            "truncation": "disabled",
            "usage": usage,
        });
        for (name, value) in &self.repeated.0 {
            response[name] = value.clone();
        }
        response
    }
}
