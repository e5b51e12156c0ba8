//! Calls and thoughts in chat answers, whole and streamed. Fakes answer with what stands between « and » in the conversation.

use scheduler::{Config, ReasoningFlag, ToolFlag};
use serde_json::{Value, json};

use crate::support::Cluster;
use crate::support::client::{post, stream};
use crate::support::fake_worker::Fake;

const CHAT: &str = "/v1/chat/completions";
const WEATHER: &str = r#"<tool_call>{"name": "get_weather", "arguments": {"city": "Zürich 🎉"}}</tool_call>"#;

async fn cluster(shape: impl Fn(&mut Fake), adjust: impl FnOnce(&mut Config)) -> Cluster {
    let adjust = |config: &mut Config| {
        config.tool_call_parser = ToolFlag::Hermes;
        config.reasoning_parser = ReasoningFlag::Qwen3;
        adjust(config);
    };
    let cluster = Cluster::start_unready(1, 2, shape, adjust).await;
    cluster.ready().await;
    cluster
}

/// A request whose answer is `said`, with two functions to call.
fn ask(said: &str, more: Value) -> Value {
    let function =
        |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    let mut body = json!({"messages": [{"role": "user", "content": format!("«{said}»")}], "tools": [function("get_weather"), function("f")]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A choice's message and finish reason; ids of calls, which are random, are checked and left out.
fn seen(choice: &Value) -> Value {
    let (mut message, mut calls) = (choice["message"].clone(), choice["message"]["tool_calls"].clone());
    for call in calls.as_array_mut().into_iter().flatten() {
        let id = call.as_object_mut().unwrap().remove("id").unwrap();
        assert!(id.as_str().unwrap().starts_with("call_"), "{id}");
        assert_eq!(call["type"], "function");
    }
    assert_eq!(message["reasoning"], message["reasoning_content"], "one thing under two names");
    json!([message["reasoning"].take(), message["content"].take(), calls, choice["finish_reason"]])
}

/// The same of a stream's chunks, put together as clients do, after checks of their order.
fn streamed(events: &[String], index: u64) -> Value {
    let (mut reasoning, mut content, mut calls, mut finish) = (String::new(), String::new(), Vec::new(), Value::Null);
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks =
        events.iter().filter(|event| *event != "[DONE]").map(|event| serde_json::from_str::<Value>(event).unwrap());
    let choices = chunks.flat_map(|chunk| chunk["choices"].as_array().unwrap().clone());
    for choice in choices.filter(|choice| choice["index"] == index) {
        assert!(finish.is_null(), "nothing follows the finish");
        let delta = &choice["delta"];
        reasoning += delta["reasoning"].as_str().unwrap_or_default();
        assert_eq!(delta["reasoning"], delta["reasoning_content"]);
        content += delta["content"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            if call.get("id").is_some() {
                assert_eq!((&call["index"], &function["arguments"]), (&json!(calls.len()), &json!("")));
                calls.push(json!({"type": call["type"], "function": {"name": function["name"], "arguments": ""}}));
            } else {
                assert!(function.get("name").is_none() && call["index"] == calls.len() - 1, "{call}");
                let arguments = &mut calls.last_mut().unwrap()["function"]["arguments"];
                *arguments = json!(arguments.as_str().unwrap().to_owned() + function["arguments"].as_str().unwrap());
            }
        }
        finish = choice["finish_reason"].clone();
    }
    let text = |text: String| if text.is_empty() { Value::Null } else { json!(text) };
    let calls = if calls.is_empty() { Value::Null } else { json!(calls) };
    json!([text(reasoning), text(content), calls, finish])
}

/// Asks for a whole answer and for a stream; both must say the same.
async fn check(cluster: &Cluster, said: &str, more: Value, expected: Value) {
    let body = ask(said, more);
    let answer = post(cluster.address(), CHAT, body.clone()).await.json();
    assert_eq!(seen(&answer["choices"][0]), expected, "{said}: {answer}");
    let mut body = body;
    body["stream"] = json!(true);
    let events = stream(cluster.address(), CHAT, body).await.events().await;
    assert_eq!(streamed(&events, 0), expected, "{said}: {events:?}");
}

fn call(name: &str, arguments: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "arguments": arguments}})
}

#[tokio::test]
async fn calls_are_read_whole_and_streamed() {
    let cluster = cluster(|_| {}, |_| {}).await;
    let weather = call("get_weather", r#"{"city": "Zürich 🎉"}"#);
    check(&cluster, "No need.", json!({}), json!([null, "No need.", null, "stop"])).await;
    check(&cluster, WEATHER, json!({}), json!([null, null, [weather], "tool_calls"])).await;
    let two = format!("Let me see.\n{WEATHER}\n<tool_call>\n{{\"name\": \"f\"}}\n</tool_call>");
    check(&cluster, &two, json!({}), json!([null, "Let me see.", [weather, call("f", "{}")], "tool_calls"])).await;
    let one = json!({"parallel_tool_calls": false});
    check(&cluster, &two, one, json!([null, "Let me see.", [weather], "tool_calls"])).await;
    // What is no call, or may be none, is text.
    let unknown = r#"<tool_call>{"name": "rm", "arguments": {}}</tool_call>"#;
    check(&cluster, unknown, json!({}), json!([null, unknown, null, "stop"])).await;
    check(&cluster, WEATHER, json!({"tool_choice": "none"}), json!([null, WEATHER, null, "stop"])).await;
    // A call that was cut is there as far as it came.
    let cut = json!([null, null, [call("get_weather", r#"{"city": "#)], "length"]);
    let before_city = WEATHER.find("\"Z").unwrap();
    check(&cluster, WEATHER, json!({"max_tokens": before_city}), cut).await;
}

#[tokio::test]
async fn thoughts_stand_apart_and_are_counted() {
    let cluster = cluster(|_| {}, |_| {}).await;
    let said = format!("<think>\nHm, END?\n</think>\n\nSo: {WEATHER}");
    let weather = call("get_weather", r#"{"city": "Zürich 🎉"}"#);
    check(&cluster, &said, json!({}), json!(["Hm, END?", "So:", [weather], "tool_calls"])).await;
    let silent = json!({"include_reasoning": false});
    check(&cluster, &said, silent, json!([null, "So:", [weather], "tool_calls"])).await;
    check(&cluster, &said, json!({"stop": "END"}), json!(["Hm, ", null, null, "stop"])).await;
    check(&cluster, &said, json!({"stop": "city"}), json!(["Hm, END?", "So:", [call("get_weather", "{\"")], "stop"]))
        .await;
    let answer = post(cluster.address(), CHAT, ask(&said, json!({"n": 2, "temperature": 1}))).await.json();
    let details = &answer["usage"]["completion_tokens_details"];
    // With a token per byte, the first mark is one only with its last.
    assert_eq!(details["reasoning_tokens"], 2 * ">\nHm, END?\n</think>".len(), "{answer}");
    assert_eq!(seen(&answer["choices"][0]), seen(&answer["choices"][1]));
}

#[tokio::test]
async fn a_call_goes_on_when_its_worker_dies() {
    let shape = |fake: &mut Fake| fake.dies_after = (fake.name == "decode-0" || fake.name == "decode-1").then_some(70);
    let cluster = cluster(shape, |_| {}).await;
    let said = format!("<think>Hm.</think>{WEATHER}");
    let body = ask(&said, json!({"stream": true}));
    let events = stream(cluster.address(), CHAT, body).await.events().await;
    let expected = json!(["Hm.", null, [call("get_weather", r#"{"city": "Zürich 🎉"}"#)], "tool_calls"]);
    assert_eq!(streamed(&events, 0), expected);
    let down = |name| cluster.worker(name).is_down();
    assert!(down("decode-0") != down("decode-1"), "one of them died in the middle");
}

#[tokio::test]
async fn a_model_of_unknown_format_is_refused_by_name() {
    let cluster = cluster(|_| {}, |config| config.tool_call_parser = ToolFlag::Auto).await;
    let answer = post(cluster.address(), CHAT, ask("hi", json!({}))).await;
    assert_eq!(answer.status, 400);
    let error = answer.json();
    assert_eq!(error["error"]["param"], "tools", "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("--tool-call-parser"), "{error}");
}
