//! `POST /v1/chat/completions`: a conversation for the model's chat template.

use serde_json::{Map, Value};

use crate::check::{Fields, at_most, check_text, wrong};
use crate::error::Shown;
use crate::json::{self, parse_object};
use crate::tools::{Form, Tools, check_name};
use crate::{ApiError, Bounds, Endpoint, Generation};

/// Template variables that `chat_template_kwargs` may not replace.
const RESERVED: &[&str] = &[
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
    "chat_template",
];

/// A body as it was sent: a JSON object within the bounds on size and nesting.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    fields: Map<String, Value>,
}

/// A chat request that can be served.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidChat {
    pub generation: Generation,
    pub conversation: Conversation,
    /// Answer with the last message's text in front, if that is the assistant's.
    pub echo: bool,
    /// `None`: the answer is text, whatever it looks like.
    pub tools: Option<Tools>,
    /// Show what the model thinks before it answers.
    pub include_reasoning: bool,
}

/// What the chat template makes a prompt of.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// At least one.
    pub messages: Vec<ChatMessage>,
    pub add_special_tokens: bool,
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
    /// A list, for the template.
    pub tools: Option<Value>,
    /// A list, for the template.
    pub documents: Option<Value>,
    /// To be used instead of the model's.
    pub chat_template: Option<String>,
    /// Further template variables; none of the template's own.
    pub chat_template_kwargs: Map<String, Value>,
}

/// One message. List content is joined, nulls are gone, tool-call arguments are objects: as chat templates expect them.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatMessage {
    pub role: String,
    /// `None` only for an assistant.
    pub content: Option<String>,
    /// `name`, `tool_calls`, `tool_call_id` and what else was sent.
    pub extra: Map<String, Value>,
}

impl ChatRequest {
    pub fn parse(body: &[u8], bounds: &Bounds) -> Result<Self, ApiError> {
        Ok(Self { fields: parse_object(body, bounds)? })
    }

    pub fn validate(&self, bounds: &Bounds) -> Result<ValidChat, ApiError> {
        let fields = Fields::check(&self.fields, Endpoint::Chat, bounds)?;
        let mut generation = Generation::read(&fields, bounds)?;
        generation.template.logprobs = read_logprobs(&fields)?;
        let (tools, shown) = Tools::read(&fields, Form::Nested, bounds)?;
        tools.iter().try_for_each(|tools| tools.enforce(&mut generation, bounds))?;
        Ok(ValidChat {
            generation,
            conversation: Conversation::read(&fields, shown, bounds)?,
            echo: fields.bool("echo").unwrap_or(false),
            tools,
            include_reasoning: fields.bool("include_reasoning").unwrap_or(true),
        })
    }
}

impl Conversation {
    pub(crate) fn read(fields: &Fields<'_>, tools: Option<Value>, bounds: &Bounds) -> Result<Self, ApiError> {
        let continue_final_message = fields.bool("continue_final_message").unwrap_or(false);
        let add_generation_prompt = fields.bool("add_generation_prompt");
        if continue_final_message && add_generation_prompt == Some(true) {
            let message = "continue_final_message and add_generation_prompt cannot both be true";
            return Err(ApiError::bad_field("continue_final_message", message));
        }
        Ok(Self {
            messages: read_messages(fields, bounds)?,
            add_special_tokens: fields.bool("add_special_tokens").unwrap_or(false),
            add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
            continue_final_message,
            tools,
            documents: fields
                .list("documents", bounds.documents)?
                .map(|_| fields.get("documents").cloned())
                .unwrap_or_default(),
            chat_template: read_template(fields, bounds)?,
            chat_template_kwargs: read_template_kwargs(fields, bounds)?,
        })
    }
}

fn read_logprobs(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let top = fields.count("top_logprobs").unwrap_or(0);
    if fields.bool("logprobs").unwrap_or(false) {
        return Ok(Some(top));
    }
    match top {
        0 => Ok(None),
        _ => Err(ApiError::bad_field("top_logprobs", "top_logprobs needs logprobs to be true")),
    }
}

fn read_messages(fields: &Fields<'_>, bounds: &Bounds) -> Result<Vec<ChatMessage>, ApiError> {
    let items = fields
        .list("messages", bounds.messages)?
        .ok_or_else(|| ApiError::bad_field("messages", "messages is required"))?;
    if items.is_empty() {
        return Err(ApiError::bad_field("messages", "messages must not be empty"));
    }
    items.iter().enumerate().map(|(at, item)| read_message(&format!("messages[{at}]"), item, bounds)).collect()
}

fn read_message(place: &str, item: &Value, bounds: &Bounds) -> Result<ChatMessage, ApiError> {
    let Value::Object(entries) = item else { return Err(wrong(place, "an object", item)) };
    let role = check_text(&format!("{place}.role"), entries.get("role").unwrap_or(&Value::Null), bounds.name_chars)?;
    let content = read_content(&format!("{place}.content"), entries.get("content").unwrap_or(&Value::Null))?;
    if content.is_none() && role != "assistant" {
        return Err(ApiError::bad_field(
            format!("{place}.content"),
            format!("{place}.content is required for the role {}", Shown::text(role)),
        ));
    }
    let mut extra = entries.clone();
    extra.retain(|key, value| key != "role" && key != "content" && !value.is_null());
    read_tool_calls(place, &mut extra, bounds)?;
    // Two words for the same; templates know the older one.
    if let Some(reasoning) = extra.get("reasoning").filter(|_| !extra.contains_key("reasoning_content")).cloned() {
        extra.insert("reasoning_content".to_owned(), reasoning);
    }
    Ok(ChatMessage { role: role.to_owned(), content, extra })
}

/// A string, or text parts joined by newlines.
fn read_content(place: &str, value: &Value) -> Result<Option<String>, ApiError> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Array(parts) => {
            let texts = parts.iter().enumerate().map(|(at, part)| read_part(&format!("{place}[{at}]"), part));
            Ok(Some(texts.collect::<Result<Vec<_>, _>>()?.join("\n")))
        }
        _ => Err(wrong(place, "a string or a list of parts", value)),
    }
}

fn read_part<'a>(place: &str, part: &'a Value) -> Result<&'a str, ApiError> {
    match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
        (Some("text"), Some(text)) => Ok(text),
        (Some("text"), None) => {
            Err(wrong(&format!("{place}.text"), "a string", part.get("text").unwrap_or(&Value::Null)))
        }
        (Some(kind), _) => {
            Err(ApiError::not_supported(&format!("{place}.type"), &format!("content of type {:?}", Shown::text(kind))))
        }
        (None, _) => Err(wrong(place, "an object with a type", part)),
    }
}

/// Templates write arguments as JSON themselves, so the JSON text of a call becomes an object here.
fn read_tool_calls(place: &str, extra: &mut Map<String, Value>, bounds: &Bounds) -> Result<(), ApiError> {
    let Some(value) = extra.get_mut("tool_calls") else { return Ok(()) };
    let place = format!("{place}.tool_calls");
    let Value::Array(calls) = value else { return Err(wrong(&place, "a list", value)) };
    at_most(&place, "entries", calls.len(), bounds.tools)?;
    for (at, call) in calls.iter_mut().enumerate() {
        let place = format!("{place}[{at}].function");
        let Some(Value::Object(function)) = call.get_mut("function") else {
            return Err(wrong(&place, "an object", call.get("function").unwrap_or(&Value::Null)));
        };
        check_name(&format!("{place}.name"), function.get("name").unwrap_or(&Value::Null), bounds)?;
        let arguments = function.entry("arguments").or_insert(Value::Null);
        if let Some(object) = read_arguments(&format!("{place}.arguments"), arguments, bounds)? {
            *arguments = object;
        }
    }
    if calls.is_empty() {
        extra.shift_remove("tool_calls");
    }
    Ok(())
}

/// The object of arguments written as JSON text; `None` if they are one already. Nothing at all is an empty one.
pub(crate) fn read_arguments(place: &str, value: &Value, bounds: &Bounds) -> Result<Option<Value>, ApiError> {
    let text = match value {
        Value::Object(_) => return Ok(None),
        Value::Null => "",
        Value::String(text) => text.trim(),
        _ => return Err(wrong(place, "a string that holds a JSON object", value)),
    };
    let text = if text.is_empty() { "{}" } else { text };
    let object = json::parse(text.as_bytes(), bounds)
        .map_err(|error| ApiError::bad_field(place, format!("{place}: {error}")))?;
    match object.is_object() {
        true => Ok(Some(object)),
        false => Err(wrong(place, "a string that holds a JSON object", &object)),
    }
}

fn read_template(fields: &Fields<'_>, bounds: &Bounds) -> Result<Option<String>, ApiError> {
    const NAME: &str = "chat_template";
    let Some(value) = fields.get(NAME) else { return Ok(None) };
    let Value::String(template) = value else { return Err(wrong(NAME, "a string", value)) };
    at_most(NAME, "bytes", template.len(), bounds.chat_template_bytes)?;
    Ok(Some(template.clone()))
}

fn read_template_kwargs(fields: &Fields<'_>, bounds: &Bounds) -> Result<Map<String, Value>, ApiError> {
    const NAME: &str = "chat_template_kwargs";
    let Some(value) = fields.get(NAME) else { return Ok(Map::new()) };
    let Value::Object(entries) = value else { return Err(wrong(NAME, "an object", value)) };
    at_most(NAME, "bytes", value.to_string().len(), bounds.chat_template_kwargs_bytes)?;
    if let Some(name) = RESERVED.iter().find(|name| entries.contains_key(**name)) {
        return Err(ApiError::bad_field(NAME, format!("{NAME} must not replace the template's own variable {name}")));
    }
    Ok(entries.clone())
}
