//! A conversation as items, made messages for a chat template: the calls of a turn stand in one message of the assistant, with what it
//! thought and said.

use serde_json::{Map, Value, json};

use crate::chat::read_arguments;
use crate::check::{Fields, at_most, check_text, wrong};
use crate::error::Shown;
use crate::tools::check_name;
use crate::{ApiError, Bounds, ChatMessage};

/// A message that is only text.
pub(super) fn plain(role: &str, text: String) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: Some(text), extra: Map::new() }
}

/// An assistant's message, as far as there is something to it.
pub(super) fn assistant(reasoning: &str, content: &str, calls: Vec<Value>) -> ChatMessage {
    let mut extra = Map::new();
    if !reasoning.is_empty() {
        extra.insert("reasoning_content".to_owned(), Value::from(reasoning));
    }
    if !calls.is_empty() {
        extra.insert("tool_calls".to_owned(), Value::from(calls));
    }
    ChatMessage { role: "assistant".to_owned(), content: (!content.is_empty()).then(|| content.to_owned()), extra }
}

/// A call as chat templates know it; `arguments` is an object.
pub(super) fn call(id: &str, name: &str, arguments: Value) -> Value {
    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
}

pub(super) fn read_input(fields: &Fields<'_>, bounds: &Bounds) -> Result<Vec<ChatMessage>, ApiError> {
    match fields.get("input") {
        None => Err(ApiError::bad_field("input", "input is required")),
        Some(Value::String(text)) => Ok(vec![plain("user", text.clone())]),
        Some(Value::Array(items)) if items.is_empty() => Err(ApiError::bad_field("input", "input must not be empty")),
        Some(Value::Array(items)) => {
            at_most("input", "entries", items.len(), bounds.messages)?;
            let mut turns = Turns { messages: Vec::new(), thoughts: String::new(), bounds };
            for (at, item) in items.iter().enumerate() {
                turns.add(&format!("input[{at}]"), item)?;
            }
            match turns.messages.is_empty() {
                true => Err(ApiError::bad_field("input", "input must hold more than thoughts")),
                false => Ok(turns.messages),
            }
        }
        Some(value) => Err(wrong("input", "a string or a list of items", value)),
    }
}

struct Turns<'a> {
    messages: Vec<ChatMessage>,
    /// For the assistant's next message.
    thoughts: String,
    bounds: &'a Bounds,
}

impl Turns<'_> {
    fn add(&mut self, place: &str, item: &Value) -> Result<(), ApiError> {
        let Value::Object(entries) = item else { return Err(wrong(place, "an object", item)) };
        match entries.get("type").map(Value::as_str) {
            None | Some(Some("message")) => self.message(place, entries),
            Some(Some("function_call")) => self.call(place, entries),
            Some(Some("function_call_output")) => self.output(place, entries),
            Some(Some("reasoning")) => {
                let content = entries.get("content").unwrap_or(&Value::Null);
                self.thoughts =
                    if content.is_null() { String::new() } else { text(&format!("{place}.content"), content)? };
                Ok(())
            }
            Some(kind) => {
                let what = format!("input of type {:?}", Shown::text(kind.unwrap_or_default()));
                Err(ApiError::not_supported(&format!("{place}.type"), &what))
            }
        }
    }

    fn message(&mut self, place: &str, entries: &Map<String, Value>) -> Result<(), ApiError> {
        let role = self.string(&format!("{place}.role"), entries.get("role"))?;
        let content = text(&format!("{place}.content"), entries.get("content").unwrap_or(&Value::Null))?;
        self.messages.push(match role {
            "assistant" => assistant(&std::mem::take(&mut self.thoughts), &content, Vec::new()),
            // The interface's newer word for the same; templates know the older one.
            "developer" => plain("system", content),
            role => plain(role, content),
        });
        Ok(())
    }

    fn call(&mut self, place: &str, entries: &Map<String, Value>) -> Result<(), ApiError> {
        let id = self.string(&format!("{place}.call_id"), entries.get("call_id"))?;
        let name = check_name(&format!("{place}.name"), entries.get("name").unwrap_or(&Value::Null), self.bounds)?;
        let arguments = entries.get("arguments").unwrap_or(&Value::Null);
        let parsed = read_arguments(&format!("{place}.arguments"), arguments, self.bounds)?;
        let call = call(id, name, parsed.unwrap_or_else(|| arguments.clone()));
        match self.messages.last_mut().filter(|last| last.role == "assistant") {
            Some(last) => match last.extra.entry("tool_calls").or_insert_with(|| json!([])) {
                Value::Array(calls) => calls.push(call),
                other => *other = json!([call]),
            },
            None => self.messages.push(assistant(&std::mem::take(&mut self.thoughts), "", vec![call])),
        }
        Ok(())
    }

    fn output(&mut self, place: &str, entries: &Map<String, Value>) -> Result<(), ApiError> {
        let id = self.string(&format!("{place}.call_id"), entries.get("call_id"))?;
        let output = text(&format!("{place}.output"), entries.get("output").unwrap_or(&Value::Null))?;
        let mut message = plain("tool", output);
        message.extra.insert("tool_call_id".to_owned(), Value::from(id));
        self.messages.push(message);
        Ok(())
    }

    fn string<'a>(&self, place: &str, value: Option<&'a Value>) -> Result<&'a str, ApiError> {
        check_text(place, value.unwrap_or(&Value::Null), self.bounds.name_chars)
    }
}

/// A string, or text parts joined by newlines.
fn text(place: &str, value: &Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let parts = parts.iter().enumerate().map(|(at, part)| read_part(&format!("{place}[{at}]"), part));
            Ok(parts.collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        value => Err(wrong(place, "a string or a list of parts", value)),
    }
}

fn read_part<'a>(place: &str, part: &'a Value) -> Result<&'a str, ApiError> {
    match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
        (Some("input_text" | "output_text" | "reasoning_text" | "text"), Some(text)) => Ok(text),
        (Some(kind @ ("input_image" | "input_file" | "input_audio")), _) => {
            Err(ApiError::not_supported(&format!("{place}.type"), &format!("content of type {kind:?}")))
        }
        _ => Err(wrong(place, "an object with type input_text and text", part)),
    }
}
