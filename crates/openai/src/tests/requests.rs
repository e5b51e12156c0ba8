//! Bodies and what becomes of them.

use serde_json::json;

use super::{FACTS, chat, completion, decided, resolved, with};
use crate::{ApiError, Bounds, ChatMessage, Endpoint, Prompt, ResponsesRequest, StreamOptions};
use Endpoint::{Chat, Completions, Detokenize, Embeddings, Generate, Responses, Tokenize};

/// A field's value, and either `""` (accepted) or `param: part of the message`.
const VALUES: &[(Endpoint, &str, &str, &str)] = &[
    // prompt
    (Completions, "prompt", r#""hello""#, ""),
    (Completions, "prompt", r#"["a", "b"]"#, ""),
    (Completions, "prompt", "[1, 2]", ""),
    (Completions, "prompt", "[[1], [2, 3]]", ""),
    (Completions, "prompt", r#"["a", [1]]"#, ""),
    (Completions, "prompt", "null", "prompt: is required"),
    (Completions, "prompt", r#""""#, "prompt: must not be empty"),
    (Completions, "prompt", "[]", "prompt: must not be empty"),
    (Completions, "prompt", r#"["a", ""]"#, "prompt[1]: prompt[1] must not be empty"),
    (Completions, "prompt", "[[]]", "prompt[0]: must not be empty"),
    (Completions, "prompt", r#"["a", 1]"#, "prompt[1]: must be a string or a list of token ids, got 1"),
    (Completions, "prompt", r#"[1, "a"]"#, "prompt: must be a whole number, got a string of 1 characters"),
    (Completions, "prompt", "[4294967296]", "prompt: from 0 to 4294967295, got 4294967296"),
    (Completions, "prompt", "{}", "prompt: got an object of 0"),
    // messages
    (Chat, "messages", r#"[{"role": "user", "content": [{"type": "text", "text": "a"}]}]"#, ""),
    (Chat, "messages", r#"[{"role": "assistant", "content": null}]"#, ""),
    (
        Chat,
        "messages",
        r#"[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": 1}"}}]}]"#,
        "",
    ),
    (Chat, "messages", "null", "messages: is required"),
    (Chat, "messages", "[]", "messages: must not be empty"),
    (Chat, "messages", r#""hi""#, "messages: must be a list, got a string of 2 characters"),
    (Chat, "messages", "[1]", "messages[0]: must be an object, got 1"),
    (Chat, "messages", r#"[{"content": "x"}]"#, "messages[0].role: must be a string, got null"),
    (Chat, "messages", r#"[{"role": "user"}]"#, "messages[0].content: is required for the role user"),
    (Chat, "messages", r#"[{"role": "user", "content": 1}]"#, "messages[0].content: got 1"),
    (
        Chat,
        "messages",
        r#"[{"role": "user", "content": [{"type": "image_url"}]}]"#,
        "messages[0].content[0].type: content of type \"image_url\" is not supported yet",
    ),
    (
        Chat,
        "messages",
        r#"[{"role": "user", "content": [{"type": "text"}]}]"#,
        "messages[0].content[0].text: must be a string",
    ),
    (
        Chat,
        "messages",
        r#"[{"role": "user", "content": ["x"]}]"#,
        "messages[0].content[0]: must be an object with a type",
    ),
    (
        Chat,
        "messages",
        r#"[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]"#,
        "messages[0].tool_calls[0].function.arguments: not valid JSON",
    ),
    (
        Chat,
        "messages",
        r#"[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]"#,
        "messages[0].tool_calls[0].function.arguments: must be a string that holds a JSON object, got a list of 1",
    ),
    (Chat, "messages", r#"[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}]"#, ""),
    (
        Chat,
        "messages",
        r#"[{"role": "assistant", "tool_calls": [{"function": {}}]}]"#,
        "messages[0].tool_calls[0].function.name: must be a string, got null",
    ),
    (
        Chat,
        "messages",
        r#"[{"role": "assistant", "tool_calls": [{}]}]"#,
        "messages[0].tool_calls[0].function: must be an object, got null",
    ),
    (Chat, "messages", r#"[{"role": "assistant", "tool_calls": 1}]"#, "messages[0].tool_calls: must be a list"),
    // stop
    (Chat, "stop", r#""x""#, ""),
    (Chat, "stop", r#"["a", "b", "c", "d"]"#, ""),
    (Chat, "stop", "[]", ""),
    (Chat, "stop", r#"["a", "b", "c", "d", "e"]"#, "stop: has 5 entries, more than the 4 allowed"),
    (Chat, "stop", r#""""#, "stop: empty string"),
    (Chat, "stop", "1", "stop: must be a string or a list of strings, got 1"),
    (Completions, "stop_token_ids", "[1, 2]", ""),
    (Completions, "stop_token_ids", r#"["1"]"#, "stop_token_ids: must be a whole number"),
    // generate
    (Generate, "prompt", "null", "prompt: is required"),
    (Generate, "prompt", r#""""#, "prompt: must not be empty"),
    (Generate, "model", r#""any""#, ""),
    (Generate, "max_tokens", "0", "max_tokens: from 1"),
    (Generate, "guided_json", "{}", "guided_json: is not a parameter of /generate"),
    (Generate, "use_beam_search", "true", "use_beam_search: needs best_of (or n) of at least 2, got 1"),
    (Generate, "early_stopping", r#""never""#, "early_stopping: needs use_beam_search to be true"),
    (
        Generate,
        "early_stopping",
        r#""soon""#,
        "early_stopping: must be true, false or \"never\", got a string of 4 characters",
    ),
    (Generate, "detokenize", "true", ""),
    (Generate, "detokenize", "false", "detokenize: not supported yet"),
    // responses
    (Responses, "input", "null", "input: is required"),
    (Responses, "input", "[]", "input: must not be empty"),
    (Responses, "input", r#"[{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]"#, ""),
    (
        Responses,
        "input",
        r#"[{"role": "user", "content": [{"type": "input_image"}]}]"#,
        "input[0].content[0].type: not supported yet",
    ),
    (Responses, "input", r#"[{"type": "function_call"}]"#, "input[0].call_id: must be a string, got null"),
    (
        Responses,
        "input",
        r#"[{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{"}]"#,
        "input[0].arguments: not valid JSON",
    ),
    (
        Responses,
        "input",
        r#"[{"type": "function_call_output", "call_id": "1"}]"#,
        "input[0].output: must be a string or a list of parts, got null",
    ),
    (Responses, "input", r#"[{"type": "reasoning", "summary": []}]"#, "input: must hold more than thoughts"),
    (Responses, "input", r#"[{"type": "item_reference", "id": "x"}]"#, "input[0].type: not supported yet"),
    (Responses, "store", "1", "store: must be true or false"),
    (Responses, "metadata", "1", "metadata: must be an object"),
    (Responses, "n", "1000000", ""),
    (Responses, "tools", "[]", ""),
    (Responses, "tools", "[{}]", "tools[0].type: must be \"function\""),
    (Responses, "tools", r#"[{"type": "function", "name": "f", "parameters": null, "strict": false}]"#, ""),
    (Responses, "tools", r#"[{"type": "function"}]"#, "tools[0].name: must be a string, got null"),
    (Responses, "tool_choice", r#"{"type": "function", "name": "f"}"#, "tool_choice: needs tools"),
    (Responses, "text", r#"{"format": {"type": "text"}}"#, ""),
    (Responses, "text", r#"{"format": {"type": "json_object"}}"#, ""),
    (Responses, "text", r#"{"format": {"type": "json_schema", "name": "x", "schema": {}}}"#, ""),
    (Responses, "text", r#"{"format": {"type": "json_schema"}}"#, "text.format.schema: is required"),
    (Responses, "text", r#"{"format": {"type": "xml"}}"#, "text.format: must be text, json_object or json_schema"),
    (Responses, "text", r#"{"format": "text"}"#, "text.format: must be an object with type"),
    (Responses, "truncation", r#""disabled""#, ""),
    (Responses, "previous_response_id", r#""resp_1""#, ""),
    (Responses, "previous_response_id", "1", "previous_response_id: must be a string"),
    // embeddings
    (Embeddings, "input", "null", "input: is required"),
    (Embeddings, "input", r#"["a", "b"]"#, ""),
    (Embeddings, "input", "[[1, 2], [3]]", ""),
    (Embeddings, "input", "[1, 2]", ""),
    (Embeddings, "input", "[]", "input: must not be empty"),
    (Embeddings, "messages", r#"[{"role": "user", "content": "x"}]"#, ""),
    (Embeddings, "messages", "[]", "messages: must not be empty"),
    (Embeddings, "input", r#"["a", {}]"#, "input[1]: must be a string or a list of token ids, got an object of 0"),
    (Embeddings, "encoding_format", r#""base64""#, ""),
    (Embeddings, "encoding_format", r#""int8""#, "encoding_format: must be float or base64"),
    (Embeddings, "dimensions", "0", "dimensions: from 1"),
    (Embeddings, "n", "0", ""),
    // tokenize
    (Tokenize, "prompt", r#""hello""#, ""),
    (Tokenize, "prompt", r#""""#, ""),
    (Tokenize, "prompt", "null", "prompt: prompt or messages is required"),
    (Tokenize, "prompt", "[1]", "prompt: must be a string, got a list of 1"),
    (Tokenize, "messages", "[]", "messages: must not be empty"),
    (Tokenize, "tools", "[{}]", ""),
    (Tokenize, "chat_template", r#""x""#, ""),
    (Detokenize, "tokens", "[]", ""),
    (Detokenize, "tokens", "null", "tokens: is required"),
    (Detokenize, "tokens", r#""1""#, "tokens: must be a list"),
    (Detokenize, "tokens", "[1.5]", "tokens: must be a whole number"),
    // sampling
    (Chat, "temperature", "2.1", "temperature: must be at least 0 and at most 2, got 2.1"),
    (Chat, "temperature", r#""hot""#, "temperature: must be a number, got a string of 3 characters"),
    (Chat, "top_p", "0", "top_p: must be greater than 0 and at most 1, got 0"),
    (Chat, "top_k", "-1", ""),
    (Chat, "top_k", "0", ""),
    (Chat, "top_k", "-2", "top_k: from -1 to 4294967295, got -2"),
    (Chat, "n", "9", "n: must be a whole number from 1 to 8, got 9"),
    (Chat, "n", "1.5", "n: must be a whole number from 1 to 8, got 1.5"),
    (Chat, "n", "2.0", ""),
    (Chat, "best_of", "1", ""),
    (Chat, "best_of", "2", ""),
    (Chat, "truncate_prompt_tokens", "-1", ""),
    (Chat, "truncate_prompt_tokens", "0", "truncate_prompt_tokens: -1 or at least 1"),
    (Chat, "truncate_prompt_tokens", "-2", "truncate_prompt_tokens: from -1"),
    (Chat, "truncation_side", r#""middle""#, "truncation_side: must be left or right"),
    (Chat, "logit_bias", r#"{"5": 1, "6": -200}"#, ""),
    (
        Chat,
        "logit_bias",
        r#"{"5": 1, "1000": 1}"#,
        "logit_bias: token id 1000 is outside the vocabulary of 1000 tokens",
    ),
    (Chat, "logit_bias", r#"{"hello": 1}"#, "logit_bias: keys must be token ids written as strings, got \"hello\""),
    (Chat, "logit_bias", r#"{"5": "1"}"#, "logit_bias: logit_bias[\"5\"] must be a number"),
    (Chat, "logit_bias", "[1]", "logit_bias: must be an object"),
    (Chat, "seed", "-1", ""),
    (Chat, "seed", "9223372036854775808", "seed: got 9223372036854775808"),
    // length
    (Completions, "max_tokens", "0", "max_tokens: at least 1 without echo"),
    (Chat, "max_tokens", "0", "max_tokens: from 1"),
    (Chat, "max_tokens", "4086", ""),
    (
        Chat,
        "max_tokens",
        "4087",
        ": maximum context length is 4096 tokens. However, you requested 4097 tokens (10 in the prompt, 4087 in the completion)",
    ),
    (Completions, "min_tokens", "17", "min_tokens: at most max_tokens, got min_tokens 17 with 16"),
    // streaming
    (Chat, "stream", r#""yes""#, "stream: must be true or false, got a string of 3 characters"),
    (Chat, "stream_options", r#"{"include_usage": true}"#, "stream_options: needs stream to be true"),
    (Chat, "stream_options", "[]", "stream_options: must be an object"),
    // logprobs
    (Completions, "logprobs", "0", ""),
    (Completions, "logprobs", "20", ""),
    (Completions, "logprobs", "21", "logprobs: from 0 to 20, got 21"),
    (Completions, "logprobs", "true", "logprobs: must be a whole number"),
    (Chat, "logprobs", "true", ""),
    (Chat, "logprobs", "5", "logprobs: must be true or false"),
    (Chat, "top_logprobs", "0", ""),
    (Chat, "top_logprobs", "5", "top_logprobs: needs logprobs to be true"),
    // names
    (Chat, "cache_salt", r#""tenant-1""#, ""),
    (Chat, "cache_salt", r#""a@b""#, "cache_salt: must not contain"),
    (Chat, "cache_salt", r#""""#, "cache_salt: must not be empty"),
    (Chat, "request_id", r#""abc-1""#, ""),
    (Chat, "request_id", r#""a b""#, "request_id: printable ASCII"),
    // template
    (Chat, "chat_template_kwargs", r#"{"enable_thinking": false}"#, ""),
    (Chat, "chat_template_kwargs", r#"{"messages": []}"#, "chat_template_kwargs: the template's own variable messages"),
    (Chat, "chat_template_kwargs", "1", "chat_template_kwargs: must be an object"),
    (Chat, "documents", r#"[{"title": "t", "text": "x"}]"#, ""),
    (Chat, "continue_final_message", "true", ""),
    // tools
    (Chat, "tool_choice", r#""none""#, ""),
    (Chat, "tool_choice", r#""auto""#, ""),
    (Chat, "tool_choice", r#""required""#, "tool_choice: needs tools"),
    (Chat, "tool_choice", r#"{"type": "function"}"#, "tool_choice: needs tools"),
    (Chat, "tools", "[]", "tools: must not be empty"),
    (Chat, "tools", r#"[{"type": "function"}]"#, "tools[0].function: must be an object, got null"),
    (Chat, "tools", r#"[{"type": "function", "function": {"name": "f"}}]"#, ""),
    (
        Chat,
        "tools",
        r#"[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": true}}]"#,
        "",
    ),
    (
        Chat,
        "tools",
        r#"[{"type": "function", "function": {"name": "f", "parameters": 1}}]"#,
        "tools[0].function.parameters: must be an object (a JSON schema), got 1",
    ),
    (Chat, "tools", r#"[{"type": "function", "function": {"name": "a b"}}]"#, "tools[0].function.name: must be a word"),
    (Chat, "tools", r#"[{"type": "function", "function": {}}]"#, "tools[0].function.name: must be a string, got null"),
    (Chat, "tools", r#"[{"type": "web_search"}]"#, "tools[0].type: a tool of type \"web_search\" is not supported yet"),
    (Chat, "tools", r#"[{"function": {"name": "f"}}]"#, "tools[0].type: must be \"function\""),
    (
        Chat,
        "tools",
        r#"[{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}]"#,
        "tools: the name \"f\" is there twice",
    ),
    (Chat, "tools", "1", "tools: must be a list"),
    (Chat, "parallel_tool_calls", "1", "parallel_tool_calls: must be true or false"),
    (Chat, "include_reasoning", "false", ""),
    // structured output
    (Chat, "response_format", r#"{"type": "text"}"#, ""),
    (Chat, "response_format", r#"{"type": "json_object"}"#, ""),
    (
        Chat,
        "response_format",
        r#"{"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": true}}"#,
        "",
    ),
    (Chat, "response_format", r#"{"type": "json_schema"}"#, "response_format.json_schema: is required"),
    (
        Chat,
        "response_format",
        r#"{"type": "json_schema", "json_schema": {}}"#,
        "response_format.json_schema.schema: is required",
    ),
    (Chat, "response_format", r#"{"type": "structural_tag"}"#, "response_format: structural_tag is not supported yet"),
    (Chat, "response_format", r#""json""#, "response_format: must be an object with type"),
    (Completions, "guided_json", "{}", ""),
    (Completions, "guided_json", r#""{\"type\": \"object\"}""#, ""),
    (Completions, "guided_json", r#""{""#, "guided_json: not valid JSON"),
    (Completions, "guided_json", r#""[]""#, "guided_json: must be a JSON schema"),
    (Completions, "guided_json", "[]", "guided_json: must be a JSON schema"),
    (Chat, "guided_regex", r#""a+""#, ""),
    (Chat, "guided_regex", r#""""#, "guided_regex: must not be empty"),
    (Chat, "guided_regex", "1", "guided_regex: must be a string"),
    (Chat, "guided_choice", r#"["a", "b"]"#, ""),
    (Chat, "guided_choice", "[]", "guided_choice: must not be empty"),
    (Chat, "guided_choice", r#"["a", ""]"#, "guided_choice: must not be empty"),
    (Chat, "guided_choice", r#""a""#, "guided_choice: must be a list"),
    (Chat, "guided_grammar", r#""start: /a/""#, ""),
    (Chat, "guided_whitespace_pattern", r#""[ ]?""#, ""),
    (Chat, "guided_decoding_backend", r#""outlines""#, ""),
    (
        Chat,
        "structured_outputs",
        r#"{"regex": "a", "json": null, "json_object": false, "whitespace_pattern": " "}"#,
        "",
    ),
    (Chat, "structured_outputs", r#"{"json_object": true, "disable_any_whitespace": true}"#, ""),
    (Chat, "structured_outputs", "{}", "structured_outputs: exactly one of"),
    (Chat, "structured_outputs", r#"{"regex": "a", "choice": ["a"]}"#, "structured_outputs: exactly one of"),
    (Chat, "structured_outputs", r#"{"json": 1}"#, "structured_outputs.json: must be a JSON schema"),
    (
        Chat,
        "structured_outputs",
        r#"{"structural_tag": "x"}"#,
        "structured_outputs.structural_tag: is not supported yet",
    ),
    // refused until built, unless they ask for nothing
    (Completions, "use_beam_search", "false", ""),
    (Completions, "use_beam_search", "true", "use_beam_search: needs best_of (or n) of at least 2, got 1"),
    (Completions, "length_penalty", "1.0", ""),
    (Completions, "length_penalty", "2", "length_penalty: needs use_beam_search to be true"),
    (Completions, "suffix", r#""x""#, "suffix: not supported yet"),
    (Completions, "prompt_logprobs", "0", ""),
    (Chat, "prompt_logprobs", "21", "prompt_logprobs: from 0 to 20, got 21"),
    (Chat, "bad_words", "[]", ""),
    (Chat, "priority", "0", ""),
    (Chat, "bad_words", r#"["a", " b"]"#, ""),
    (Chat, "bad_words", r#"["a", ""]"#, "bad_words: must not hold an empty string"),
    (Chat, "bad_words", r#""a""#, "bad_words: must be a list"),
    (Completions, "bad_words", "[1]", "bad_words: must be a list of strings, got 1"),
    (Completions, "allowed_token_ids", "[1, 999]", ""),
    (Chat, "allowed_token_ids", "[]", "allowed_token_ids: must not be empty"),
    (Chat, "allowed_token_ids", "[1000]", "allowed_token_ids: token id 1000 is outside the vocabulary"),
    (Chat, "priority", "-1000", ""),
    (Chat, "priority", "1001", "priority: from -1000 to 1000, got 1001"),
    (Chat, "chat_template", r#""{{ x }}""#, ""),
    (Chat, "chat_template", "1", "chat_template: must be a string, got 1"),
    (Chat, "echo", "false", ""),
    (Chat, "echo", "true", ""),
    // accepted and without effect
    (Chat, "user", r#""me""#, ""),
    (Chat, "metadata", r#"{"a": 1}"#, ""),
    (Chat, "never_heard_of", "[[1]]", ""),
];

#[test]
fn the_forms_of_the_text_become_grammars() {
    use types::Grammar::{Choice, JsonObject, JsonSchema, Lark, Regex};
    let check = |fields: &str, expected: types::Grammar| {
        let body = format!(r#"{{"prompt": "x", {fields}}}"#);
        assert_eq!(resolved(Completions, &body).unwrap().grammar, Some(expected), "{body}");
    };
    check(r#""response_format": {"type": "json_object"}"#, JsonObject);
    check(r#""guided_json": {"b": 1, "a": 2}"#, JsonSchema(r#"{"b":1,"a":2}"#.into()));
    check(r#""guided_json": "{ \"a\": 2 }""#, JsonSchema(r#"{"a":2}"#.into()));
    check(r#""guided_regex": "a+", "response_format": {"type": "text"}"#, Regex("a+".into()));
    check(r#""guided_choice": ["a", "b"]"#, Choice(["a".into(), "b".into()].into()));
    check(r#""structured_outputs": {"grammar": "start: /a/"}"#, Lark("start: /a/".into()));
    let spaced = JsonSchema(r#"{"type":"object","x-guidance":{"whitespace_flexible":false}}"#.into());
    check(r#""structured_outputs": {"json_object": true, "disable_any_whitespace": true}"#, spaced);
}

#[test]
fn two_forms_of_one_text_are_refused_by_name() {
    let body = r#"{"prompt": "x", "guided_regex": "a", "response_format": {"type": "json_object"}}"#;
    let error = resolved(Completions, body).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("guided_regex"));
    assert_eq!(error.message, "response_format and guided_regex cannot be used together: one form of the text at most");
}

#[test]
fn grammars_are_bounded() {
    let check = |field: &str, value: serde_json::Value, part: &str| {
        let error = resolved(Completions, &json!({ "prompt": "x", field: value }).to_string()).unwrap_err();
        assert!(error.message.contains(part) && error.param.as_deref() == Some(field), "{field}: {error}");
    };
    let deep = (0..40).fold(json!({}), |inner, _| json!({ "items": inner }));
    check("guided_json", deep, "nested 41 deep, more than the 32 allowed");
    let keys: serde_json::Map<_, _> = (0..20_000).map(|i| (format!("key{i}"), json!({}))).collect();
    check("guided_json", json!({ "properties": keys }), "bytes, more than the 65536 allowed");
    check("guided_json", json!(" ".repeat(70_000)), "70000 bytes, more than the 65536 allowed");
    check("guided_regex", json!("a".repeat(5000)), "5000 bytes, more than the 4096 allowed");
    check("guided_grammar", json!("a".repeat(70_000)), "70000 bytes, more than the 65536 allowed");
    check("guided_choice", json!(vec!["a"; 1025]), "1025 entries, more than the 1024 allowed");
    check("guided_choice", json!(vec!["a".repeat(1000); 100]), "100000 bytes, more than the 65536 allowed");
}

#[test]
fn one_field_at_a_time() {
    for (endpoint, field, json, expected) in VALUES {
        check(*endpoint, &with(*endpoint, field, json), expected);
    }
}

fn check(endpoint: Endpoint, body: &str, expected: &str) {
    match (resolved(endpoint, body), expected.split_once(": ")) {
        (Ok(_), None) => {}
        (Err(error), Some((param, part))) => {
            assert_eq!(error.param.as_deref().unwrap_or_default(), param, "{body}: {error}");
            assert!(error.message.contains(part), "{body}: {error}");
            assert_eq!(error.status(), 400, "{body}: {error}");
        }
        (found, _) => panic!("{body}: {found:?}, expected {expected:?}"),
    }
}

#[test]
fn fields_together() {
    let chat = |fields: &str| format!(r#"{{"messages": [{{"role": "user", "content": "x"}}], {fields}}}"#);
    let completion = |fields: &str| format!(r#"{{"prompt": "x", {fields}}}"#);
    check(Chat, &chat(r#""n": 2, "temperature": 0"#), "n: must be 1 with greedy sampling (temperature 0), got 2");
    check(Tokenize, &chat(r#""prompt": "x""#), "prompt: send prompt or messages, not both");
    check(Chat, &chat(r#""n": 2, "best_of": 2"#), "");
    check(Chat, &chat(r#""best_of": 2, "temperature": 0"#), "best_of: must be 1 with greedy sampling");
    check(Chat, &chat(r#""n": 2, "best_of": 1"#), "best_of: at least n, got best_of 1 with n 2");
    check(Chat, &chat(r#""logprobs": true, "top_logprobs": 20"#), "");
    check(
        Chat,
        &chat(r#""stream": true, "stream_options": {"include_usage": 1}"#),
        "stream_options.include_usage: true or false, got 1",
    );
    check(
        Chat,
        &chat(r#""continue_final_message": true, "add_generation_prompt": true"#),
        "continue_final_message: cannot both be true",
    );
    let tools = |choice: &str| {
        chat(&format!(r#""tools": [{{"type": "function", "function": {{"name": "f"}}}}], "tool_choice": {choice}"#))
    };
    check(Chat, &tools(r#""none""#), "");
    check(Chat, &tools(r#""auto""#), "");
    check(Chat, &tools(r#""required""#), "");
    check(Chat, &tools(r#"{"type": "function", "function": {"name": "f"}}"#), "");
    check(
        Chat,
        &tools(r#""required", "guided_regex": "a""#),
        "tool_choice: insists on a call, so guided_regex cannot ask for another form of the text",
    );
    check(Chat, &tools(r#""any""#), "tool_choice: must be none, auto, required or an object that names a function");
    check(
        Chat,
        &tools(r#"{"type": "function", "function": {"name": "g"}}"#),
        "tool_choice: names the function \"g\", which is not in tools",
    );
    check(Chat, &tools(r#"{"type": "function"}"#), "tool_choice: must be none, auto, required or an object");
    let parallel = |more: &str| super::chat(&tools(&format!(r#""auto"{more}"#))).unwrap().tools.unwrap().parallel;
    assert!(parallel("") && !parallel(r#", "parallel_tool_calls": false"#));
    check(Chat, &tools("1"), "tool_choice: must be none, auto, required or an object");
    check(Completions, &completion(r#""echo": true, "logprobs": 1"#), "");
    check(Completions, &completion(r#""stream": true, "prompt_logprobs": 0"#), "");
    check(Chat, &chat(r#""stream": true, "prompt_logprobs": 1"#), "prompt_logprobs: cannot be streamed");
    check(Completions, &completion(r#""echo": true, "max_tokens": 0"#), "");
    check(Completions, &completion(r#""max_tokens": 5, "min_tokens": 6"#), "min_tokens: at most max_tokens");
}

#[test]
fn bounds_on_counts_and_sizes() {
    let list = |item: &str, count: usize| format!("[{}]", vec![item; count].join(","));
    let user = r#"{"role":"user","content":"x"}"#;
    check(Chat, &with(Chat, "messages", &list(user, 1024)), "");
    check(Chat, &with(Chat, "messages", &list(user, 1025)), "messages: has 1025 entries, more than the 1024 allowed");
    check(Completions, &with(Completions, "prompt", &list("\"x\"", 1024)), "");
    check(Completions, &with(Completions, "prompt", &list("\"x\"", 1025)), "prompt: has 1025 prompts");
    let many = format!(r#"{{"prompt": {}, "n": 8}}"#, list("\"x\"", 129));
    check(Completions, &many, "prompt: has 1032 sequences (prompts x best_of), more than the 1024 allowed");
    check(Chat, &with(Chat, "stop", &format!("{:?}", "s".repeat(256))), "");
    check(
        Chat,
        &with(Chat, "stop", &format!("{:?}", "s".repeat(257))),
        "stop: has 257 bytes in one string, more than the 256 allowed",
    );
    check(Chat, &with(Chat, "stop_token_ids", &list("1", 257)), "stop_token_ids: more than the 256 allowed");
    let bias: serde_json::Map<_, _> = (0..1025).map(|id| (id.to_string(), json!(0))).collect();
    check(
        Chat,
        &with(Chat, "logit_bias", &json!(bias).to_string()),
        "logit_bias: has 1025 entries, more than the 1024 allowed",
    );
    check(
        Chat,
        &with(Chat, "cache_salt", &format!("{:?}", "s".repeat(129))),
        "cache_salt: has 129 characters, more than the 128",
    );
    check(
        Chat,
        &with(Chat, "model", &format!("{:?}", "s".repeat(257))),
        "model: has 257 characters, more than the 256",
    );
    check(
        Chat,
        &with(Chat, "chat_template_kwargs", &json!({ "x": "y".repeat(65_536) }).to_string()),
        "chat_template_kwargs: bytes",
    );
    check(
        Chat,
        &with(Chat, "chat_template", &format!("{:?}", "x".repeat(65_537))),
        "chat_template: has 65537 bytes, more than the 65536",
    );
    check(Chat, &with(Chat, "bad_words", &list("\"x\"", 257)), "bad_words: has 257 entries, more than the 256");
    check(Chat, &with(Chat, "allowed_token_ids", &list("1", 16_385)), "allowed_token_ids: more than the 16384");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    check(Chat, &with(Chat, "metadata", &deep), ": nested 100001 deep, more than the 64 allowed");
    let error = chat(&format!("{{\"x\": \"{}\"}}", "y".repeat(4 << 20))).unwrap_err();
    assert_eq!((error.status(), error.param), (413, None));
}

#[test]
fn every_bound_is_in_the_table() {
    let names: Vec<_> = Bounds::TABLE.iter().map(|bound| bound.name).collect();
    assert_eq!(names.len(), format!("{:?}", Bounds::default()).matches(": ").count());
    assert!(
        Bounds::TABLE.iter().all(|bound| bound.default > 0 && bound.doc.ends_with('.') && !bound.doc.starts_with(' '))
    );
}

#[test]
fn values_reach_the_sampler() {
    let body = r#"{"prompt": "x", "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 3, "presence_penalty": 1,
        "frequency_penalty": -1, "repetition_penalty": 1.1, "logit_bias": {"5": 1, "6": -200}, "stop_token_ids": [9], "ignore_eos": true,
        "min_tokens": 2, "max_tokens": 50, "logprobs": 4, "allowed_token_ids": [1, 5], "priority": -3}"#;
    let expected = types::SamplingParams {
        temperature: 0.5,
        top_p: 0.9,
        top_k: 40,
        min_p: 0.1,
        seed: 3,
        presence_penalty: 1.0,
        frequency_penalty: -1.0,
        repetition_penalty: 1.1,
        logit_bias: vec![(5, 1.0), (6, -100.0)],
        stop_token_ids: vec![9],
        ignore_eos: true,
        min_tokens: 2,
        max_tokens: 50,
        logprobs: Some(4),
        allowed_token_ids: vec![1, 5],
        priority: -3,
        ..types::SamplingParams::default()
    };
    assert_eq!(resolved(Completions, body), Ok(expected));
}

#[test]
fn a_prompt_is_scored_where_it_is_reported_or_echoed() {
    let check = |fields: &str, scored: Option<u32>, max_tokens: u32| {
        let sampling = resolved(Completions, &format!(r#"{{"prompt": "x", {fields}}}"#)).unwrap();
        assert_eq!((sampling.prompt_logprobs, sampling.max_tokens), (scored, max_tokens), "{fields}");
    };
    check(r#""logprobs": 2"#, None, 16);
    check(r#""prompt_logprobs": 3"#, Some(3), 16);
    check(r#""echo": true, "logprobs": 2"#, Some(2), 16);
    check(r#""echo": true, "logprobs": 2, "prompt_logprobs": 5"#, Some(5), 16);
    check(r#""echo": true, "max_tokens": 0"#, None, 0);
    // Scores come with a token that nobody asked for.
    check(r#""echo": true, "max_tokens": 0, "logprobs": 0"#, Some(0), 1);
    let generation = completion(r#"{"prompt": "x", "prompt_logprobs": 3, "n": 2}"#).unwrap().generation;
    assert!(generation.check_scores(131_072, &Bounds::default()).is_ok());
    let refused = generation.check_scores(131_073, &Bounds::default()).unwrap_err();
    assert!(refused.message.contains("more than the 1048576 allowed"), "{refused}");
}

#[test]
fn rules_of_a_beam_search() {
    let search = |fields: &str, expected: &str| {
        let body = format!(r#"{{"prompt": "x", "use_beam_search": true, {fields}}}"#);
        check(Completions, &body, expected);
    };
    search(r#""temperature": 0, "n": 2"#, "");
    search(r#""temperature": 0, "best_of": 4, "early_stopping": "never", "length_penalty": -1"#, "");
    search(r#""n": 2"#, "temperature: must be 0 with use_beam_search, got 1");
    search(r#""temperature": 0"#, "use_beam_search: needs best_of (or n) of at least 2, got 1");
    search(r#""temperature": 0, "n": 2, "top_p": 0.5"#, "top_p: must be 1 with use_beam_search, got 0.5");
    search(r#""temperature": 0, "n": 2, "top_k": 3"#, "top_k: must be off (-1 or 0) with use_beam_search, got 3");
    search(r#""temperature": 0, "n": 3, "best_of": 2"#, "best_of: must be at least n");
    search(r#""temperature": 0, "n": 2, "stream": true"#, "stream: use_beam_search finds its texts at the end");
    search(r#""temperature": 0, "n": 2, "guided_regex": "a""#, "use_beam_search: cannot be combined with guided_regex");
    let searched =
        r#"{"prompt": "x", "use_beam_search": true, "temperature": 0, "n": 2, "best_of": 4, "early_stopping": true}"#;
    let valid = completion(searched).unwrap();
    assert_eq!((valid.generation.n, valid.generation.best_of), (2, 2), "the width is the search's own affair");
    let beam = types::BeamParams { width: 4, length_penalty: 1.0, early_stopping: types::EarlyStopping::Yes };
    assert_eq!(resolved(Completions, searched).unwrap().beam, Some(beam));
}

#[test]
fn defaults() {
    let sampling = resolved(Completions, r#"{"prompt": "x"}"#).unwrap();
    assert_eq!((sampling.max_tokens, sampling.temperature, sampling.seed, sampling.logprobs), (16, 1.0, 7, None));
    let valid = chat(r#"{"messages": [{"role": "user", "content": "x"}]}"#).unwrap();
    let conversation = &valid.conversation;
    assert_eq!(
        (conversation.add_generation_prompt, conversation.continue_final_message, conversation.add_special_tokens),
        (true, false, false)
    );
    let generation = &valid.generation;
    assert_eq!(
        (generation.n, generation.stream, generation.max_tokens, generation.skip_special_tokens),
        (1, None, None, true)
    );
    assert_eq!(generation.sampling(96, &FACTS, 1).unwrap().max_tokens, 4000);
    let full = generation.sampling(4096, &FACTS, 1).unwrap_err();
    assert!(full.message.contains("you requested 4096 tokens (4096 in the prompt, 0 in the completion)"), "{full}");
    assert!(generation.sampling(1_000_000, &FACTS, 1).is_err());
    let open = chat(&with(Chat, "continue_final_message", "true")).unwrap();
    assert!(!open.conversation.add_generation_prompt);
}

#[test]
fn a_prompt_is_cut_as_asked() {
    let check = |fields: &str, expected: Result<&[u32], &str>| {
        let valid = completion(&format!(r#"{{"prompt": "x", {fields}}}"#)).unwrap();
        let mut prompt: Vec<u32> = (0..10).collect();
        let facts = crate::ModelFacts { max_model_len: 8, ..FACTS };
        let cut = valid.generation.truncate(&mut prompt, &facts).map(|()| prompt.as_slice());
        assert_eq!(cut.map_err(|error| error.message), expected.map_err(str::to_owned), "{fields}");
    };
    check(r#""n": 1"#, Ok(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]));
    check(r#""truncate_prompt_tokens": 3"#, Ok(&[7, 8, 9]));
    check(r#""truncate_prompt_tokens": 3, "truncation_side": "right""#, Ok(&[0, 1, 2]));
    check(r#""truncate_prompt_tokens": -1, "max_tokens": 5"#, Ok(&[7, 8, 9]));
    check(
        r#""truncate_prompt_tokens": 9"#,
        Err("truncate_prompt_tokens must be at most the context's 8 tokens, got 9"),
    );
}

#[test]
fn the_plain_server_has_its_own_length() {
    let tokens = |json: &str| resolved(Generate, &with(Generate, "max_tokens", json)).unwrap().max_tokens;
    assert_eq!((tokens("5"), tokens("null")), (5, 4086));
    assert_eq!(resolved(Generate, r#"{"prompt": "x"}"#).unwrap().max_tokens, 16);
}

#[test]
fn small_rules_of_sampling() {
    let sampling = |field: &str, json: &str| resolved(Chat, &with(Chat, field, json)).unwrap();
    assert_eq!(sampling("temperature", "0").temperature, 0.0);
    assert_eq!(sampling("temperature", "0.001").temperature, 0.01);
    assert_eq!(sampling("top_k", "-1").top_k, 0);
    assert_eq!(sampling("seed", "-1").seed, 7);
    assert_eq!(sampling("seed", "-2").seed, -2i64 as u64);
    assert_eq!(sampling("max_completion_tokens", "5").max_tokens, 5);
    let both = r#"{"messages": [{"role": "user", "content": "x"}], "max_tokens": 9, "max_completion_tokens": 5}"#;
    assert_eq!(resolved(Chat, both).unwrap().max_tokens, 5);
    assert_eq!(resolved(Chat, &with(Chat, "logprobs", "true")).unwrap().logprobs, Some(0));
}

#[test]
fn streams() {
    let stream = |fields: &str| completion(&format!(r#"{{"prompt": "x", {fields}}}"#)).unwrap().generation.stream;
    assert_eq!(stream(r#""stream": false"#), None);
    assert_eq!(stream(r#""stream": true"#), Some(StreamOptions::default()));
    let both = StreamOptions { include_usage: true, continuous_usage_stats: true };
    assert_eq!(
        stream(r#""stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}"#),
        Some(both)
    );
    assert_eq!(stream(r#""stream": true, "stream_options": {}"#), Some(StreamOptions::default()));
}

#[test]
fn prompts_and_messages_as_the_scheduler_gets_them() {
    let prompts = |json: &str| completion(&with(Completions, "prompt", json)).unwrap().prompts;
    assert_eq!(prompts("\"a\""), [Prompt::Text("a".into())]);
    assert_eq!(prompts("[1, 2]"), [Prompt::Tokens(vec![1, 2])]);
    assert_eq!(prompts("[\"a\", [3]]"), [Prompt::Text("a".into()), Prompt::Tokens(vec![3])]);
    let body = r#"[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "N", "x": null},
        {"role": "assistant", "content": "c", "tool_calls": []},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{\"z\": 1, \"a\": 2}"}}]}]"#;
    let messages = chat(&with(Chat, "messages", body)).unwrap().conversation.messages;
    let seen: Vec<_> =
        messages.iter().map(|message| (message.content.as_deref(), json!(message.extra).to_string())).collect();
    let call = r#"{"tool_calls":[{"id":"1","function":{"name":"f","arguments":{"z":1,"a":2}}}]}"#;
    assert_eq!(seen, [(Some("a\nb"), r#"{"name":"N"}"#.into()), (Some("c"), "{}".into()), (None, call.into())]);
}

#[test]
fn errors_stay_small_and_do_not_repeat_input() {
    let secret = "secret".repeat(100_000);
    for endpoint in [Completions, Chat, Responses, Embeddings, Generate, Tokenize, Detokenize] {
        for field in crate::FIELDS.iter().filter(|field| field.on.contains(&endpoint)) {
            for json in [format!("\"{secret}\""), format!("[\"{secret}\"]"), format!("{{\"{secret}\": \"{secret}\"}}")]
            {
                if let Err(error) = decided(endpoint, &with(endpoint, field.name, &json)) {
                    let body = error.body();
                    assert!(body.len() <= 512, "{}: {} bytes", field.name, body.len());
                    assert!(body.matches("secret").count() <= 10, "{body}");
                }
            }
        }
    }
    let long = ApiError::bad_request("\u{1}ä".repeat(100_000)).body();
    assert!(long.len() <= 4096 && serde_json::from_str::<serde_json::Value>(&long).is_ok());
}

#[test]
fn items_become_the_messages_of_a_conversation() {
    let body = r#"{"instructions": "be brief", "input": [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "wait", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"z\": 1}"},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "1", "output": "7"},
        {"type": "function_call", "call_id": "3", "name": "g", "arguments": "{}"}]}"#;
    let mut request = ResponsesRequest::read(body.as_bytes(), &Bounds::default()).unwrap();
    let shown = |request: &ResponsesRequest| -> Vec<String> {
        let show = |message: &ChatMessage| {
            let extra = serde_json::Value::Object(message.extra.clone());
            format!("{} {} {extra}", message.role, message.content.as_deref().unwrap_or("-"))
        };
        request.conversation().messages.iter().map(show).collect()
    };
    let calls = r#"{"reasoning_content":"hm","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":{"z":1}}},{"id":"2","type":"function","function":{"name":"g","arguments":{}}}]}"#;
    let last = r#"{"tool_calls":[{"id":"3","type":"function","function":{"name":"g","arguments":{}}}]}"#;
    let expected = [
        "system be brief {}",
        "system d {}",
        "user a\nb {}",
        &format!("assistant wait {calls}"),
        r#"tool 7 {"tool_call_id":"1"}"#,
        &format!("assistant - {last}"),
    ];
    assert_eq!(shown(&request), expected);
    let earlier = request.messages.clone();
    request.go_on_from(&earlier, &Bounds::default()).unwrap();
    assert_eq!(shown(&request)[1..6], shown(&request)[6..], "the earlier ones in front, the instructions once");
    let narrow = Bounds { messages: 12, ..Bounds::default() };
    let error = request.go_on_from(&earlier, &narrow).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("previous_response_id"), "{error}");
}
