//! Functions that the model may call: what a request offers, and the schema of a call that it insists on.

use serde_json::{Map, Value, json};

use crate::check::{Fields, at_most, check_text, wrong};
use crate::error::Shown;
use crate::{ApiError, Bounds, Generation, structured};

/// The functions of a request that allows calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    /// At least one; no name comes twice.
    pub functions: Vec<Function>,
    pub choice: ToolChoice,
    /// Whether one answer may hold several calls.
    pub parallel: bool,
}

/// What a client can run for the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    pub name: String,
    /// JSON schema of its arguments.
    parameters: Option<Value>,
}

/// Whether the model has to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    Auto,
    /// At least one function.
    Required,
    /// This one, once.
    Named(String),
}

/// Where the fields of a function stand in its tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Chat: `{"type": "function", "function": {"name": ...}}`.
    Nested,
    /// Responses: `{"type": "function", "name": ...}`.
    Flat,
}

impl Tools {
    /// What may be called, and the list for the chat template (in the nested form). No calls are read under `tool_choice` none, but the
    /// model is shown the tools all the same.
    pub(crate) fn read(
        fields: &Fields<'_>,
        form: Form,
        bounds: &Bounds,
    ) -> Result<(Option<Self>, Option<Value>), ApiError> {
        let choice = fields.get("tool_choice");
        let Some(listed) = list_tools(fields, form, bounds)? else {
            return match choice.map(Value::as_str) {
                None | Some(Some("none" | "auto")) => Ok((None, None)),
                Some(_) => Err(ApiError::bad_field("tool_choice", "tool_choice needs tools")),
            };
        };
        let read = |(at, tool)| read_tool(&format!("tools[{at}]"), tool, form, bounds);
        let (functions, shown): (Vec<_>, Vec<_>) =
            listed.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        check_names(&functions)?;
        let choice = read_choice(choice, &functions, form)?;
        let parallel = fields.bool("parallel_tool_calls").unwrap_or(true);
        Ok((choice.map(|choice| Self { functions, choice, parallel }), Some(Value::from(shown))))
    }

    /// Holds the text to the calls that the client insists on: a JSON list of `{"name", "parameters"}`, or the arguments of the one
    /// function that was named. A model writes that as well as its own format, since nothing else is possible.
    pub(crate) fn enforce(&self, generation: &mut Generation, bounds: &Bounds) -> Result<(), ApiError> {
        let schema = match &self.choice {
            ToolChoice::Auto => return Ok(()),
            ToolChoice::Required => self.list_schema(),
            ToolChoice::Named(name) => {
                let function = self.functions.iter().find(|function| function.name == *name);
                function.map_or_else(no_arguments, Function::schema)
            }
        };
        if let Some(other) = &generation.structured {
            let message =
                format!("tool_choice insists on a call, so {} cannot ask for another form of the text", other.field);
            return Err(ApiError::bad_field("tool_choice", message));
        }
        generation.structured = structured::json_schema("tools", &schema, bounds)?;
        Ok(())
    }

    /// Every function's schema moves into `$defs`, and its references with it.
    fn list_schema(&self) -> Value {
        let moved = |(at, function): (usize, &Function)| {
            let key = format!("f{at}");
            let mut schema = function.schema();
            rebase(&mut schema, &format!("#/$defs/{key}"));
            (key, schema)
        };
        let definitions: Map<String, Value> = self.functions.iter().enumerate().map(moved).collect();
        let call = |(at, function): (usize, &Function)| {
            json!({
                "type": "object",
                "properties": { "name": { "const": function.name }, "parameters": { "$ref": format!("#/$defs/f{at}") } },
                "required": ["name", "parameters"],
                "additionalProperties": false,
            })
        };
        let calls: Vec<Value> = self.functions.iter().enumerate().map(call).collect();
        let mut list =
            json!({ "type": "array", "minItems": 1, "items": { "anyOf": calls }, "$defs": Value::Object(definitions) });
        if !self.parallel {
            list["maxItems"] = Value::from(1);
        }
        list
    }
}

impl Function {
    fn schema(&self) -> Value {
        self.parameters.clone().unwrap_or_else(no_arguments)
    }
}

/// What leaving out `parameters` means.
fn no_arguments() -> Value {
    json!({ "type": "object", "properties": {}, "additionalProperties": false })
}

/// Makes references of a schema that stood for itself point into where it stands now.
fn rebase(schema: &mut Value, root: &str) {
    match schema {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::String(reference) if key == "$ref" && reference.starts_with('#') => {
                        *reference = format!("{root}{}", &reference[1..]);
                    }
                    value => rebase(value, root),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rebase(item, root)),
        _ => {}
    }
}

/// The tools as they were sent, within the bounds on number and size; at least one.
pub(crate) fn list_tools<'a>(
    fields: &Fields<'a>,
    form: Form,
    bounds: &Bounds,
) -> Result<Option<&'a [Value]>, ApiError> {
    let Some(tools) = fields.list("tools", bounds.tools)? else { return Ok(None) };
    if tools.is_empty() && form == Form::Nested {
        return Err(ApiError::bad_field("tools", "tools must not be empty; leave it out instead"));
    }
    let bytes = tools.iter().map(|tool| tool.to_string().len()).sum();
    at_most("tools", "bytes", bytes, bounds.tools_bytes)?;
    Ok((!tools.is_empty()).then_some(tools))
}

fn read_tool(place: &str, tool: &Value, form: Form, bounds: &Bounds) -> Result<(Function, Value), ApiError> {
    let Value::Object(entries) = tool else { return Err(wrong(place, "an object", tool)) };
    match entries.get("type").map(Value::as_str) {
        Some(Some("function")) => {}
        Some(Some(kind)) => {
            let what = format!("a tool of type {:?}", Shown::text(kind));
            return Err(ApiError::not_supported(&format!("{place}.type"), &what));
        }
        _ => return Err(ApiError::bad_field(format!("{place}.type"), format!("{place}.type must be \"function\""))),
    }
    let (place, inner) = match form {
        Form::Flat => (place.to_owned(), tool),
        Form::Nested => (format!("{place}.function"), entries.get("function").unwrap_or(&Value::Null)),
    };
    let Value::Object(function) = inner else { return Err(wrong(&place, "an object", inner)) };
    let name = check_name(&format!("{place}.name"), function.get("name").unwrap_or(&Value::Null), bounds)?;
    let parameters = function.get("parameters").filter(|value| !value.is_null());
    if let Some(value) = parameters.filter(|value| !value.is_object()) {
        return Err(wrong(&format!("{place}.parameters"), "an object (a JSON schema)", value));
    }
    let shown = match form {
        Form::Nested => tool.clone(),
        Form::Flat => nested(function),
    };
    Ok((Function { name: name.to_owned(), parameters: parameters.cloned() }, shown))
}

/// A flat tool as chat templates know it.
fn nested(flat: &Map<String, Value>) -> Value {
    let mut function = flat.clone();
    function.shift_remove("type");
    json!({ "type": "function", "function": function })
}

/// A function's name: what a call's JSON can hold without surprise.
pub(crate) fn check_name<'a>(place: &str, value: &'a Value, bounds: &Bounds) -> Result<&'a str, ApiError> {
    let name = check_text(place, value, bounds.name_chars)?;
    if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace() || "{}[]\"\\".contains(c)) {
        let message = format!("{place} must be a word without quotes and brackets, got {:?}", Shown::text(name));
        return Err(ApiError::bad_field(place, message));
    }
    Ok(name)
}

fn check_names(functions: &[Function]) -> Result<(), ApiError> {
    for (at, function) in functions.iter().enumerate() {
        if functions.iter().take(at).any(|other| other.name == function.name) {
            let message = format!("tools[{at}]: the name {:?} is there twice", Shown::text(&function.name));
            return Err(ApiError::bad_field("tools", message));
        }
    }
    Ok(())
}

/// `None`: no calls.
fn read_choice(choice: Option<&Value>, functions: &[Function], form: Form) -> Result<Option<ToolChoice>, ApiError> {
    const NAME: &str = "tool_choice";
    let Some(choice) = choice else { return Ok(Some(ToolChoice::Auto)) };
    let name = match (choice, form) {
        (Value::String(word), _) => match word.as_str() {
            "none" => return Ok(None),
            "auto" => return Ok(Some(ToolChoice::Auto)),
            "required" => return Ok(Some(ToolChoice::Required)),
            _ => return Err(wrong(NAME, "none, auto, required or an object that names a function", choice)),
        },
        (_, Form::Nested) => choice.pointer("/function/name"),
        (_, Form::Flat) => choice.get("name"),
    };
    match (choice.get("type").and_then(Value::as_str), name.and_then(Value::as_str)) {
        (Some("function"), Some(name)) if functions.iter().any(|function| function.name == name) => {
            Ok(Some(ToolChoice::Named(name.to_owned())))
        }
        (Some("function"), Some(name)) => {
            let message = format!("tool_choice names the function {:?}, which is not in tools", Shown::text(name));
            Err(ApiError::bad_field(NAME, message))
        }
        _ => Err(wrong(NAME, "none, auto, required or an object that names a function", choice)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_of_a_list_keep_their_references() {
        let leaf = json!({ "type": "object", "properties": { "next": { "$ref": "#" }, "at": { "$ref": "#/$defs/at" }, "$ref": { "type": "string" } },
            "$defs": { "at": { "enum": ["#"] } } });
        let function = |name: &str, parameters| Function { name: name.to_owned(), parameters };
        let functions = vec![function("f", None), function("g", Some(leaf))];
        let schema = Tools { functions, choice: ToolChoice::Required, parallel: false }.list_schema();
        assert_eq!(schema["maxItems"], 1);
        assert_eq!(schema["items"]["anyOf"][1]["properties"]["name"]["const"], "g");
        assert_eq!(schema["items"]["anyOf"][1]["properties"]["parameters"]["$ref"], "#/$defs/f1");
        let moved = &schema["$defs"]["f1"];
        assert_eq!(moved["properties"]["next"]["$ref"], "#/$defs/f1");
        assert_eq!(moved["properties"]["at"]["$ref"], "#/$defs/f1/$defs/at");
        assert_eq!(moved["properties"]["$ref"]["type"], "string", "a property of that name is no reference");
        assert_eq!(schema["$defs"]["f0"], no_arguments());
    }
}
