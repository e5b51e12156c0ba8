//! Every request parameter in every way of serving: one process, P and D, a cached prefix, a preempted and a resumed sequence.
//!
//! A row is a request; what it answers (texts, token ids, logprobs, usage, finish reasons) must be the same everywhere. To add a
//! parameter, add its row.

use futures::future::join_all;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{Client, ProcessCluster};

const PDSERVE: &str = env!("CARGO_BIN_EXE_pdserve-under-test");
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const EMBEDDINGS: &str = "/v1/embeddings";

/// Long enough that a prefix of it is cached block by block.
const QUESTION: &str =
    "What is prefill, what is decode, and why would anyone run the two of them on different machines?";
/// Tokens of an answer: enough that a worker can die in the middle of it, and far more than the scheduler books room for.
const TOKENS: u32 = 180;

/// Path and what the request says beside its prompt.
fn rows() -> Vec<(&'static str, Value)> {
    let schema = json!({"type": "object", "properties": {
        "title": {"type": "string", "maxLength": 20},
        "parts": {"type": "array", "minItems": 3, "maxItems": 6, "items": {"enum": ["prefill", "decode", "hand-over"]}},
        "count": {"type": "integer", "minimum": 0, "maximum": 999},
    }, "required": ["title", "parts", "count"]});
    let mut rows = sampling_rows();
    rows.extend(tool_rows());
    rows.extend([
        // What ends the text, and what of it is shown.
        (CHAT, json!({"ignore_eos": false, "max_tokens": 200})),
        (CHAT, json!({"max_tokens": 1})),
        (CHAT, json!({"min_tokens": 40, "ignore_eos": false, "temperature": 0.7, "seed": 11})),
        (CHAT, json!({"stop": " the", "ignore_eos": false})),
        (CHAT, json!({"stop": ["xyzzy", "ill"], "include_stop_str_in_output": true, "temperature": 1, "seed": 12})),
        (CHAT, json!({"stop_token_ids": [265, 266, 267, 268], "temperature": 1, "seed": 13})),
        (CHAT, json!({"skip_special_tokens": false, "temperature": 1.5, "seed": 14})),
        (COMPLETIONS, json!({"echo": true})),
        (COMPLETIONS, json!({"truncate_prompt_tokens": 20})),
        (COMPLETIONS, json!({"prompt": ["One prompt.", "Another prompt, and a longer one."], "n": 2, "temperature": 1, "seed": 15})),
        (RESPONSES, json!({"max_output_tokens": TOKENS, "temperature": 0})),
        // Choices.
        (CHAT, json!({"n": 3, "temperature": 1, "seed": 16, "logprobs": true, "top_logprobs": 2})),
        (COMPLETIONS, json!({"n": 2, "best_of": 4, "temperature": 1, "seed": 17})),
        // What is told of the prompt.
        (COMPLETIONS, json!({"prompt_logprobs": 2})),
        (CHAT, json!({"prompt_logprobs": 0, "n": 2, "temperature": 1, "seed": 23})),
        (COMPLETIONS, json!({"echo": true, "logprobs": 1, "max_tokens": 40})),
        (COMPLETIONS, json!({"echo": true, "logprobs": 0, "max_tokens": 0})),
        (EMBEDDINGS, json!({"dimensions": 16})),
        // Searches.
        (CHAT, json!({"use_beam_search": true, "n": 2, "best_of": 4, "max_tokens": 60, "logprobs": true, "top_logprobs": 2})),
        (COMPLETIONS, json!({"use_beam_search": true, "n": 3, "length_penalty": 0.5, "early_stopping": true, "ignore_eos": false, "max_tokens": 60})),
        // Grammars.
        (CHAT, json!({"guided_json": schema, "ignore_eos": false})),
        (CHAT, json!({"guided_json": schema, "temperature": 1.2, "seed": 18, "n": 2, "logprobs": true, "presence_penalty": 0.5})),
        (CHAT, json!({"response_format": {"type": "json_object"}, "temperature": 0.8, "seed": 19})),
        (COMPLETIONS, json!({"guided_regex": "([a-z]{2,8} ){30,60}end", "temperature": 1, "seed": 20, "min_tokens": 50})),
        (CHAT, json!({"guided_regex": "([a-z]{2,8} ){30,60}end", "temperature": 1, "seed": 20, "stop": "q", "frequency_penalty": 1})),
        (CHAT, json!({"guided_choice": ["prefill first", "decode first", "prefill and decode at once"], "temperature": 1, "seed": 21})),
        (COMPLETIONS, json!({"guided_grammar": "start: item (\", \" item){20}\nitem: \"(\" (item | WORD) \")\"\nWORD: /[a-z]+/", "temperature": 1, "seed": 22})),
    ]);
    rows
}

/// How the next token is drawn, and what is told of it.
fn sampling_rows() -> Vec<(&'static str, Value)> {
    vec![
        (CHAT, json!({})),
        (CHAT, json!({"temperature": 1, "seed": 1})),
        (CHAT, json!({"temperature": 1.5, "top_p": 0.8, "seed": 2})),
        (CHAT, json!({"temperature": 1.5, "top_k": 5, "seed": 3})),
        (CHAT, json!({"temperature": 1.5, "min_p": 0.1, "seed": 4})),
        (CHAT, json!({"presence_penalty": 1.5})),
        (CHAT, json!({"frequency_penalty": 1, "temperature": 1, "seed": 5})),
        (CHAT, json!({"repetition_penalty": 1.3})),
        (CHAT, json!({"logit_bias": {"300": 5, "301": -100}, "temperature": 1, "seed": 6})),
        (CHAT, json!({"allowed_token_ids": (300..400).collect::<Vec<_>>(), "temperature": 1, "seed": 8})),
        (CHAT, json!({"bad_words": ["the", "prefill"], "temperature": 1, "seed": 9})),
        (CHAT, json!({"priority": -3, "temperature": 1, "seed": 10})),
        (CHAT, json!({"logprobs": true, "top_logprobs": 5})),
        (COMPLETIONS, json!({"logprobs": 3, "temperature": 1, "seed": 7})),
        (COMPLETIONS, json!({"logprobs": 0, "return_tokens_as_token_ids": true})),
    ]
}

/// Calls, insisted on and free; the arguments are long enough to be cut in the middle.
fn tool_rows() -> Vec<(&'static str, Value)> {
    let parameters = json!({"type": "object", "$defs": {"step": {"enum": ["prefill", "hand-over", "decode"]}}, "properties": {
        "steps": {"type": "array", "minItems": 8, "maxItems": 12, "items": {"$ref": "#/$defs/step"}},
        "note": {"type": "string", "minLength": 20, "maxLength": 40},
    }, "required": ["steps", "note"]});
    let flat = |name: &str| json!({"type": "function", "name": name, "parameters": parameters});
    let nested = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let tools = json!([nested("plan"), nested("draw")]);
    let named = json!({"type": "function", "function": {"name": "draw"}});
    vec![
        (CHAT, json!({"tools": tools, "ignore_eos": false})),
        (
            CHAT,
            json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false, "ignore_eos": false, "max_tokens": 400}),
        ),
        (
            CHAT,
            json!({"tools": tools, "tool_choice": named, "ignore_eos": false, "temperature": 1, "seed": 30, "n": 2}),
        ),
        (
            RESPONSES,
            json!({"tools": [flat("plan")], "tool_choice": "required", "max_output_tokens": 400, "temperature": 0}),
        ),
    ]
}

fn body(path: &str, more: &Value) -> Value {
    let mut body = match path {
        CHAT => json!({"messages": [{"role": "user", "content": QUESTION}]}),
        RESPONSES | EMBEDDINGS => json!({"input": QUESTION}),
        _ => json!({"prompt": QUESTION}),
    };
    let fields = body.as_object_mut().unwrap();
    if ![RESPONSES, EMBEDDINGS].contains(&path) {
        let usual = json!({"temperature": 0, "max_tokens": TOKENS, "ignore_eos": true, "return_token_ids": true});
        fields.extend(usual.as_object().unwrap().clone());
    }
    fields.extend(more.as_object().unwrap().clone());
    body
}

/// The answer without what says when and how it was made; and how many prompt tokens were cached.
async fn answer(client: &Client, path: &str, more: &Value) -> (Value, u64) {
    let reply = client.post(path, &body(path, more)).await;
    let mut answer = reply.body;
    assert_eq!(reply.status, 200, "{path} {more}: {answer}");
    let details = ["/usage/prompt_tokens_details", "/usage/input_tokens_details"];
    let cached = details.iter().find_map(|details| answer.pointer(details)?["cached_tokens"].as_u64()).unwrap_or(0);
    forget(&mut answer);
    (answer, cached)
}

/// Drops what says when and how an answer was made, wherever it stands.
fn forget(answer: &mut Value) {
    const NAMES: [&str; 6] =
        ["id", "call_id", "created", "created_at", "prompt_tokens_details", "input_tokens_details"];
    match answer {
        Value::Object(entries) => {
            entries.retain(|name, _| !NAMES.contains(&name.as_str()));
            entries.values_mut().for_each(forget);
        }
        Value::Array(items) => items.iter_mut().for_each(forget),
        _ => {}
    }
}

/// All rows at once; the first that differs from what is expected fails by name. Returns the cached tokens of all.
async fn check(client: &Client, way: &str, expected: &[Value]) -> u64 {
    let rows = rows();
    let answers = join_all(rows.iter().map(|(path, more)| answer(client, path, more))).await;
    for (((path, more), (answer, _)), expected) in rows.iter().zip(&answers).zip(expected) {
        assert_eq!(answer, expected, "{way}: {path} {more}");
    }
    answers.iter().map(|(_, cached)| cached).sum()
}

/// A counter of the scheduler's metrics, over all its labels.
async fn counter(client: &Client, name: &str) -> f64 {
    let metrics = client.get("/metrics").await.body;
    let lines = metrics.as_str().unwrap().lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_parameter_answers_the_same_however_it_is_served() {
    let alone = ProcessCluster::up(PDSERVE, &["--prefill", "0", "--decode", "1"]);
    let client = alone.client();
    let rows = rows();
    let expected = join_all(rows.iter().map(|(path, more)| answer(&client, path, more))).await;
    let expected: Vec<Value> = expected.into_iter().map(|(answer, _)| answer).collect();
    drop(alone);
    let pair = ProcessCluster::up(PDSERVE, &[]);
    check(&pair.client(), "P and D", &expected).await;
    let cached = check(&pair.client(), "P and D with a cached prefix", &expected).await;
    assert!(cached > 0, "nothing was cached, so this way was not gone");
    drop(pair);
    let small = ProcessCluster::up(PDSERVE, &["--prefill", "0", "--decode", "1", "--kv-cache-memory", "3MiB"]);
    check(&small.client(), "preempted", &expected).await;
    assert!(counter(&small.client(), "vllm:num_preemptions_total").await > 0.0, "nothing was preempted");
    drop(small);
    resumed(&expected).await;
}

/// Kills a decode worker while it decodes.
async fn resumed(expected: &[Value]) {
    let cluster = ProcessCluster::up(PDSERVE, &["--decode", "2"]);
    let client = cluster.client();
    let ready = client.get("/ready").await.body;
    let mut instances = ready["instances"].as_array().unwrap().iter();
    let decode = instances.find(|instance| instance["instance"] == "decode-0").unwrap();
    let ledger = Client::new(format!("http://{}", decode["address"].as_str().unwrap()));
    let killed = async {
        while ledger.get("/kv").await.body["phases"]["decoding"].as_u64().unwrap_or(0) < 8 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        cluster.signal("decode-0", Signal::KILL);
    };
    let way = "resumed on another decode worker";
    tokio::join!(check(&client, way, expected), killed);
    assert!(counter(&client, "pdserve_retries_total").await > 0.0, "no attempt was lost, so nothing was resumed");
}
