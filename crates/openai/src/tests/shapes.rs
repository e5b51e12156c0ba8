//! Every body and chunk, key for key and in order.

use serde::Serialize;
use types::TokenId;

use crate::{
    ApiError, ChatChoice, ChatChunk, ChatLogprobs, ChatPart, ChatResponse, CompletionChoice, CompletionChunk,
    CompletionLogprobs, CompletionResponse, DONE, ErrorKind, Finish, Head, ModelCard, ModelList, PieceOfText,
    TokenChance, TokenLogprob, Usage, sse_error, sse_event,
};

fn check(value: &impl Serialize, expected: &str) {
    assert_eq!(serde_json::to_string(value).unwrap(), expected);
}

fn head(id: &str) -> Head {
    Head { id: id.into(), created: 1, model: "demo".into() }
}

fn chance(token: &str, logprob: f32) -> TokenChance {
    TokenChance { token: token.into(), logprob, bytes: token.as_bytes().to_vec() }
}

fn tokens() -> Vec<TokenLogprob> {
    vec![
        TokenLogprob { sampled: chance("ä", -0.5), top: vec![chance("b", -0.25), chance("ä", -0.5)] },
        TokenLogprob { sampled: chance("c", f32::NEG_INFINITY), top: vec![chance("d", -0.1), chance("d", -3.0)] },
    ]
}

const CHAT_LOGPROBS: &str = r#"{"content":[{"token":"ä","logprob":-0.5,"bytes":[195,164],"top_logprobs":[{"token":"b","logprob":-0.25,"bytes":[98]},{"token":"ä","logprob":-0.5,"bytes":[195,164]}]},{"token":"c","logprob":-9999.0,"bytes":[99],"top_logprobs":[{"token":"d","logprob":-0.1,"bytes":[100]},{"token":"d","logprob":-3.0,"bytes":[100]}]}]}"#;
const COMPLETION_LOGPROBS: &str = r#"{"text_offset":[7,8],"token_logprobs":[-0.5,-9999.0],"tokens":["ä","c"],"top_logprobs":[{"b":-0.25,"ä":-0.5},{"d":-0.1,"c":-9999.0}]}"#;
const USAGE: &str =
    r#"{"prompt_tokens":5,"total_tokens":8,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}"#;

fn usage() -> Usage {
    Usage::new(5, 3, 4)
}

#[test]
fn logprobs() {
    check(&ChatLogprobs::new(&tokens()), CHAT_LOGPROBS);
    check(&CompletionLogprobs::new(&tokens(), 7), COMPLETION_LOGPROBS);
    check(&ChatLogprobs::new(&[]), r#"{"content":[]}"#);
}

fn said(text: &str) -> ChatPart {
    ChatPart::Content(text.to_owned())
}

fn called() -> Vec<ChatPart> {
    let call = |index, id: &str, name: &str| ChatPart::Call { index, id: id.to_owned(), name: name.to_owned() };
    let arguments = |index, text: &str| ChatPart::Arguments { index, text: text.to_owned() };
    vec![
        ChatPart::Reasoning("hm".to_owned()),
        call(0, "call_1", "f"),
        arguments(0, "{\"a\""),
        arguments(0, ": 1}"),
        call(1, "call_2", "g"),
        arguments(1, "{}"),
    ]
}

#[test]
fn calls_and_thoughts() {
    let choice = ChatChoice::new(0, called(), None, Finish::tool_calls());
    check(
        &choice,
        r#"{"index":0,"message":{"role":"assistant","content":null,"refusal":null,"reasoning":"hm","reasoning_content":"hm","tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}},{"id":"call_2","type":"function","function":{"name":"g","arguments":"{}"}}]},"logprobs":null,"finish_reason":"tool_calls","stop_reason":null,"token_ids":null}"#,
    );
    let usage = Usage::new(5, 3, 4).with_reasoning(2);
    check(&usage, &USAGE.replace("}}", r#"},"completion_tokens_details":{"reasoning_tokens":2}}"#));
    let (head, piece) = (head("chatcmpl-1"), PieceOfText::default());
    let deltas: Vec<String> = called()
        .iter()
        .map(|part| {
            serde_json::to_value(ChatChunk::part(&head, part, piece)).unwrap()["choices"][0]["delta"].to_string()
        })
        .collect();
    let expected = [
        r#"{"reasoning":"hm","reasoning_content":"hm"}"#,
        r#"{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}}]}"#,
        r#"{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]}"#,
        r#"{"tool_calls":[{"index":0,"function":{"arguments":": 1}"}}]}"#,
        r#"{"tool_calls":[{"index":1,"id":"call_2","type":"function","function":{"name":"g","arguments":""}}]}"#,
        r#"{"tool_calls":[{"index":1,"function":{"arguments":"{}"}}]}"#,
    ];
    assert_eq!(deltas, expected);
}

#[test]
fn completion_body() {
    let choices = vec![
        CompletionChoice::new(0, "hi".into(), None, Finish::stop_string("END")),
        CompletionChoice::new(1, "ho".into(), Some(CompletionLogprobs::new(&tokens(), 7)), Finish::length())
            .with_token_ids(vec![1], vec![2, 3]),
    ];
    let expected = format!(
        r#"{{"id":"cmpl-1","object":"text_completion","created":1,"model":"demo","choices":[{{"index":0,"text":"hi","logprobs":null,"finish_reason":"stop","stop_reason":"END","prompt_logprobs":null,"token_ids":null,"prompt_token_ids":null}},{{"index":1,"text":"ho","logprobs":{COMPLETION_LOGPROBS},"finish_reason":"length","stop_reason":null,"prompt_logprobs":null,"token_ids":[2,3],"prompt_token_ids":[1]}}],"usage":{USAGE}}}"#
    );
    check(&CompletionResponse::new(&head("cmpl-1"), choices, usage()), &expected);
}

#[test]
fn chat_body() {
    let choices = vec![
        ChatChoice::new(0, vec![said("hi")], Some(ChatLogprobs::new(&tokens())), Finish::stop_token(7))
            .with_token_ids(vec![2]),
    ];
    let body = ChatResponse::new(&head("chatcmpl-1"), choices, usage()).with_prompt_token_ids(vec![1]);
    let expected = format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"demo","choices":[{{"index":0,"message":{{"role":"assistant","content":"hi","refusal":null,"reasoning":null,"reasoning_content":null}},"logprobs":{CHAT_LOGPROBS},"finish_reason":"stop","stop_reason":7,"token_ids":[2]}}],"service_tier":null,"system_fingerprint":null,"usage":{USAGE},"prompt_logprobs":null,"prompt_token_ids":[1],"kv_transfer_params":null}}"#
    );
    check(&body, &expected);
}

#[test]
fn chat_stream() {
    let head = head("chatcmpl-1");
    let chunk = |rest: &str| {
        format!(r#"{{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"demo","choices":{rest}}}"#)
    };
    let role = r#"[{"index":1,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]"#;
    check(&ChatChunk::role(&head, 1, None), &chunk(role));
    check(&ChatChunk::role(&head, 1, Some(&[4, 5])), &chunk(&format!(r#"{role},"prompt_token_ids":[4,5]"#)));
    let text = PieceOfText { index: 1, ..PieceOfText::default() };
    let hi = said("hi");
    let content = r#"[{"index":1,"delta":{"content":"hi"},"logprobs":null,"finish_reason":null}]"#;
    check(&ChatChunk::part(&head, &hi, text), &chunk(content));
    check(&ChatChunk::part(&head, &hi, text).with_usage(usage()), &chunk(&format!(r#"{content},"usage":{USAGE}"#)));
    let (tokens, ids): (_, &[TokenId]) = (tokens(), &[9]);
    let rich = PieceOfText { logprobs: Some(&tokens), token_ids: Some(ids), ..text };
    check(
        &ChatChunk::part(&head, &hi, rich),
        &chunk(&format!(
            r#"[{{"index":1,"delta":{{"content":"hi"}},"logprobs":{CHAT_LOGPROBS},"finish_reason":null,"token_ids":[9]}}]"#
        )),
    );
    let eos = Finish::eos();
    let last = PieceOfText { finish: Some(&eos), ..text };
    check(
        &ChatChunk::silent(&head, last),
        &chunk(r#"[{"index":1,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":null}]"#),
    );
    let stopped = Finish::stop_string("END");
    let last = PieceOfText { finish: Some(&stopped), ..text };
    check(
        &ChatChunk::part(&head, &hi, last),
        &chunk(r#"[{"index":1,"delta":{"content":"hi"},"logprobs":null,"finish_reason":"stop","stop_reason":"END"}]"#),
    );
    check(&ChatChunk::usage(&head, usage()), &chunk(&format!(r#"[],"usage":{USAGE}"#)));
}

#[test]
fn completion_stream() {
    let head = head("cmpl-1");
    let chunk = |rest: &str| {
        format!(r#"{{"id":"cmpl-1","object":"text_completion","created":1,"model":"demo","choices":{rest}}}"#)
    };
    let text = PieceOfText { index: 2, text: "hi", ..PieceOfText::default() };
    let plain = r#"[{"index":2,"text":"hi","logprobs":null,"finish_reason":null,"stop_reason":null}]"#;
    check(&CompletionChunk::text(&head, text), &chunk(plain));
    check(&CompletionChunk::text(&head, text).with_usage(usage()), &chunk(&format!(r#"{plain},"usage":{USAGE}"#)));
    let (tokens, prompt, ids, abort): (_, &[TokenId], &[TokenId], _) = (tokens(), &[1], &[9], Finish::abort());
    let rich = PieceOfText {
        logprobs: Some(&tokens),
        text_offset: 7,
        token_ids: Some(ids),
        prompt_token_ids: Some(prompt),
        finish: Some(&abort),
        ..text
    };
    let expected = format!(
        r#"[{{"index":2,"text":"hi","logprobs":{COMPLETION_LOGPROBS},"finish_reason":"abort","stop_reason":null,"token_ids":[9],"prompt_token_ids":[1]}}]"#
    );
    check(&CompletionChunk::text(&head, rich), &chunk(&expected));
    check(&CompletionChunk::usage(&head, usage()), &chunk(&format!(r#"[],"usage":{USAGE}"#)));
}

#[test]
fn events() {
    assert_eq!(DONE, "data: [DONE]\n\n");
    assert_eq!(sse_event(&usage()), format!("data: {USAGE}\n\n"));
    let error = ApiError::new(ErrorKind::Internal, "two\nlines");
    let expected = r#"data: {"error":{"message":"two\nlines","type":"InternalServerError","param":null,"code":500}}"#;
    assert_eq!(sse_error(&error), format!("{expected}\n\n"));
}

#[test]
fn errors() {
    let check = |error: ApiError, expected: &str| assert_eq!(error.body(), expected);
    check(
        ApiError::bad_field("n", "no"),
        r#"{"error":{"message":"no","type":"BadRequestError","param":"n","code":400}}"#,
    );
    let unknown = r#"{"error":{"message":"The model `gpt` does not exist; this server serves `demo`.","type":"NotFoundError","param":"model","code":404}}"#;
    check(ApiError::unknown_model("gpt", "demo"), unknown);
    check(
        ApiError::overloaded("busy", 2),
        r#"{"error":{"message":"busy","type":"RateLimitError","param":null,"code":429}}"#,
    );
    check(
        ApiError::unavailable("gone", 1),
        r#"{"error":{"message":"gone","type":"ServiceUnavailableError","param":null,"code":503}}"#,
    );
    let kinds = [
        ErrorKind::Unauthorized,
        ErrorKind::MethodNotAllowed,
        ErrorKind::UnsupportedMediaType,
        ErrorKind::NotImplemented,
        ErrorKind::Timeout,
    ];
    assert_eq!(kinds.map(ErrorKind::status), [401, 405, 415, 501, 504]);
}

#[test]
fn models() {
    let expected = r#"{"object":"list","data":[{"id":"demo","object":"model","created":1,"owned_by":"pdserve","root":"/m","parent":null,"max_model_len":64,"permission":[{"id":"modelperm-demo","object":"model_permission","created":1,"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}]}]}"#;
    check(&ModelList::new(vec![ModelCard::new("demo", "/m", 1, Some(64))]), expected);
}
