//! Structured output through the whole product: the text is one of the grammar, whatever the model would rather say.

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{Client, ProcessCluster, random_model};

const PDSERVE: &str = env!("CARGO_BIN_EXE_pdserve-under-test");
const CHAT: &str = "/v1/chat/completions";

/// The schema of the guide that the commands come from: definitions, bare references, enums.
fn character() -> Value {
    json!({
        "title": "Character", "type": "object",
        "definitions": {
            "Armor": {"title": "Armor", "description": "An enumeration.", "enum": ["leather", "chainmail", "plate"], "type": "string"},
            "Weapon": {"title": "Weapon", "enum": ["sword", "axe", "mace", "spear", "bow", "crossbow"], "type": "string"},
        },
        "properties": {
            "name": {"maxLength": 10, "title": "Name", "type": "string"},
            "age": {"title": "Age", "type": "integer"},
            "armor": {"$ref": "#/definitions/Armor"},
            "weapon": {"$ref": "#/definitions/Weapon"},
            "strength": {"title": "Strength", "type": "integer"},
        },
        "required": ["name", "age", "armor", "weapon", "strength"],
    })
}

fn chat(question: &str, more: Value) -> Value {
    let mut body = json!({"temperature": 0, "max_tokens": 400, "messages": [{"role": "user", "content": question}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Asks and checks that the text ended by itself.
async fn text(client: &Client, body: &Value) -> String {
    let reply = client.post(CHAT, body).await;
    let text = reply.text().to_owned();
    assert_eq!(reply.body["choices"][0]["finish_reason"], "stop", "{body}: {text:?}");
    text
}

fn assert_valid(schema: &Value, text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
    if let Err(error) = jsonschema::validate(schema, &value) {
        panic!("{error}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_schema_gives_a_valid_object_on_every_endpoint() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let client = cluster.client();
    let (schema, question) = (character(), "Give me a random character.");
    let asked = [
        json!({"guided_json": schema.to_string()}),
        json!({"guided_json": schema, "temperature": 1.5, "seed": 7}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "character", "schema": schema, "strict": true}}}),
        json!({"structured_outputs": {"json": schema}, "presence_penalty": 1, "min_tokens": 60, "ignore_eos": true}),
    ];
    for more in asked {
        assert_valid(&schema, &text(&client, &chat(question, more)).await);
    }
    let body = json!({"prompt": question, "guided_json": schema, "max_tokens": 400, "n": 3, "seed": 1});
    let reply = client.post("/v1/completions", &body).await;
    for choice in reply.body["choices"].as_array().unwrap() {
        assert_valid(&schema, choice["text"].as_str().unwrap());
        assert_eq!(choice["finish_reason"], "stop");
    }
    let format = json!({"type": "json_schema", "name": "character", "schema": schema});
    let reply =
        client.post("/v1/responses", &json!({"input": question, "text": {"format": format}, "temperature": 0})).await;
    assert_valid(&schema, reply.body["output"][0]["content"][0]["text"].as_str().unwrap());
    assert_eq!((&reply.body["status"], &reply.body["text"]["format"]), (&json!("completed"), &format));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_knows_nothing_gives_valid_texts_of_every_kind() {
    let model = random_model();
    let cluster = ProcessCluster::up(PDSERVE, &["--model", &model.path().to_string_lossy()]);
    let client = cluster.client();
    let with = |more: Value| {
        let mut body = chat("Say something.", json!({"temperature": 1, "seed": 3, "max_tokens": 1000}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let schema = character();
    for seed in 0..4 {
        let body = with(json!({"guided_json": schema, "seed": seed}));
        assert_valid(&schema, &text(&client, &body).await);
    }
    let number = text(&client, &with(json!({"guided_regex": r"^\(\d{3}\) \d{3}-\d{4}$"}))).await;
    let shape: String = number.chars().map(|c| if c.is_numeric() { '0' } else { c }).collect();
    assert_eq!(shape, "(000) 000-0000", "{number}");
    let chosen = text(&client, &with(json!({"guided_choice": ["red", "green", "blue ocean"]}))).await;
    assert!(["red", "green", "blue ocean"].contains(&chosen.as_str()), "{chosen}");
    let lark = r#"start: "select " NAME " from " NAME (" where " NAME "=" /[0-9]{1,3}/)?
NAME: /[a-z]{1,5}/"#;
    let sql = text(&client, &with(json!({"guided_grammar": lark}))).await;
    assert!(sql.starts_with("select ") && sql.contains(" from "), "{sql}");
    let gbnf = "root ::= \"<\" ( root | [0-9]{1,3} ) \">\"";
    let nested = text(&client, &with(json!({"structured_outputs": {"grammar": gbnf}}))).await;
    let digits = nested.trim_start_matches('<').trim_end_matches('>');
    assert!((1..=3).contains(&digits.len()) && nested.matches('<').count() == nested.matches('>').count(), "{nested}");
    // Cut by the limit, and said so.
    let reply = client.post(CHAT, &with(json!({"guided_json": schema, "max_tokens": 5}))).await;
    assert_eq!(reply.body["choices"][0]["finish_reason"], "length");
}

/// Whether a text that was cut by its limit may begin so.
type MayBegin = fn(&str) -> bool;

/// Fields of a request, and what it may answer if it is taken.
fn bombs() -> Vec<(Value, MayBegin)> {
    let any: MayBegin = |_| true;
    let object: MayBegin = |text| text.starts_with('{');
    let regex = |regex: String| json!({ "guided_regex": regex });
    let schema = |schema: Value| json!({ "guided_json": schema });
    let grammar = |grammar: String| json!({ "guided_grammar": grammar });
    let twice = |key: &str| {
        let level = |at: usize| json!({ key: [{"$ref": format!("#/$defs/d{}", at + 1)}, {"$ref": format!("#/$defs/d{}", at + 1)}] });
        let mut levels: serde_json::Map<_, _> = (0..30).map(|at| (format!("d{at}"), level(at))).collect();
        levels.insert("d30".into(), json!({"type": "object", "properties": {"a": {"type": "integer"}}}));
        json!({"$defs": levels, "$ref": "#/$defs/d0"})
    };
    let deep = (0..60).fold(json!({"type": "integer"}), |inner, _| json!({"type": "array", "items": inner}));
    let keys: serde_json::Map<_, _> = (0..20_000).map(|i| (format!("k{i}"), json!({}))).collect();
    let rules: String = (0..4000).map(|i| format!("r{i}: r{} r{}\n", i + 1, i + 1)).collect();
    vec![
        (regex("a{1,1000000}".into()), |text| text.bytes().all(|byte| byte == b'a')),
        (regex("((a{1,100}){1,100}){1,100}".into()), |text| text.bytes().all(|byte| byte == b'a')),
        (regex("((((a+)+)+)+)+b".into()), |text| text.bytes().all(|byte| byte == b'a' || byte == b'b')),
        (regex("(x+x+)+y".into()), |text| text.bytes().all(|byte| byte == b'x' || byte == b'y')),
        (regex(format!("{}{}", "(?:a?)".repeat(300), "a".repeat(300))), |text| text.bytes().all(|byte| byte == b'a')),
        (regex("(a|b)*a(a|b){60}".into()), |text| text.bytes().all(|byte| byte == b'a' || byte == b'b')),
        (regex("(.*a){40}.{500}".into()), any),
        (regex(r"\p{L}{1,3000}".into()), |text| text.chars().all(char::is_alphabetic)),
        (regex(format!("{}a{}", "(".repeat(2000), ")".repeat(2000))), |text| text == "a"),
        (regex(format!("{}a{}", "(".repeat(200), "){0,9}".repeat(200))), |text| text.bytes().all(|byte| byte == b'a')),
        (schema(json!({"$ref": "#"})), any),
        (schema(json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})), any),
        (
            schema(
                json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}}, "$ref": "#/$defs/a"}),
            ),
            object,
        ),
        (schema(json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]})), object),
        (schema(twice("anyOf")), any),
        (schema(twice("allOf")), any),
        (schema(twice("oneOf")), any),
        (schema(deep), any),
        (schema(json!({"properties": keys})), any),
        (schema(json!({"type": "array", "minItems": 1_000_000, "items": {"type": "integer"}})), |text| {
            text.starts_with('[')
        }),
        (schema(json!({"type": "array", "maxItems": 4_000_000_000_u64})), |text| text.starts_with('[')),
        (schema(json!({"type": "string", "minLength": 1_000_000_000, "maxLength": 2_000_000_000})), |text| {
            text.starts_with('"')
        }),
        (schema(json!({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"})), |text| text.starts_with('"')),
        (schema(json!({"type": "number", "minimum": -1e308, "maximum": 1e308, "multipleOf": 1e-300})), any),
        (schema(json!({"enum": (0..5000).collect::<Vec<_>>()})), |text| text.bytes().all(|byte| byte.is_ascii_digit())),
        (grammar("start: start start | \"a\"".into()), |text| text.bytes().all(|byte| byte == b'a')),
        (grammar("start: start".into()), any),
        (grammar("start: x\nx: (x? y?)*\ny: (x | \"b\")*".into()), |text| text.bytes().all(|byte| byte == b'b')),
        (grammar("start: (\"a\"{1,1000}){1,1000}".into()), |text| text.bytes().all(|byte| byte == b'a')),
        (grammar(format!("start: r0\n{rules}r4000: \"a\"")), |text| text.bytes().all(|byte| byte == b'a')),
        (grammar(format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000))), |text| text == "a"),
        (grammar("start: A\nA: B B\nB: A A".into()), any),
        (grammar(format!("start: %json {}1{}", "[".repeat(30_000), "]".repeat(30_000))), any),
        (grammar(format!("root ::= {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000))), |text| text == "a"),
        // Not one token is left: refused, and the neighbours in the batch go on.
        (json!({"guided_choice": ["a"], "allowed_token_ids": [300]}), |_| false),
        (json!({"guided_choice": vec!["ab".repeat(20); 1000]}), |text| "ab".repeat(20).starts_with(text)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a6_bombs_are_refused_or_followed_while_others_go_on() {
    let cluster = ProcessCluster::up(PDSERVE, &[]);
    let client = cluster.client();
    let bystander = chat("What is prefill?", json!({"max_tokens": 300, "ignore_eos": true}));
    let expected = client.post(CHAT, &bystander).await.text().to_owned();
    let bombs = bombs();
    let thrown = bombs.iter().enumerate().map(|(at, (more, may_begin))| {
        let client = client.clone();
        async move {
            let mut body = chat("Go on.", json!({"max_tokens": 24, "temperature": 1, "seed": at}));
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let mut reply = client.post(CHAT, &body).await;
            // So many at once may have to wait for their turn to compile, and are told to come again.
            while reply.status == 429 {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                reply = client.post(CHAT, &body).await;
            }
            let shown = more.to_string().chars().take(120).collect::<String>();
            match reply.status {
                200 => assert!(may_begin(reply.text()), "{shown}: {:?}", reply.text()),
                400 => assert!(reply.body.to_string().len() < 4096, "{shown}: {}", reply.body),
                status => panic!("{shown}: {status} {}", reply.body),
            }
        }
    });
    let bystanders = (0..4).map(|_| async {
        let mut stream = client.stream(CHAT, &bystander).await;
        assert_eq!(stream.text(0).await, expected);
    });
    tokio::join!(futures::future::join_all(thrown), futures::future::join_all(bystanders));
    let after = client.post(CHAT, &bystander).await;
    assert_eq!(after.text(), expected, "the cluster serves on");
}

/// A decode worker dies while it writes objects: each goes on elsewhere as if nothing had happened, never nested, never doubled.
#[tokio::test(flavor = "multi_thread")]
async fn f5_schema_guided_streams_survive_a_killed_decode_instance() {
    let cluster = ProcessCluster::up(PDSERVE, &["--prefill", "2", "--decode", "2"]);
    let client = cluster.client();
    let item = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "kind": {"enum": ["prefill", "decode"]}}, "required": ["name", "kind"]});
    let schema = json!({"type": "object", "properties": {"items": {"type": "array", "minItems": 6, "maxItems": 8, "items": item}}, "required": ["items"]});
    let bodies: Vec<Value> = (0..16)
        .map(|seed| {
            chat("List the parts.", json!({"guided_json": schema, "temperature": 1, "seed": seed, "max_tokens": 600}))
        })
        .collect();
    let undisturbed = futures::future::join_all(bodies.iter().map(|body| text(&client, body))).await;
    let mut streams = Vec::new();
    for body in &bodies {
        let mut stream = client.stream(CHAT, body).await;
        assert!(stream.next().await.is_some(), "the role chunk");
        streams.push(stream);
    }
    cluster.signal("decode-0", Signal::KILL);
    let texts = futures::future::join_all(streams.iter_mut().map(|stream| stream.text(0))).await;
    for (text, expected) in texts.iter().zip(&undisturbed) {
        assert_eq!(text, expected);
        assert_valid(&schema, text);
    }
    let metrics = client.get("/metrics").await.body;
    let retries = metrics.as_str().unwrap().lines().filter(|line| line.starts_with("pdserve_retries_total"));
    let resumed: f64 = retries.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
    assert!(resumed > 0.0, "no stream was on the instance that died");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_insisted_on_have_valid_arguments() {
    let model = random_model();
    let cluster = ProcessCluster::up(PDSERVE, &["--model", &model.path().to_string_lossy()]);
    let client = cluster.client();
    let schema = json!({"type": "object", "$defs": {"place": {"enum": ["Paris", "Rome"]}}, "properties": {
        "places": {"type": "array", "items": {"$ref": "#/$defs/place"}, "minItems": 1, "maxItems": 3},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    }, "required": ["places", "days"], "additionalProperties": false});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": schema}});
    let tools = json!([tool("travel"), tool("stay"), {"type": "function", "function": {"name": "wait"}}]);
    let named = json!({"type": "function", "function": {"name": "stay"}});
    for (choice, finish) in [(json!("required"), "tool_calls"), (named, "stop")] {
        let more =
            json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false, "temperature": 1, "seed": 5});
        let reply = client.post(CHAT, &chat("Where to?", more)).await.body;
        let answer = &reply["choices"][0];
        assert_eq!(
            (&answer["finish_reason"], &answer["message"]["content"]),
            (&json!(finish), &Value::Null),
            "{reply}"
        );
        let calls = answer["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1, "{reply}");
        let (name, arguments) = (&calls[0]["function"]["name"], calls[0]["function"]["arguments"].as_str().unwrap());
        match name.as_str().unwrap() {
            "wait" => assert_eq!(arguments, "{}"),
            "travel" | "stay" => assert_valid(&schema, arguments),
            other => panic!("{other}"),
        }
        assert!(finish == "tool_calls" || name == "stay");
    }
    let bad = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 2, "maximum": 1}}, "required": ["a"]});
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": bad}}]);
    let reply = client.post(CHAT, &chat("x", json!({"tools": tools, "tool_choice": "required"}))).await;
    assert_eq!((reply.status, &reply.body["error"]["param"]), (400, &json!("tools")), "{}", reply.body);
}
