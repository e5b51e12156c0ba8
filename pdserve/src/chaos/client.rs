//! Asks the cluster as its users do, and notes what they would notice: text, gaps, refusals, ends that are none.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::sse::Events;

/// Bytes of an answer that is no stream.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// No request of the drill may take longer.
const REQUEST_MAX: Duration = Duration::from_secs(90);
/// For answers of `/ready` and `/metrics`.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// One server. Clones share connections.
#[derive(Clone)]
pub(super) struct Client {
    base: String,
    model: String,
    http: HttpClient<HttpConnector, Full<Bytes>>,
}

/// What a client was told. Equal for equal answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Of every choice.
    pub(super) texts: Vec<String>,
    pub(super) finishes: Vec<String>,
    pub(super) completion_tokens: u64,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Whole(Said),
    /// 429 or 503 with `Retry-After`.
    Refused,
    /// It did not end.
    Endless,
    /// Anything else: why.
    Failed(String),
}

/// A request seen from its client.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) end: End,
    /// Longest pause between two pieces of text.
    pub(super) worst_gap: Duration,
}

impl Client {
    pub(super) fn new(base: &str, model: &str) -> Self {
        let http = HttpClient::builder(TokioExecutor::new()).build_http();
        Self { base: base.to_owned(), model: model.to_owned(), http }
    }

    /// `host:port`.
    pub(super) fn authority(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    /// A JSON answer, whatever its status.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.text(path).await?)?)
    }

    pub(super) async fn text(&self, path: &str) -> anyhow::Result<String> {
        let answer = async {
            let answer = self.http.get(format!("{}{path}", self.base).parse()?).await?;
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok(String::from_utf8(body.map_err(anyhow::Error::from_boxed)?.to_bytes().to_vec())?)
        };
        timeout(LOOK_MAX, answer).await.with_context(|| format!("no answer from {}{path}", self.base))?
    }

    /// The body that is sent for a completion.
    pub(super) fn body(&self, completion: &Value) -> String {
        let mut body = completion.clone();
        body["model"] = json!(self.model);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        body.to_string()
    }

    /// Streams a completion; calls `token` for each piece of text. Workers know it by its `request_id`, if it has one.
    pub(super) async fn complete(&self, completion: &Value, token: impl Fn()) -> Seen {
        let mut reading = Reading { said: Said::default(), last: None, worst_gap: Duration::ZERO, done: false };
        let read = timeout(REQUEST_MAX, self.read(completion, &mut reading, token)).await;
        let end = match read {
            Err(_) => End::Endless,
            Ok(Err(error)) => End::Failed(format!("{error:#}")),
            Ok(Ok(false)) => End::Refused,
            Ok(Ok(true)) if !reading.done => End::Failed("the stream ended without [DONE]".to_owned()),
            Ok(Ok(true)) => End::Whole(reading.said),
        };
        Seen { end, worst_gap: reading.worst_gap }
    }

    /// Sends bytes that may be anything; the status.
    pub(super) async fn post(&self, body: Vec<u8>) -> anyhow::Result<u16> {
        let answer = async {
            let answer = self.http.request(self.request(body)?).await?;
            let status = answer.status().as_u16();
            Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(anyhow::Error::from_boxed)?;
            Ok(status)
        };
        timeout(REQUEST_MAX, answer).await.context("no answer")?
    }

    fn request(&self, body: impl Into<Bytes>) -> anyhow::Result<hyper::Request<Full<Bytes>>> {
        let request = hyper::Request::post(format!("{}/v1/completions", self.base));
        Ok(request.header("content-type", "application/json").body(Full::new(body.into()))?)
    }

    /// False: refused with a time to come back.
    async fn read(&self, completion: &Value, reading: &mut Reading, token: impl Fn()) -> anyhow::Result<bool> {
        let mut request = self.request(self.body(completion))?;
        if let Some(id) = completion["request_id"].as_str() {
            request.headers_mut().insert("x-request-id", id.parse()?);
        }
        let answer = self.http.request(request).await?;
        let (status, retry) = (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
        if matches!(status, 429 | 503) && retry {
            return Ok(false);
        }
        ensure!(status == 200, "status {status}");
        let (mut events, mut body) = (Events::default(), answer.into_body());
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame?.into_data() else { continue };
            events.push(&bytes, |data| reading.take(data, &token))?;
        }
        Ok(true)
    }
}

/// A stream being read.
struct Reading {
    said: Said,
    last: Option<Instant>,
    worst_gap: Duration,
    done: bool,
}

impl Reading {
    fn take(&mut self, data: &str, token: impl Fn()) -> anyhow::Result<()> {
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let event: Value = serde_json::from_str(data)?;
        ensure!(event["error"].is_null(), "in the stream: {}", event["error"]["message"]);
        if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
            self.said.completion_tokens = tokens;
        }
        for choice in event["choices"].as_array().map(Vec::as_slice).unwrap_or_default() {
            self.choice(choice);
            let now = Instant::now();
            self.worst_gap = self.worst_gap.max(self.last.map_or(Duration::ZERO, |last| now - last));
            self.last = Some(now);
            token();
        }
        Ok(())
    }

    fn choice(&mut self, choice: &Value) {
        let index = choice["index"].as_u64().and_then(|index| usize::try_from(index).ok()).unwrap_or(0).min(7);
        let Said { texts, finishes, .. } = &mut self.said;
        texts.resize(texts.len().max(index + 1), String::new());
        finishes.resize(texts.len(), String::new());
        texts[index] += choice["text"].as_str().unwrap_or_default();
        finishes[index] += choice["finish_reason"].as_str().unwrap_or_default();
    }
}
