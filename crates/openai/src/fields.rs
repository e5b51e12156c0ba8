//! The table of every request field of every endpoint: one line each says type, range and meaning.
//!
//! `check.rs` holds every field of a body against its line; rules between fields stand where the field is used. To add a field, add
//! its line here and read it in `generation.rs` or its endpoint's file; to build a refused one, change its `NotYet`.

use serde_json::Value;

use crate::Bounds;

/// Which endpoint a body was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/responses`
    Responses,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /generate` of the plain server
    Generate,
    /// `POST /tokenize`
    Tokenize,
    /// `POST /detokenize`
    Detokenize,
}

/// A field's line. `null` in a body is the same as leaving the field out.
pub struct Field {
    pub name: &'static str,
    pub on: &'static [Endpoint],
    pub kind: Kind,
    /// JSON of the value that leaving the field out stands for; `None` = no value says the same.
    pub default: Option<&'static str>,
    pub doc: &'static str,
}

/// What values a field takes.
pub enum Kind {
    Bool,
    /// A finite number of this range; `min` itself only if `min_allowed`.
    Number {
        min: f64,
        max: f64,
        min_allowed: bool,
    },
    /// A whole number from `min` to a maximum that may be a bound. `10.0` counts as whole.
    Integer {
        min: i64,
        max: fn(&Bounds) -> i64,
    },
    /// A string of at most so many characters.
    Text {
        chars_max: fn(&Bounds) -> u64,
    },
    /// Checked where it is read, since its rules do not fit on a line. `schema` is JSON, for the documentation.
    Structured {
        schema: &'static str,
    },
    /// Any value, without effect.
    Accepted,
    /// A feature that is not built: refused unless the value asks for nothing (`neutral`).
    NotYet {
        neutral: fn(&Value) -> bool,
        what: &'static str,
    },
}

use Endpoint::{Chat, Completions, Detokenize, Embeddings, Generate, Responses, Tokenize};

const ALL: &[Endpoint] = &[Completions, Chat, Responses, Embeddings, Tokenize, Detokenize];

const BOTH: &[Endpoint] = &[Completions, Chat];
const C: &[Endpoint] = &[Completions];
const H: &[Endpoint] = &[Chat];
const G: &[Endpoint] = &[Generate];
const CHG: &[Endpoint] = &[Completions, Chat, Generate];
const E: &[Endpoint] = &[Embeddings];
const BOTH_E: &[Endpoint] = &[Completions, Chat, Embeddings];
const CHGE: &[Endpoint] = &[Completions, Chat, Generate, Embeddings];
const CHRE: &[Endpoint] = &[Completions, Chat, Responses, Embeddings];
const HTE: &[Endpoint] = &[Chat, Tokenize, Embeddings];
const R: &[Endpoint] = &[Responses];
const CHGR: &[Endpoint] = &[Completions, Chat, Generate, Responses];
const HR: &[Endpoint] = &[Chat, Responses];
const HT: &[Endpoint] = &[Chat, Tokenize];

const fn field(name: &'static str, on: &'static [Endpoint], kind: Kind, doc: &'static str) -> Field {
    Field { name, on, kind, default: None, doc }
}

impl Field {
    const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }
}

const fn structured(schema: &'static str) -> Kind {
    Kind::Structured { schema }
}

const STRING: Kind = structured(r#"{"type": "string"}"#);
const OBJECTS: Kind = structured(r#"{"type": "array", "items": {"type": "object"}}"#);
const OBJECT: Kind = structured(r#"{"type": "object"}"#);
const IDS: Kind = structured(r#"{"type": "array", "items": {"type": "integer", "minimum": 0}}"#);
const WORDS: Kind = structured(r#"{"type": "array", "items": {"type": "string"}}"#);
const STRINGS: Kind = structured(r#"{"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}"#);
const PROMPTS: Kind = structured(
    r#"{"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "array", "items": {"type": "integer", "minimum": 0}}]}}]}"#,
);
const MESSAGES: Kind = structured(
    r#"{"type": "array", "minItems": 1, "items": {"type": "object", "properties": {"role": {"type": "string"}, "content": {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": {"type": "object", "properties": {"type": {"const": "text"}, "text": {"type": "string"}}, "required": ["type", "text"]}}]}}, "required": ["role"]}}"#,
);
const INPUT: Kind = structured(
    r#"{"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "object", "properties": {"type": {"const": "message"}, "role": {"type": "string"}, "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object", "properties": {"type": {"enum": ["input_text", "output_text"]}, "text": {"type": "string"}}, "required": ["type", "text"]}}]}}, "required": ["role", "content"]}, {"type": "object", "properties": {"type": {"const": "function_call"}, "call_id": {"type": "string"}, "name": {"type": "string"}, "arguments": {"type": "string"}}, "required": ["type", "call_id", "name", "arguments"]}, {"type": "object", "properties": {"type": {"const": "function_call_output"}, "call_id": {"type": "string"}, "output": {"type": "string"}}, "required": ["type", "call_id", "output"]}]}}]}"#,
);
const ENCODING: Kind = structured(r#"{"enum": ["float", "base64"]}"#);
const SIDE: Kind = structured(r#"{"enum": ["left", "right"]}"#);
const EARLY_STOPPING: Kind = structured(r#"{"enum": [true, false, "never"]}"#);
const BIASES: Kind = structured(r#"{"type": "object", "additionalProperties": {"type": "number"}}"#);
const STREAM_OPTIONS: Kind = structured(
    r#"{"type": "object", "properties": {"include_usage": {"type": "boolean", "default": false}, "continuous_usage_stats": {"type": "boolean", "default": false}}}"#,
);
const TOOLS: Kind = structured(
    r#"{"type": "array", "minItems": 1, "items": {"type": "object", "properties": {"type": {"const": "function"}, "function": {"type": "object", "properties": {"name": {"type": "string"}, "description": {"type": "string"}, "parameters": {"type": "object"}, "strict": {"type": "boolean"}}, "required": ["name"]}}, "required": ["type", "function"]}}"#,
);
const TOOL_CHOICE: Kind = structured(
    r#"{"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object", "properties": {"type": {"const": "function"}, "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}}, "required": ["type", "function"]}]}"#,
);
const FLAT_TOOLS: Kind = structured(
    r#"{"type": "array", "items": {"type": "object", "properties": {"type": {"const": "function"}, "name": {"type": "string"}, "description": {"type": "string"}, "parameters": {"type": "object"}, "strict": {"type": "boolean"}}, "required": ["type", "name"]}}"#,
);
const FLAT_TOOL_CHOICE: Kind = structured(
    r#"{"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object", "properties": {"type": {"const": "function"}, "name": {"type": "string"}}, "required": ["type", "name"]}]}"#,
);

const TEXTS: Kind = structured(r#"{"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}}"#);
const SCHEMA: Kind = structured(r#"{"anyOf": [{"type": "object"}, {"type": "string"}]}"#);
const RESPONSE_FORMAT: Kind = structured(
    r#"{"type": "object", "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {"type": "object", "properties": {"name": {"type": "string"}, "description": {"type": "string"}, "schema": {"type": "object"}, "strict": {"type": "boolean"}}, "required": ["schema"]}}, "required": ["type"]}"#,
);
const TEXT_FORMAT: Kind = structured(
    r#"{"type": "object", "properties": {"format": {"type": "object", "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}, "name": {"type": "string"}, "schema": {"type": "object"}, "strict": {"type": "boolean"}}, "required": ["type"]}}}"#,
);
const STRUCTURED_OUTPUTS: Kind = structured(
    r#"{"type": "object", "properties": {"json": {"anyOf": [{"type": "object"}, {"type": "string"}]}, "regex": {"type": "string"}, "choice": {"type": "array", "items": {"type": "string"}}, "grammar": {"type": "string"}, "json_object": {"type": "boolean"}, "disable_any_whitespace": {"type": "boolean"}}}"#,
);

const fn number(min: f64, max: f64) -> Kind {
    Kind::Number { min, max, min_allowed: true }
}

const fn not_yet(neutral: fn(&Value) -> bool, what: &'static str) -> Kind {
    Kind::NotYet { neutral, what }
}

const fn tokens(min: i64) -> Kind {
    Kind::Integer { min, max: |_| u32::MAX as i64 }
}

/// Priorities go from minus this to this.
const PRIORITY_MAX: i64 = 1000;

const NAME: Kind = Kind::Text { chars_max: |bounds| bounds.name_chars };

fn never(_: &Value) -> bool {
    false
}
fn is_false(value: &Value) -> bool {
    value == &Value::Bool(false)
}
fn is_true(value: &Value) -> bool {
    value == &Value::Bool(true)
}
fn is_disabled(value: &Value) -> bool {
    value == "disabled"
}
fn equals<const WHOLE: i64>(value: &Value) -> bool {
    value.as_f64() == Some(WHOLE as f64)
}

/// Every field we know; others are accepted and ignored.
#[rustfmt::skip]
pub static FIELDS: &[Field] = &[
    // What to answer.
    field("model", ALL, NAME, "served name; default: the first one"),
    field("prompt", C, PROMPTS, "string, list of strings, list of token ids, or list of such lists"),
    field("model", G, Kind::Accepted, "ignored: this server has one model"),
    field("prompt", G, STRING, "string; every answer begins with it"),
    field("prompt", &[Tokenize], STRING, "string; or send messages"),
    field("tokens", &[Detokenize], IDS, "list of token ids"),
    field("return_token_strs", &[Tokenize], Kind::Bool, "adds token_strs").or("false"),
    field("messages", HTE, MESSAGES, "the conversation; content is a string or a list of text parts"),
    field("input", R, INPUT, "string, or a list of items: messages, function_call, function_call_output, reasoning"),
    field("input", E, PROMPTS, "string, list of strings, list of token ids, or list of such lists; or send messages"),
    field("encoding_format", E, ENCODING, "float, or base64 of the numbers as little-endian f32").or("\"float\""),
    field("dimensions", E, tokens(1), "leading numbers of each vector that are kept; default all"),
    field("instructions", R, STRING, "a system message in front of the input"),
    field("text", R, TEXT_FORMAT, "format: text, json_object or json_schema; the schema always holds, strict or not"),
    field("previous_response_id", R, NAME, "go on from a stored answer"),
    field("add_special_tokens", E, Kind::Bool, "let the tokenizer add BOS; default true for input, false for messages"),
    field("add_special_tokens", C, Kind::Bool, "let the tokenizer add BOS").or("true"),
    field("add_special_tokens", H, Kind::Bool, "let the tokenizer add BOS").or("false"),
    field("add_special_tokens", &[Tokenize], Kind::Bool, "let the tokenizer add BOS; default true for a prompt, false for messages"),
    field("truncate_prompt_tokens", CHGE, Kind::Integer { min: -1, max: |_| i64::from(u32::MAX) }, "keep so many tokens of the prompt; -1 = what the context has room for"),
    field("truncation_side", BOTH_E, SIDE, "left drops the first tokens, right the last").or("\"left\""),
    field("add_generation_prompt", E, Kind::Bool, "end the prompt with the head of an answer").or("false"),
    field("add_generation_prompt", HT, Kind::Bool, "end the prompt with the head of an answer").or("true"),
    field("continue_final_message", HTE, Kind::Bool, "leave the last message open and go on with it").or("false"),
    field("chat_template", HTE, STRING, "a Jinja template to use instead of the model's; needs --trust-request-chat-template"),
    field("chat_template_kwargs", HTE, OBJECT, "further variables of the chat template"),
    field("documents", HTE, OBJECTS, "passed to the chat template"),
    field("tools", &[Tokenize], OBJECTS, "passed to the chat template"),
    field("tools", H, TOOLS, "functions that the model may call; shown to it by the chat template"),
    field("tool_choice", H, TOOL_CHOICE, "none: answer with text; auto: call or not, the default with tools; required: call; or the name of the function to call"),
    field("tools", R, FLAT_TOOLS, "functions that the model may call"),
    field("tool_choice", R, FLAT_TOOL_CHOICE, "none, auto, required, or the name of the function to call"),
    field("parallel_tool_calls", HR, Kind::Bool, "false: at most one call in an answer").or("true"),
    field("include_reasoning", H, Kind::Bool, "show what the model thinks before it answers").or("true"),
    field("echo", C, Kind::Bool, "answer with the prompt's text in front").or("false"),
    field("echo", H, Kind::Bool, "answer with the last message in front if it is the assistant's").or("false"),
    // How long.
    field("max_output_tokens", R, tokens(1), "default: rest of the context"),
    field("max_tokens", C, tokens(0), "0 only with echo").or("16"),
    field("max_tokens", G, tokens(1), "null: rest of the context").or("16"),
    field("max_tokens", H, tokens(1), "default: rest of the context"),
    field("max_completion_tokens", H, tokens(1), "wins over max_tokens"),
    field("min_tokens", CHG, tokens(0), "EOS and stop tokens are masked before").or("0"),
    field("ignore_eos", CHG, Kind::Bool, "").or("false"),
    field("stop", CHG, STRINGS, "string or list of strings"),
    field("stop_token_ids", CHG, IDS, "list of token ids"),
    field("include_stop_str_in_output", CHG, Kind::Bool, "").or("false"),
    // How to sample.
    field("n", CHG, Kind::Integer { min: 1, max: |bounds| clamp(bounds.n) }, "choices per prompt").or("1"),
    field("best_of", CHG, Kind::Integer { min: 1, max: |bounds| clamp(bounds.n) }, "choices to generate, of which the n with the highest summed logprob come back; the width of a beam search; default n"),
    field("temperature", CHGR, number(0.0, 2.0), "0 = greedy").or("1"),
    field("top_p", CHGR, Kind::Number { min: 0.0, max: 1.0, min_allowed: false }, "").or("1"),
    field("top_k", CHG, tokens(-1), "-1 and 0 = off").or("0"),
    field("min_p", CHG, number(0.0, 1.0), "").or("0"),
    field("seed", CHG, Kind::Integer { min: i64::MIN, max: |_| i64::MAX }, "-1 = none"),
    field("presence_penalty", CHG, number(-2.0, 2.0), "").or("0"),
    field("frequency_penalty", CHG, number(-2.0, 2.0), "").or("0"),
    field("repetition_penalty", CHG, number(0.001, 1000.0), "").or("1"),
    field("use_beam_search", CHG, Kind::Bool, "answer with the n most probable texts that a search of width best_of finds; needs temperature 0 and a width of at least 2").or("false"),
    field("length_penalty", CHG, number(-10.0, 10.0), "a text's score is its summed logprob divided by its length to this power; needs use_beam_search").or("1"),
    field("early_stopping", CHG, EARLY_STOPPING, "true, false or never: when a beam search ends that has found as many texts as it is wide").or("false"),
    field("logit_bias", BOTH, BIASES, "object from token id to a number, clamped to [-100, 100]"),
    field("allowed_token_ids", BOTH, IDS, "only these tokens may be drawn"),
    field("bad_words", BOTH, WORDS, "list of strings whose tokens the answer must not contain").or("[]"),
    field("priority", BOTH_E, Kind::Integer { min: -PRIORITY_MAX, max: |_| PRIORITY_MAX }, "lower is served first where requests wait for a worker").or("0"),
    // What form the text must have; one of these at most.
    field("response_format", BOTH, RESPONSE_FORMAT, "text, json_object or json_schema; the schema always holds, strict or not").or(r#"{"type": "text"}"#),
    field("guided_json", BOTH, SCHEMA, "the text is JSON of this schema, an object or its text"),
    field("guided_regex", BOTH, STRING, "the text as a whole matches this regular expression"),
    field("guided_choice", BOTH, TEXTS, "the text is one of these"),
    field("guided_grammar", BOTH, STRING, "the text is one of this grammar, in the notation of Lark or GBNF (EBNF with ::=)"),
    field("structured_outputs", BOTH, STRUCTURED_OUTPUTS, "exactly one of json, regex, choice, grammar and json_object"),
    // What to report.
    field("logprobs", C, Kind::Integer { min: 0, max: |bounds| clamp(bounds.top_logprobs) }, "number of alternatives per token"),
    field("logprobs", H, Kind::Bool, "").or("false"),
    field("prompt_logprobs", BOTH, Kind::Integer { min: 0, max: |bounds| clamp(bounds.top_logprobs) }, "logprobs of the prompt's tokens with so many alternatives; above 0 not with stream"),
    field("top_logprobs", H, Kind::Integer { min: 0, max: |bounds| clamp(bounds.top_logprobs) }, "alternatives per token; needs logprobs").or("0"),
    field("stream", CHGR, Kind::Bool, "").or("false"),
    field("stream_options", BOTH, STREAM_OPTIONS, "include_usage and continuous_usage_stats, both false by default; needs stream"),
    field("skip_special_tokens", CHG, Kind::Bool, "").or("true"),
    field("return_tokens_as_token_ids", BOTH, Kind::Bool, "logprobs name tokens as token_id:N").or("false"),
    field("return_token_ids", BOTH, Kind::Bool, "adds token_ids and prompt_token_ids").or("false"),
    field("request_id", CHRE, STRING, "becomes part of id; default random"),
    field("cache_salt", CHRE, STRING, "prompts share cached KV only under an equal salt"),
    field("store", R, Kind::Bool, "keep the answer for a while, so that it can be read again and gone on from").or("true"),
    field("metadata", R, OBJECT, "repeated in the answer"),
    // Accepted without effect.
    field("logprobs", G, Kind::Accepted, "not shown in the answer"),
    field("prompt_logprobs", G, Kind::Accepted, "not shown in the answer"),
    field("user", CHRE, Kind::Accepted, "ignored"),
    field("reasoning", R, Kind::Accepted, "ignored"),
    field("include", R, Kind::Accepted, "ignored"),
    field("spaces_between_special_tokens", CHG, Kind::Accepted, "no effect with fast tokenizers"),
    field("guided_decoding_backend", BOTH, Kind::Accepted, "ignored"),
    field("guided_whitespace_pattern", BOTH, Kind::Accepted, "ignored: JSON is spaced by nothing, a space, or a line break with its indentation"),
    field("kv_transfer_params", BOTH, Kind::Accepted, "ignored: a client never names addresses or blocks"),
    // Refused until built.
    field("detokenize", G, not_yet(is_true, "an answer without text"), "true only"),
    field("background", R, not_yet(is_false, "answering in the background"), "false only"),
    field("truncation", R, not_yet(is_disabled, "dropping the middle of a conversation"), "disabled only"),
    field("top_logprobs", R, not_yet(equals::<0>, "logprobs"), "0 only"),
    field("suffix", C, not_yet(never, "text insertion"), ""),
];

/// A bound as the largest value of an integer field.
fn clamp(bound: u64) -> i64 {
    i64::try_from(bound).unwrap_or(i64::MAX)
}

/// The line of a field on an endpoint.
pub(crate) fn find(endpoint: Endpoint, name: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.name == name && field.on.contains(&endpoint))
}
