//! `/v1/responses`: items, their events, and stored answers. Fakes answer with what stands between « and » in the conversation.

use scheduler::{Config, ReasoningFlag, ToolFlag};
use serde_json::{Value, json};

use crate::support::Cluster;
use crate::support::client::{get, post, request, send};

const PATH: &str = "/v1/responses";
const SAID: &str = "<think>Hm.</think>Let me see.\n<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";

async fn cluster(adjust: impl FnOnce(&mut Config)) -> Cluster {
    let adjust = |config: &mut Config| {
        config.tool_call_parser = ToolFlag::Hermes;
        config.reasoning_parser = ReasoningFlag::Qwen3;
        adjust(config);
    };
    let cluster = Cluster::start_unready(1, 1, |_| {}, adjust).await;
    cluster.ready().await;
    cluster
}

fn ask(said: &str, more: Value) -> Value {
    let tools = json!([{"type": "function", "name": "f", "parameters": {"type": "object"}}]);
    let mut body = json!({"input": format!("«{said}»"), "tools": tools});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The events of a stream, after checks of what all of them share.
async fn events(cluster: &Cluster, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    let answer = post(cluster.address(), PATH, body).await.text();
    let events = answer.trim_end().split("\n\n").enumerate().map(|(at, event)| {
        let (kind, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(kind), &json!(at)));
        data
    });
    events.collect()
}

/// Ids are random.
fn without_ids(mut body: Value) -> Value {
    for key in ["id", "created_at"] {
        body[key].take();
    }
    for item in body["output"].as_array_mut().unwrap() {
        item["id"].take();
        item["call_id"].take();
    }
    body
}

#[tokio::test]
async fn thoughts_text_and_calls_are_items() {
    let cluster = cluster(|_| {}).await;
    let whole = post(cluster.address(), PATH, ask(SAID, json!({}))).await.json();
    let kinds: Vec<_> = whole["output"].as_array().unwrap().iter().map(|item| item["type"].clone()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call"], "{whole}");
    let [thoughts, message, call] = [0, 1, 2].map(|at| &whole["output"][at]);
    assert_eq!(
        (&thoughts["content"][0]["text"], &message["content"][0]["text"]),
        (&json!("Hm."), &json!("Let me see."))
    );
    assert_eq!((&call["name"], &call["arguments"]), (&json!("f"), &json!("{\"a\": 1}")));
    assert_eq!((&whole["status"], &call["status"]), (&json!("completed"), &json!("completed")));
    assert_ne!(whole["usage"]["output_tokens_details"]["reasoning_tokens"], 0);
    assert_eq!(whole["tools"][0]["name"], "f");

    let events = events(&cluster, ask(SAID, json!({}))).await;
    let mut kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    kinds.dedup();
    let item = |deltas: &[&'static str]| [&["output_item.added"], deltas, &["output_item.done"]].concat();
    let part =
        |delta: &'static str, done: &'static str| item(&["content_part.added", delta, done, "content_part.done"]);
    let expected = [
        vec!["created", "in_progress"],
        part("reasoning_text.delta", "reasoning_text.done"),
        part("output_text.delta", "output_text.done"),
        item(&["function_call_arguments.delta", "function_call_arguments.done"]),
        vec!["completed"],
    ]
    .concat();
    assert_eq!(kinds, expected.iter().map(|kind| format!("response.{kind}")).collect::<Vec<_>>());
    assert_eq!(
        without_ids(events.last().unwrap()["response"].clone()),
        without_ids(whole),
        "a stream ends with the whole answer"
    );
    // What the deltas of an item say together, its end says again, and the answer as well.
    let response = &events.last().unwrap()["response"];
    for (at, field) in [(0, "text"), (1, "text"), (2, "arguments")] {
        let of_item: Vec<&Value> = events.iter().filter(|event| event["output_index"] == at).collect();
        let said: String = of_item.iter().filter_map(|event| event["delta"].as_str()).collect();
        let done =
            of_item.iter().find(|event| event["type"].as_str().unwrap().ends_with(&format!("{field}.done"))).unwrap();
        assert_eq!(done[field], said);
        let item = &of_item.last().unwrap()["item"];
        assert_eq!(item, &response["output"][at]);
        assert!(of_item.iter().all(|event| event["item_id"].is_null() || event["item_id"] == item["id"]));
    }
}

#[tokio::test]
async fn an_answer_is_gone_on_from() {
    let cluster = cluster(|_| {}).await;
    let first = post(cluster.address(), PATH, json!({"input": "«one»", "instructions": "x"})).await.json();
    let id = first["id"].as_str().unwrap();
    assert_eq!(get(cluster.address(), &format!("{PATH}/{id}")).await.json(), first);
    let next = |previous: &str| json!({"input": "and «two»", "previous_response_id": previous});
    let second = post(cluster.address(), PATH, next(id)).await.json();
    assert_eq!(second["output"][0]["content"][0]["text"], "two");
    let conversation = "user: «one»\nassistant: one\nuser: and «two»\n";
    assert_eq!(second["usage"]["input_tokens"], conversation.len(), "without the first one's instructions: {second}");
    assert_eq!(second["previous_response_id"], id);
    // A stream can be gone on from as well.
    let streamed = events(&cluster, next(second["id"].as_str().unwrap())).await;
    let third = &streamed.last().unwrap()["response"];
    assert_eq!(get(cluster.address(), &format!("{PATH}/{}", third["id"].as_str().unwrap())).await.json(), *third);
    let silent = post(cluster.address(), PATH, json!({"input": "«x»", "store": false})).await.json();
    for gone in [silent["id"].as_str().unwrap(), "resp_none"] {
        let answer = post(cluster.address(), PATH, next(gone)).await;
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (404, &json!("previous_response_id")));
        assert_eq!(get(cluster.address(), &format!("{PATH}/{gone}")).await.status, 404);
    }
    let delete = || send(cluster.address(), request("DELETE", &format!("{PATH}/{id}"), ""));
    assert_eq!(delete().await.json(), json!({"id": id, "object": "response", "deleted": true}));
    assert_eq!(delete().await.status, 404);
}

#[tokio::test]
async fn every_key_sees_its_own_answers() {
    let keys = |config: &mut Config| config.access.keys = vec!["key-1".to_owned().into(), "key-2".to_owned().into()];
    let cluster = cluster(keys).await;
    let send = async |key: &str, method: &str, path: &str, body: String| {
        let mut request = request(method, path, body);
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        send(cluster.address(), request).await
    };
    let first = send("key-1", "POST", PATH, json!({"input": "«one»"}).to_string()).await.json();
    let id = first["id"].as_str().unwrap();
    let path = format!("{PATH}/{id}");
    let next = json!({"input": "x", "previous_response_id": id}).to_string();
    assert_eq!(send("key-2", "GET", &path, String::new()).await.status, 404);
    assert_eq!(send("key-2", "DELETE", &path, String::new()).await.status, 404);
    assert_eq!(send("key-2", "POST", PATH, next.clone()).await.status, 404);
    assert_eq!(send("key-1", "POST", PATH, next).await.status, 200);
    assert_eq!(send("key-1", "GET", &path, String::new()).await.json(), first);
}
