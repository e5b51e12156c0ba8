//! Renders a conversation with the model's own chat template, as transformers' `apply_chat_template` does.
//!
//! Templates come from the model directory, or from requests where the operator trusts them. Rendering is bounded in steps, depth and
//! output; the values that a template builds on its way are not, so a template must be trusted with memory.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value as Jinja, escape_formatter};
use serde_json::{Map, Value};

use crate::dialect::translate;
use crate::python::{strftime, tojson};
use crate::tokenizer::read_bounded;
use crate::{Error, ReasoningFormat, ToolFormat};

/// The largest `tokenizer_config.json` or template file that is read; Llama 3's has 50 kB, those with added-token lists a few MB.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// Template steps per rendering: a message takes some hundred, so this is far above 1024 messages and well below a second.
const FUEL: u64 = 5_000_000;
/// Nested macro calls and includes.
const RECURSION_MAX: usize = 100;
/// Bytes of a rendered prompt: several times the largest request body.
const OUTPUT_BYTES_MAX: usize = 16 << 20;
/// Tokens that templates name, if `tokenizer_config.json` does.
const TOKEN_VARIABLES: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

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
    /// Further variables (`chat_template_kwargs`); the template's own win.
    pub variables: Map<String, Value>,
    /// Seconds since the epoch, for `strftime_now` (UTC).
    pub now_unix: u64,
}

/// A compiled chat template. Clones share it.
#[derive(Clone)]
pub struct ChatTemplate(Arc<Compiled>);

struct Compiled {
    environment: Environment<'static>,
    /// Name of the template to use.
    plain: String,
    /// Name of the one for requests with tools; often the same.
    with_tools: String,
    tokens: BTreeMap<&'static str, String>,
    tool_format: Option<ToolFormat>,
    reasoning_format: Option<ReasoningFormat>,
}

impl ChatTemplate {
    /// Reads the template of a model directory; `None` when it has none.
    ///
    /// `chat_template.jinja` wins over `chat_template` in `tokenizer_config.json`, which is a string or a list of named ones.
    pub fn load(model_dir: &Path) -> Result<Option<Self>, Error> {
        let config_path = model_dir.join("tokenizer_config.json");
        let config: Value = match read_if_there(&config_path)? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| Error::Parse { path: config_path.clone(), reason: error.to_string() })?,
            None => Value::Null,
        };
        let file_path = model_dir.join("chat_template.jinja");
        let sources = match read_if_there(&file_path)? {
            Some(source) => vec![Source { path: file_path, name: "default".into(), source }],
            None => sources_in_config(&config_path, &config)?,
        };
        let Some(first) = sources.first() else { return Ok(None) };
        let named = |name: &str| sources.iter().find(|source| source.name == name);
        let plain = named("default").unwrap_or(first);
        let with_tools = named("tool_use").unwrap_or(plain);
        let mut environment = environment();
        for source in [plain, with_tools] {
            environment.add_template_owned(source.place(), translate(&source.source)).map_err(|error| {
                Error::Parse {
                    path: source.path.clone(),
                    reason: format!("chat template {}: {}", place(&error, &source.place()), reason(&error)),
                }
            })?;
        }
        Ok(Some(Self(Arc::new(Compiled {
            environment,
            plain: plain.place(),
            with_tools: with_tools.place(),
            tokens: token_variables(&config),
            tool_format: ToolFormat::of_template(&with_tools.source),
            reasoning_format: ReasoningFormat::of_template(&plain.source),
        }))))
    }

    /// How the model writes calls, as far as the template tells.
    pub fn tool_format(&self) -> Option<ToolFormat> {
        self.0.tool_format
    }

    /// How the model writes thoughts, as far as the template tells.
    pub fn reasoning_format(&self) -> Option<ReasoningFormat> {
        self.0.reasoning_format
    }

    /// A template that a request brought; the tokens that it may name are those of the model's own.
    ///
    /// # Errors
    /// `Error::Render` with the line that does not compile.
    pub fn of_request(source: &str, own: Option<&Self>) -> Result<Self, Error> {
        let name = "chat_template".to_owned();
        let mut environment = environment();
        environment
            .add_template_owned(name.clone(), translate(source))
            .map_err(|error| Error::Render { place: place(&error, &name), reason: reason(&error) })?;
        let tokens = own.map(|own| own.0.tokens.clone()).unwrap_or_default();
        // How the model writes does not depend on who asks it.
        let (tool_format, reasoning_format) = (own.and_then(Self::tool_format), own.and_then(Self::reasoning_format));
        let plain = name.clone();
        Ok(Self(Arc::new(Compiled { environment, plain, with_tools: name, tokens, tool_format, reasoning_format })))
    }

    /// The prompt text of a conversation.
    ///
    /// # Errors
    /// `Error::Render` with the template's file and line: the template refuses the conversation, or a limit is reached.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, Error> {
        let compiled = &*self.0;
        let name = if options.tools.is_some() { &compiled.with_tools } else { &compiled.plain };
        let failed = |error: minijinja::Error| Error::Render { place: place(&error, name), reason: reason(&error) };
        let template = compiled.environment.get_template(name).map_err(failed)?;
        let mut output = Bounded(Vec::new());
        template.render_captured_to(compiled.variables(messages, options), &mut output).map_err(failed)?;
        let text = String::from_utf8_lossy(&output.0).into_owned();
        match messages.last() {
            Some(last) if options.continue_final_message => leave_open(text, last, name),
            _ => Ok(text),
        }
    }
}

impl Compiled {
    fn variables(&self, messages: &[Message], options: &RenderOptions) -> Jinja {
        let now = options.now_unix;
        let mut variables: BTreeMap<String, Jinja> =
            options.variables.iter().map(|(name, value)| (name.clone(), Jinja::from(Serde(value)))).collect();
        variables.extend(self.tokens.iter().map(|(name, token)| ((*name).to_owned(), Jinja::from(token.as_str()))));
        let messages: Vec<Value> = messages.iter().map(as_json).collect();
        let own = [
            ("messages", Jinja::from(Serde(&messages))),
            ("add_generation_prompt", options.add_generation_prompt.into()),
            ("continue_final_message", options.continue_final_message.into()),
            ("tools", Jinja::from(Serde(&options.tools))),
            ("documents", Jinja::from(Serde(&options.documents))),
            ("strftime_now", Jinja::from_function(move |format: &str| strftime(now, format))),
        ];
        variables.extend(own.map(|(name, value)| (name.to_owned(), value)));
        Jinja::from_pairs(variables)
    }
}

fn as_json(message: &Message) -> Value {
    let mut fields = Map::new();
    fields.insert("role".into(), message.role.clone().into());
    fields.insert("content".into(), message.content.clone().into());
    for (name, value) in &message.extra {
        fields.entry(name.clone()).or_insert_with(|| value.clone());
    }
    Value::Object(fields)
}

/// The environment of transformers' templates: Jinja's defaults, trimmed blocks, Python's methods and words.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_debug(false);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_MAX);
    // By default the name's ending would choose, and .json would escape quotes.
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, state, value| match bool::try_from(value.clone()) {
        Ok(true) => out.write_str("True").map_err(minijinja::Error::from),
        Ok(false) => out.write_str("False").map_err(minijinja::Error::from),
        Err(_) if value.is_none() => out.write_str("None").map_err(minijinja::Error::from),
        Err(_) => escape_formatter(out, state, value),
    });
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: Jinja| -> Result<Jinja, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_string()))
    });
    environment
}

/// A template and where it stands.
struct Source {
    path: PathBuf,
    name: String,
    source: String,
}

impl Source {
    /// What errors call it: the file's name and, in a list, the template's.
    fn place(&self) -> String {
        let file = self.path.file_name().unwrap_or_default().to_string_lossy();
        match self.name.as_str() {
            "default" => file.into_owned(),
            name => format!("{file} ({name})"),
        }
    }
}

fn sources_in_config(path: &Path, config: &Value) -> Result<Vec<Source>, Error> {
    let wrong = || Error::Parse {
        path: path.to_owned(),
        reason: "chat_template must be a string or a list of objects with name and template".into(),
    };
    let source = |name: &str, source: &str| Source { path: path.to_owned(), name: name.into(), source: source.into() };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(template)) => Ok(vec![source("default", template)]),
        Some(Value::Array(named)) => named
            .iter()
            .map(|entry| {
                match (entry.get("name").and_then(Value::as_str), entry.get("template").and_then(Value::as_str)) {
                    (Some(name), Some(template)) => Ok(source(name, template)),
                    _ => Err(wrong()),
                }
            })
            .collect(),
        Some(_) => Err(wrong()),
    }
}

/// Tokens are strings, or objects with `content` in older files.
fn token_variables(config: &Value) -> BTreeMap<&'static str, String> {
    let token = |name: &'static str| {
        let value = config.get(name)?;
        let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str))?;
        Some((name, text.to_owned()))
    };
    TOKEN_VARIABLES.into_iter().filter_map(token).collect()
}

fn read_if_there(path: &Path) -> Result<Option<String>, Error> {
    let bytes = match read_bounded(path, FILE_BYTES_MAX) {
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|error| Error::Parse { path: path.to_owned(), reason: error.to_string() })
}

/// Cuts the prompt after the last message's content, as transformers does.
fn leave_open(mut text: String, last: &Message, name: &str) -> Result<String, Error> {
    let content = last.content.as_deref().unwrap_or_default();
    let Some(start) = text.rfind(content.trim()) else {
        let reason =
            "continue_final_message: the template does not show the last message's content as it is".to_owned();
        return Err(Error::Render { place: name.to_owned(), reason });
    };
    // Some templates trim contents: trailing white space belongs to the prompt only where the template kept it.
    let kept = content.trim_start();
    let end = if text[start..].starts_with(kept) { start + kept.len() } else { start + content.trim().len() };
    text.truncate(end);
    Ok(text)
}

/// `file:line`, without directories.
fn place(error: &minijinja::Error, name: &str) -> String {
    let name = error.name().unwrap_or(name);
    error.line().map_or_else(|| name.to_owned(), |line| format!("{name}:{line}"))
}

/// The innermost cause: what `raise_exception` said, or what the engine found.
fn reason(error: &minijinja::Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return format!("took more than {FUEL} steps");
    }
    let cause = std::error::Error::source(error);
    if let Some(inner) = cause.and_then(|cause| cause.downcast_ref::<minijinja::Error>()) {
        return reason(inner);
    }
    match (cause, error.detail()) {
        (Some(cause), _) => cause.to_string(),
        (None, Some(detail)) => detail.to_owned(),
        (None, None) => error.kind().to_string(),
    }
}

/// Refuses to grow beyond the limit.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::other(format!("the prompt is longer than {OUTPUT_BYTES_MAX} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn template(source: &str) -> ChatTemplate {
        let config = json!({ "chat_template": source, "bos_token": "<s>", "eos_token": { "content": "</s>" }, "pad_token": null });
        ChatTemplate::load(dir(&[("tokenizer_config.json", &config.to_string())]).path()).unwrap().unwrap()
    }

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: Some(content.into()), ..Message::default() }
    }

    fn check(source: &str, messages: &[Message], options: &RenderOptions, expected: &str) {
        let found = template(source).render(messages, options).unwrap_or_else(|error| format!("error: {error}"));
        assert_eq!(found, expected, "{source}");
    }

    const CHATML: &str = "{%- for message in messages %}\n    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";

    /// The start of Llama 3.1's template, which uses most of what is special.
    const LLAMA3: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

    #[test]
    fn templates_of_our_families() {
        let options =
            RenderOptions { add_generation_prompt: true, now_unix: 1_721_951_999, ..RenderOptions::default() };
        let talk = [message("system", " Be brief. "), message("user", "Hi \"you\" <b> & 'me'")];
        check(
            CHATML,
            &talk,
            &options,
            "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi \"you\" <b> & 'me'<|im_end|>\n<|im_start|>assistant\n",
        );
        let expected = "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 25 Jul 2024\n\nBe brief.<|eot_id|>\
            <|start_header_id|>user<|end_header_id|>\n\nHi \"you\" <b> & 'me'<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
        check(LLAMA3, &talk, &options, expected);
    }

    #[test]
    fn tools_and_calls_reach_the_template_in_the_clients_order() {
        let calls = json!([{ "type": "function", "function": { "name": "f", "arguments": { "z": 1, "a": "ü" } } }]);
        let call = Message {
            role: "assistant".into(),
            content: None,
            extra: [("tool_calls".to_owned(), calls)].into_iter().collect(),
        };
        let tools = Some(json!([{ "type": "function", "a": 1 }]));
        let options = RenderOptions { tools, ..RenderOptions::default() };
        let expected = "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 01 Jan 1970\n\n{\n    \"type\": \"function\",\n    \"a\": 1\n}\n\n<|eot_id|>{\"name\": \"f\", \"parameters\": {\"z\": 1, \"a\": \"ü\"}}";
        check(LLAMA3, &[message("system", ""), call], &options, expected);
    }

    /// What templates of Hermes' kind (Qwen2.5, Qwen3) do with tools, calls, results and thoughts.
    const HERMES: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n<tools>' }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\n' }}
        {%- if message.reasoning_content is string %}
            {{- '<think>\n' + message.reasoning_content.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

    #[test]
    fn a_conversation_with_calls_and_thoughts() {
        let extra = |json: Value| json.as_object().unwrap().clone();
        let call = |name: &str, arguments: Value| json!({ "id": "1", "type": "function", "function": { "name": name, "arguments": arguments } });
        let calls = json!([call("f", json!({ "z": "é", "a": [1] })), call("g", json!({}))]);
        let called = Message {
            role: "assistant".into(),
            content: None,
            extra: extra(json!({ "reasoning_content": "Hm.", "tool_calls": calls })),
        };
        let talk = [message("user", "Hi"), called, message("tool", "7"), message("tool", "8")];
        let options = RenderOptions {
            add_generation_prompt: true,
            tools: Some(json!([{ "type": "function", "function": { "name": "f" } }])),
            variables: extra(json!({ "enable_thinking": false })),
            ..RenderOptions::default()
        };
        let expected = concat!(
            "<|im_start|>system\n<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\"}}\n</tools><|im_end|>\n",
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\nHm.\n</think>\n\n",
            "\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"z\": \"é\", \"a\": [1]}}\n</tool_call>",
            "\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call><|im_end|>\n",
            "<|im_start|>user\n<tool_response>\n7\n</tool_response>\n<tool_response>\n8\n</tool_response><|im_end|>\n",
            "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        );
        check(HERMES, &talk, &options, expected);
        let template = template(HERMES);
        assert_eq!(template.tool_format(), Some(crate::ToolFormat::Hermes));
        assert_eq!(template.reasoning_format(), Some(crate::ReasoningFormat::Qwen3));
        assert_eq!(super::tests::template(LLAMA3).tool_format(), Some(crate::ToolFormat::Llama3Json));
        assert_eq!(super::tests::template(CHATML).tool_format(), None);
    }

    #[test]
    fn python_words_methods_and_variables() {
        let options = RenderOptions {
            variables: json!({ "thinking": true, "messages": 1 }).as_object().unwrap().clone(),
            ..RenderOptions::default()
        };
        check(
            "{{ thinking }} {{ none }} {{ eos_token }} {{ pad_token is defined }} {{ messages|length }}",
            &[],
            &options,
            "True None </s> False 0",
        );
        check("{{ ' a b '.strip().split(' ')[-1].upper() }}{{ {'k': 1}.items()|list|length }}", &[], &options, "B1");
        check("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", &[], &options, "01");
        check(
            "{% set ns = namespace(x=1) %}{% for i in [1,2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
            &[],
            &options,
            "4",
        );
        check(
            "{{ messages[0].name }}|{{ messages[0].nothing }}",
            &[Message { extra: json!({ "name": "N" }).as_object().unwrap().clone(), ..message("user", "") }],
            &RenderOptions::default(),
            "N|",
        );
    }

    #[test]
    fn errors_name_file_and_line() {
        let none = RenderOptions::default();
        check(
            "one\n{{ raise_exception('roles must alternate') }}",
            &[],
            &none,
            "error: chat template tokenizer_config.json:2: roles must alternate",
        );
        check(
            "\n\n{{ missing.field.deep }}",
            &[],
            &none,
            "error: chat template tokenizer_config.json:3: undefined value",
        );
        check(
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            &[],
            &none,
            "error: chat template tokenizer_config.json:1: recursion limit exceeded",
        );
        check(
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            &[],
            &none,
            "error: chat template tokenizer_config.json:1: took more than 5000000 steps",
        );
        check(
            "{% for i in range(3000) %}{{ 'x' * 10000 }}{% endfor %}",
            &[],
            &none,
            "error: chat template tokenizer_config.json: the prompt is longer than 16777216 bytes",
        );
    }

    #[test]
    fn bad_files_are_refused_at_load() {
        let check = |files: &[(&str, &str)], part: &str| {
            let error = ChatTemplate::load(dir(files).path()).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        };
        check(&[("tokenizer_config.json", "{")], "tokenizer_config.json: EOF");
        check(&[("tokenizer_config.json", r#"{"chat_template": 1}"#)], "chat_template must be a string or a list");
        check(
            &[("tokenizer_config.json", r#"{"chat_template": [{"name": "x"}]}"#)],
            "chat_template must be a string or a list",
        );
        check(&[("chat_template.jinja", "a\n{% if %}")], "chat template chat_template.jinja:2: ");
    }

    #[test]
    fn which_template_is_used() {
        let check = |files: &[(&str, &str)], tools: bool, expected: Option<&str>| {
            let options = RenderOptions { tools: tools.then(|| json!([{}])), ..RenderOptions::default() };
            let found =
                ChatTemplate::load(dir(files).path()).unwrap().map(|template| template.render(&[], &options).unwrap());
            assert_eq!(found.as_deref(), expected, "{files:?}");
        };
        let named = (
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#,
        );
        check(&[], false, None);
        check(&[("tokenizer_config.json", "{}")], false, None);
        check(&[named], false, Some("D"));
        check(&[named], true, Some("T"));
        check(&[named, ("chat_template.jinja", "F")], true, Some("F"));
        check(&[("tokenizer_config.json", r#"{"chat_template": "S"}"#)], true, Some("S"));
    }

    #[test]
    fn a_template_of_a_request_knows_the_models_tokens() {
        let own = template("own");
        let render = |source: &str| {
            ChatTemplate::of_request(source, Some(&own))
                .and_then(|template| template.render(&[message("user", "hi")], &RenderOptions::default()))
                .map_err(|error| error.to_string())
        };
        assert_eq!(render("{{ bos_token }}{{ messages[0].content }}"), Ok("<s>hi".to_owned()));
        let broken = render("{{ bos_token\n}}{% if %}").unwrap_err();
        assert!(broken.contains("chat_template:2"), "{broken}");
        let endless =
            render("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}").unwrap_err();
        assert!(endless.contains("steps"), "{endless}");
    }

    #[test]
    fn the_last_message_can_be_left_open() {
        let open = RenderOptions { continue_final_message: true, ..RenderOptions::default() };
        let talk = |last: &str| [message("user", "Sky?"), message("assistant", last)];
        let head = "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n";
        check(CHATML, &talk("The sky is "), &open, &format!("{head}The sky is "));
        let trimming = "{% for m in messages %}[{{ m.content|trim }}]{% endfor %}";
        check(trimming, &talk("The sky is "), &open, "[Sky?][The sky is");
        check(
            "nothing",
            &talk("The sky"),
            &open,
            "error: chat template tokenizer_config.json: continue_final_message: the template does not show the last message's content as it is",
        );
    }
}
