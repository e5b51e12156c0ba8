//! What clients send and get, on a cluster where nothing fails.

use serde_json::{Value, json};

use crate::support::client::{get, post, request, send, stream};
use crate::support::fake_worker::{FakeWorker, continuation};
use crate::support::{Cluster, EOS, ids};

async fn cluster() -> Cluster {
    Cluster::start(1, 1, |_| {}).await
}

/// The text pieces of a stream, per choice, and its finish reasons.
fn texts(events: &[String], pick: impl Fn(&Value) -> Option<String>, choices: usize) -> (Vec<String>, Vec<String>) {
    let (mut texts, mut finishes) = (vec![String::new(); choices], vec![String::new(); choices]);
    for event in events.iter().filter(|event| *event != "[DONE]") {
        let chunk: Value = serde_json::from_str(event).unwrap();
        for choice in chunk["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            texts[index] += &pick(choice).unwrap_or_default();
            finishes[index] += choice["finish_reason"].as_str().unwrap_or_default();
        }
    }
    (texts, finishes)
}

fn text_of(choice: &Value) -> Option<String> {
    choice["text"].as_str().map(str::to_owned)
}

fn content_of(choice: &Value) -> Option<String> {
    choice["delta"]["content"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn a_completion_goes_through_both_workers() {
    let cluster = cluster().await;
    let body = json!({"model": "fake", "prompt": "hello", "max_tokens": 20});
    let answer = post(cluster.address(), "/v1/completions", body).await;
    let json = answer.json();
    assert_eq!(answer.status, 200, "{json}");
    assert_eq!(json["object"], "text_completion");
    assert_eq!(json["model"], "fake");
    assert_eq!(json["choices"][0]["text"], continuation("hello", 0, 20));
    assert_eq!(json["choices"][0]["finish_reason"], "length");
    assert_eq!(json["usage"]["prompt_tokens"], 5);
    assert_eq!(json["usage"]["completion_tokens"], 20);
    let kinds = |worker: &FakeWorker| worker.seen().into_iter().map(|(kind, _)| kind).collect::<Vec<_>>();
    assert_eq!(kinds(cluster.worker("prefill-0")), ["prefill"]);
    assert_eq!(kinds(cluster.worker("decode-0")), ["reserve", "generate"]);
    assert_eq!((cluster.workers[0].held(), cluster.workers[1].held()), (0, 0));
}

#[tokio::test]
async fn a_chat_renders_the_template() {
    let cluster = cluster().await;
    let body = json!({"model": "alias", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 12});
    let answer = post(cluster.address(), "/v1/chat/completions", body).await;
    let json = answer.json();
    assert_eq!(answer.status, 200, "{json}");
    assert_eq!(json["object"], "chat.completion");
    assert_eq!(json["model"], "fake", "the first served name, whatever alias was used");
    assert_eq!(json["choices"][0]["message"]["content"], continuation("user: hi\n", 0, 12));
    assert_eq!(json["usage"]["prompt_tokens"], "user: hi\n".len());
}

#[tokio::test]
async fn a_template_of_the_request_needs_the_operators_trust() {
    let body = |template: &str| {
        json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12,
        "chat_template": template, "chat_template_kwargs": {"tail": "?"}})
    };
    let careful = cluster().await;
    let json = post(careful.address(), "/v1/chat/completions", body("x")).await.json();
    assert_eq!(json["error"]["param"], "chat_template", "{json}");
    assert!(json["error"]["message"].as_str().unwrap().contains("--trust-request-chat-template"), "{json}");
    let cluster = Cluster::start_unready(1, 1, |_| {}, |config| config.trust_request_chat_template = true).await;
    cluster.ready().await;
    let template = "{{ messages[0].content }}{{ tail }}{{ eos_token }}";
    let json = post(cluster.address(), "/tokenize", body(template)).await.json();
    assert_eq!(json["tokens"], json!([ids("hi?"), vec![EOS]].concat()), "{json}");
    let json =
        post(cluster.address(), "/v1/chat/completions", body("{{ messages[0].content }}{{ tail }}")).await.json();
    assert_eq!(json["choices"][0]["message"]["content"], continuation("hi?", 0, 12), "{json}");
    for broken in ["{% if %}", "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"] {
        let answer = post(cluster.address(), "/v1/chat/completions", body(broken)).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
}

#[tokio::test]
async fn a_chat_streams_in_order() {
    let cluster = cluster().await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 30, "n": 2, "stream": true,
        "stream_options": {"include_usage": true}});
    let events = stream(cluster.address(), "/v1/chat/completions", body).await.events().await;
    let chunk = |at: usize| serde_json::from_str::<Value>(&events[at]).unwrap();
    for index in 0..2 {
        assert_eq!(chunk(index)["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        assert_eq!(chunk(index)["choices"][0]["index"], index);
    }
    let (texts, finishes) = texts(&events, content_of, 2);
    assert_eq!(texts, [0, 1].map(|choice| continuation("user: hi\n", choice, 30)));
    assert_eq!(finishes, ["length", "length"]);
    assert_eq!(events.last().unwrap(), "[DONE]");
    let usage = chunk(events.len() - 2);
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 60);
}

#[tokio::test]
async fn a_completion_streams_several_prompts() {
    let cluster = cluster().await;
    let body = json!({"prompt": ["one", "two"], "max_tokens": 10, "n": 2, "stream": true});
    let events = stream(cluster.address(), "/v1/completions", body).await.events().await;
    let (texts, finishes) = texts(&events, text_of, 4);
    let expected = [("one", 0), ("one", 1), ("two", 0), ("two", 1)];
    assert_eq!(texts, expected.map(|(prompt, choice)| continuation(prompt, choice, 10)));
    assert!(finishes.iter().all(|finish| finish == "length"));
    assert_eq!(events.last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn a_stop_string_ends_the_text_and_the_work() {
    let cluster = cluster().await;
    let whole = continuation("hello", 0, 400);
    let stop = &whole[50..54];
    let end = whole.find(stop).unwrap();
    let body = json!({"prompt": "hello", "max_tokens": 4000, "stop": [stop]});
    let json = post(cluster.address(), "/v1/completions", body).await.json();
    assert_eq!(json["choices"][0]["text"], whole[..end]);
    assert_eq!(json["choices"][0]["finish_reason"], "stop");
    assert_eq!(json["choices"][0]["stop_reason"], stop);
    let decode = cluster.worker("decode-0");
    cluster.until("cancelled", || async { decode.count("cancel") == 1 && decode.held() == 0 }).await;
}

#[tokio::test]
async fn a_first_token_can_be_the_last() {
    let cluster = cluster().await;
    let first = continuation("hello", 0, 1);
    let check = async |extra: Value, finish: &str, text: &str| {
        let mut body = json!({"prompt": "hello", "max_tokens": 8});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let json = post(cluster.address(), "/v1/completions", body).await.json();
        assert_eq!(json["choices"][0]["finish_reason"], finish, "{extra}");
        assert_eq!(json["choices"][0]["text"], text, "{extra}");
    };
    check(json!({"max_tokens": 1}), "length", &first).await;
    check(json!({"stop_token_ids": ids(&first)}), "stop", "").await;
    check(json!({"stop": [first]}), "stop", "").await;
    let decode = cluster.worker("decode-0");
    cluster.until("reservations cancelled", || async { decode.held() == 0 && decode.count("cancel") == 3 }).await;
    assert_eq!(decode.count("generate"), 0);
}

#[tokio::test]
async fn one_of_two_choices_can_end_first() {
    let cluster = cluster().await;
    let (first, second) = (continuation("hello", 0, 1), continuation("hello", 1, 60));
    let stop = &second[30..33];
    let expected = second.find(stop).unwrap();
    assert_ne!(first, second[..1], "the prompt must make the choices differ");
    let body = json!({"prompt": "hello", "n": 2, "max_tokens": 60, "stop_token_ids": ids(&first), "stop": [stop]});
    let json = post(cluster.address(), "/v1/completions", body).await.json();
    assert_eq!(json["choices"][0]["text"], "");
    let ends = second.find(&first).unwrap_or(60).min(expected);
    assert_eq!(json["choices"][1]["text"], second[..ends]);
}

#[tokio::test]
async fn logprobs_and_token_ids_are_shown_when_asked_for() {
    let cluster = cluster().await;
    let text = continuation("hello", 0, 3);
    let body = json!({"prompt": "hello", "max_tokens": 3, "logprobs": 1, "return_token_ids": true});
    let json = post(cluster.address(), "/v1/completions", body).await.json();
    let choice = &json["choices"][0];
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([-0.5, -0.5, -0.5]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2]));
    assert_eq!(choice["token_ids"], json!(ids(&text)));
    assert_eq!(choice["prompt_token_ids"], json!(ids("hello")));
}

#[tokio::test]
async fn echo_repeats_the_prompt() {
    let cluster = cluster().await;
    let expected = format!("hello{}", continuation("hello", 0, 4));
    let body = json!({"prompt": "hello", "max_tokens": 4, "echo": true});
    let json = post(cluster.address(), "/v1/completions", body.clone()).await.json();
    assert_eq!(json["choices"][0]["text"], expected);
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = stream(cluster.address(), "/v1/completions", streamed).await.events().await;
    assert_eq!(texts(&events, text_of, 1).0, [expected]);
    let body = json!({"prompt": "hello", "max_tokens": 0, "echo": true});
    let json = post(cluster.address(), "/v1/completions", body).await.json();
    assert_eq!(json["choices"][0]["text"], "hello");
}

#[tokio::test]
async fn texts_become_vectors() {
    for prefill in [1, 0] {
        let local = |config: &mut scheduler::Config| config.local_prefill = scheduler::LocalPrefill::Auto;
        let cluster = Cluster::start_unready(prefill, 1, |_| {}, local).await;
        cluster.ready().await;
        let body = json!({"model": "alias", "input": ["a", [98, 99]], "encoding_format": "float"});
        let answer = post(cluster.address(), "/v1/embeddings", body).await;
        let json = answer.json();
        assert_eq!(answer.status, 200, "{json}");
        assert_eq!((&json["object"], &json["model"]), (&json!("list"), &json!("fake")));
        assert!(json["id"].as_str().unwrap().starts_with("embd-"));
        assert_eq!(json["usage"], json!({"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}));
        let vectors: Vec<Vec<f64>> =
            (0..2).map(|at| serde_json::from_value(json["data"][at]["embedding"].clone()).unwrap()).collect();
        let close = |found: &[f64], expected: [f64; 2]| found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(
            close(&vectors[0], [0.6, 0.8]) && close(&vectors[1], [3.0 / 73f64.sqrt(), 8.0 / 73f64.sqrt()]),
            "{json}"
        );
        // What the openai package asks for when the caller sets nothing.
        let body = json!({"input": "a", "encoding_format": "base64", "dimensions": 1});
        let json = post(cluster.address(), "/v1/embeddings", body).await.json();
        assert_eq!(json["data"][0]["embedding"], "AACAPw==", "the number 1: {json}");
        let conversation = json!({"messages": [{"role": "user", "content": "hi"}]});
        let json = post(cluster.address(), "/v1/embeddings", conversation).await.json();
        assert_eq!(json["usage"]["prompt_tokens"], "user: hi\n".len(), "{json}");
        let worker = cluster.worker(if prefill == 1 { "prefill-0" } else { "decode-0" });
        assert_eq!((worker.count("embed"), worker.held()), (4, 0));
        let refused = post(cluster.address(), "/v1/embeddings", json!({"input": "a", "dimensions": 3})).await;
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("dimensions")));
    }
}

#[tokio::test]
async fn a_prompt_is_reported_token_by_token() {
    let cluster = cluster().await;
    let body = json!({"prompt": "abc", "max_tokens": 2, "prompt_logprobs": 1, "n": 2});
    let json = post(cluster.address(), "/v1/completions", body).await.json();
    let entry =
        |rank: u32, logprob: f64, token: &str| json!({"logprob": logprob, "rank": rank, "decoded_token": token});
    let expected = json!([null, {"65": entry(1, -0.25, "A"), "98": entry(2, -1.0, "b")},
        {"65": entry(1, -0.25, "A"), "99": entry(3, -2.0, "c")}]);
    for choice in 0..2 {
        assert_eq!(json["choices"][choice]["prompt_logprobs"], expected, "{json}");
        assert_eq!(json["choices"][choice]["logprobs"], Value::Null);
    }
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "prompt_logprobs": 0});
    let json = post(cluster.address(), "/v1/chat/completions", body).await.json();
    assert_eq!(json["prompt_logprobs"].as_array().map(Vec::len), Some("user: x\n".len()));
    assert_eq!(json["prompt_logprobs"][1], json!({"115": entry(2, -1.0, "s")}), "{json}");
}

#[tokio::test]
async fn an_echo_has_the_logprobs_of_the_prompt_too() {
    let cluster = cluster().await;
    let mut body = json!({"prompt": ["abc", "d"], "max_tokens": 2, "echo": true, "logprobs": 1});
    let text = continuation("abc", 0, 2);
    let json = post(cluster.address(), "/v1/completions", body.clone()).await.json();
    let logprobs = &json["choices"][0]["logprobs"];
    assert_eq!(json["choices"][0]["text"], format!("abc{text}"));
    let tokens: Vec<String> = format!("abc{text}").chars().map(String::from).collect();
    assert_eq!(logprobs["tokens"], json!(tokens));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3, 4]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -1.0, -2.0, -0.5, -0.5]));
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][1], json!({"A": -0.25, "b": -1.0}));
    assert_eq!(json["choices"][1]["logprobs"]["token_logprobs"], json!([null, -0.5, -0.5]));
    // The same in pieces: the prompt's part comes first.
    body["stream"] = json!(true);
    let events = stream(cluster.address(), "/v1/completions", body.clone()).await.events().await;
    assert_eq!(texts(&events, text_of, 2).0, [format!("abc{text}"), format!("d{}", continuation("d", 0, 2))]);
    let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let of_first = chunks.map(|chunk| chunk["choices"][0].clone()).filter(|choice| choice["index"] == 0);
    let streamed: Vec<Value> =
        of_first.flat_map(|choice| choice["logprobs"]["token_logprobs"].as_array().unwrap().clone()).collect();
    assert_eq!(json!(streamed), logprobs["token_logprobs"]);
    // Only the prompt.
    body["stream"] = json!(false);
    body["max_tokens"] = json!(0);
    let json = post(cluster.address(), "/v1/completions", body).await.json();
    assert_eq!((&json["choices"][0]["text"], &json["choices"][0]["finish_reason"]), (&json!("abc"), &json!("length")));
    assert_eq!(json["choices"][0]["logprobs"]["token_logprobs"], json!([null, -1.0, -2.0]));
    assert_eq!(json["usage"]["completion_tokens"], 0, "{json}");
}

#[tokio::test]
async fn errors_have_their_status_and_shape() {
    let cluster = cluster().await;
    let check = async |method: &str, path: &str, body: String, status: u16, part: &str| {
        let answer = send(cluster.address(), request(method, path, body)).await;
        let json = answer.json();
        assert_eq!(answer.status, status, "{json}");
        assert_eq!(json["error"]["code"], status);
        assert!(json["error"]["message"].as_str().unwrap().contains(part), "{json}");
        assert!(answer.headers.contains_key("x-request-id"));
    };
    let completion = |fields: Value| fields.to_string();
    check("GET", "/nowhere", String::new(), 404, "no such path").await;
    check("GET", "/v1/completions", String::new(), 405, "method").await;
    check("POST", "/v1/completions", "{".into(), 400, "not valid JSON").await;
    check("POST", "/v1/completions", completion(json!({"prompt": "x", "model": "other"})), 404, "does not exist").await;
    let long = completion(json!({"prompt": "x".repeat(5000)}));
    check("POST", "/v1/completions", long, 400, "maximum context length is 4096 tokens").await;
    let long = completion(json!({"prompt": "x", "max_tokens": 5000}));
    check("POST", "/v1/completions", long, 400, "maximum context length is 4096 tokens").await;
    check("POST", "/v1/completions", completion(json!({"prompt": [999]})), 400, "vocabulary").await;
    check("POST", "/v1/completions", " ".repeat((4 << 20) + 1), 413, "larger than").await;
    check("GET", "/v1/models/other", String::new(), 404, "does not exist").await;
}

#[tokio::test]
async fn models_are_listed_and_retrieved() {
    let cluster = cluster().await;
    let json = get(cluster.address(), "/v1/models").await.json();
    let ids: Vec<&str> = json["data"].as_array().unwrap().iter().filter_map(|card| card["id"].as_str()).collect();
    assert_eq!(ids, ["fake", "alias"]);
    let json = get(cluster.address(), "/v1/models/alias").await.json();
    assert_eq!((&json["id"], &json["max_model_len"]), (&json!("alias"), &json!(4096)));
}

#[tokio::test]
async fn a_request_id_is_echoed_and_reaches_the_workers() {
    let cluster = cluster().await;
    for _ in 0..2 {
        let mut asked = request("POST", "/v1/completions", json!({"prompt": "x", "max_tokens": 2}).to_string());
        asked.headers_mut().insert("x-request-id", "my id/7".parse().unwrap());
        let answer = send(cluster.address(), asked).await;
        assert_eq!(answer.headers["x-request-id"], "myid7");
        assert_eq!(answer.json()["id"], "cmpl-myid7");
    }
    let mut seen: Vec<String> = cluster.worker("prefill-0").seen().into_iter().map(|(_, key)| key).collect();
    assert!(seen.iter().all(|key| key.starts_with("myid7-")), "{seen:?}");
    seen.dedup();
    assert_eq!(seen.len(), 2, "the same id twice is two requests: {seen:?}");
}

#[tokio::test]
async fn status_pages_answer() {
    let cluster = cluster().await;
    post(cluster.address(), "/v1/completions", json!({"prompt": "hello", "max_tokens": 3})).await;
    let health = get(cluster.address(), "/health").await;
    assert_eq!((health.status, health.body.len()), (200, 0));
    assert!(get(cluster.address(), "/version").await.json()["version"].is_string());
    let metrics = get(cluster.address(), "/metrics").await.text();
    for sample in
        ["vllm:generation_tokens_total{model_name=\"fake\"} 3", "vllm:prompt_tokens_total{model_name=\"fake\"} 5"]
    {
        assert!(metrics.contains(sample), "{sample} not in {metrics}");
    }
}

#[tokio::test]
async fn text_becomes_ids_and_text_again() {
    let cluster = cluster().await;
    let check = async |path: &str, body: Value, expected: Value| {
        let json = post(cluster.address(), path, body.clone()).await.json();
        assert_eq!(json, expected, "{path} {body}");
    };
    let answer = |text: &str, strs: Value| json!({"count": text.len(), "max_model_len": 4096, "tokens": ids(text), "token_strs": strs});
    check("/tokenize", json!({"prompt": "hi", "model": "alias"}), answer("hi", Value::Null)).await;
    check("/tokenize", json!({"prompt": "hi", "return_token_strs": true}), answer("hi", json!(["h", "i"]))).await;
    check("/tokenize", json!({"prompt": ""}), answer("", Value::Null)).await;
    let messages = json!([{"role": "user", "content": "hi"}]);
    check("/tokenize", json!({"messages": messages}), answer("user: hi\n", Value::Null)).await;
    check("/detokenize", json!({"tokens": ids("hi \u{e9}")}), json!({"prompt": "hi \u{e9}"})).await;
    check("/detokenize", json!({"tokens": []}), json!({"prompt": ""})).await;
    let refused = post(cluster.address(), "/detokenize", json!({"tokens": [999]})).await.json();
    assert_eq!(refused["error"]["param"], "tokens", "{refused}");
    let refused = post(cluster.address(), "/tokenize", json!({"prompt": "x", "model": "other"})).await;
    assert_eq!(refused.status, 404);
}

#[tokio::test]
async fn operators_see_load_and_set_up() {
    let cluster = Cluster::start_unready(1, 1, |_| {}, |config| config.server_info = true).await;
    cluster.ready().await;
    for method in ["GET", "POST"] {
        assert_eq!(send(cluster.address(), request(method, "/ping", "")).await.status, 200);
    }
    assert_eq!(get(cluster.address(), "/load").await.json(), json!({"server_load": 0}));
    let info = get(cluster.address(), "/server_info").await.json();
    assert_eq!(info["vllm_config"]["served_model_names"], json!(["fake", "alias"]));
    assert!(get(cluster.address(), "/server_info?config_format=text").await.json()["vllm_config"].is_string());
    let silent = self::cluster().await;
    assert_eq!(get(silent.address(), "/server_info").await.status, 404, "only with the flag");
}

#[tokio::test]
async fn of_more_choices_the_best_come_back() {
    let cluster = cluster().await;
    // Every fake token has the same logprob, so the first choices win.
    let body = json!({"prompt": ["one", "two"], "max_tokens": 10, "n": 2, "best_of": 3});
    let json = post(cluster.address(), "/v1/completions", body.clone()).await.json();
    let expected =
        [("one", 0), ("one", 1), ("two", 0), ("two", 1)].map(|(text, choice)| continuation(text, choice, 10));
    let found: Vec<_> = json["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect();
    assert_eq!(found, expected, "{json}");
    assert_eq!(json["usage"]["completion_tokens"], 60, "what was generated counts");
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = stream(cluster.address(), "/v1/completions", streamed).await.events().await;
    assert_eq!(texts(&events, text_of, 4).0, expected);
    assert_eq!(events.len(), 5, "one chunk per choice and the end");
}

#[tokio::test]
async fn a_prompt_is_cut_and_tokens_are_named_by_id() {
    let cluster = cluster().await;
    let body = json!({"prompt": "hello", "max_tokens": 2, "truncate_prompt_tokens": 3, "logprobs": 1, "return_tokens_as_token_ids": true});
    let json = post(cluster.address(), "/v1/completions", body).await.json();
    let text = continuation("llo", 0, 2);
    assert_eq!((&json["choices"][0]["text"], &json["usage"]["prompt_tokens"]), (&json!(text), &json!(3)));
    let names: Vec<String> = ids(&text).iter().map(|id| format!("token_id:{id}")).collect();
    assert_eq!(json["choices"][0]["logprobs"]["tokens"], json!(names));
    assert_eq!(json["choices"][0]["logprobs"]["text_offset"], json!([0, 1]));
}

#[tokio::test]
async fn a_chat_can_repeat_what_it_goes_on_with() {
    let cluster = cluster().await;
    let answer = continuation("user: hi\nassistant: well\n", 0, 4);
    let messages = |role: &str| json!([{"role": "user", "content": "hi"}, {"role": role, "content": "well"}]);
    let body = json!({"messages": messages("assistant"), "max_tokens": 4, "echo": true});
    let json = post(cluster.address(), "/v1/chat/completions", body.clone()).await.json();
    assert_eq!(json["choices"][0]["message"]["content"], format!("well{answer}"));
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = stream(cluster.address(), "/v1/chat/completions", streamed).await.events().await;
    assert_eq!(texts(&events, content_of, 1).0, [format!("well{answer}")]);
    let body = json!({"messages": messages("user"), "max_tokens": 4, "echo": true});
    let json = post(cluster.address(), "/v1/chat/completions", body).await.json();
    assert_eq!(
        json["choices"][0]["message"]["content"],
        continuation("user: hi\nuser: well\n", 0, 4),
        "not the user's words"
    );
}

#[tokio::test]
async fn the_document_names_what_is_served() {
    let cluster = Cluster::start_unready(1, 1, |_| {}, |config| config.server_info = true).await;
    let document = get(cluster.address(), "/openapi.json").await.json();
    let page = get(cluster.address(), "/docs").await.text();
    assert!(page.contains("<code>temperature</code>") && !page.contains("http://") && !page.contains("https://"));
    for (path, methods) in document["paths"].as_object().unwrap() {
        assert!(page.contains(path.as_str()), "{path} is not on the page");
        // Those with a parameter are tested by themselves.
        for method in methods.as_object().unwrap().keys().filter(|_| !path.contains('{')) {
            let asked = request(&method.to_uppercase(), path, "{}");
            let status = send(cluster.address(), asked).await.status;
            let unready = path == "/ready" && status == 503;
            let expected = if method == "post" { 400 } else { 200 };
            assert!(status == expected || unready, "{method} {path}: {status}");
        }
    }
}

#[tokio::test]
async fn a_response_is_one_message() {
    let cluster = cluster().await;
    let text = continuation("system: be brief\nuser: hi\n", 0, 6);
    let body = json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "instructions": "be brief",
        "max_output_tokens": 6, "n": 7});
    let json = post(cluster.address(), "/v1/responses", body).await.json();
    assert_eq!(json["output"][0]["content"][0]["text"], text, "{json}");
    assert_eq!(
        (&json["status"], &json["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!((&json["usage"]["input_tokens"], &json["usage"]["output_tokens"]), (&json!(26), &json!(6)));
    let answer =
        post(cluster.address(), "/v1/responses", json!({"input": "hi", "max_output_tokens": 6, "stream": true})).await;
    let body = answer.text();
    let mut kinds = Vec::new();
    let mut text = String::new();
    for (at, event) in body.trim_end().split("\n\n").enumerate() {
        let (kind, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(kind), &json!(at)));
        text += data["delta"].as_str().unwrap_or_default();
        kinds.push(kind.strip_prefix("response.").unwrap().to_owned());
    }
    kinds.dedup();
    let expected = [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ];
    assert_eq!(kinds, expected);
    assert_eq!(text, continuation("user: hi\n", 0, 6));
}
