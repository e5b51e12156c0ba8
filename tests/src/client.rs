//! A small OpenAI client: JSON in, JSON or a stream of server-sent events out. It asserts the framing as it reads.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// Talks to one scheduler.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    http: HttpClient<HttpConnector, Full<Bytes>>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: Value,
}

impl Reply {
    /// The only choice's text, of a chat or a completion.
    pub fn text(&self) -> &str {
        assert_eq!(self.status, 200, "{}", self.body);
        let choice = &self.body["choices"][0];
        choice["message"]["content"].as_str().or(choice["text"].as_str()).expect("a choice with text")
    }
}

/// A stream of events being read; dropping it closes the connection, as a client that leaves does.
#[derive(Debug)]
pub struct Streamed {
    pub status: u16,
    body: Incoming,
    buffer: Vec<u8>,
    /// Whether `[DONE]` came.
    pub done: bool,
    /// Longest wait for an event after the first.
    pub worst_gap: Duration,
    last: Option<Instant>,
    /// Why the body broke off, if it did.
    broken: Option<String>,
}

impl Client {
    /// `base` like `http://127.0.0.1:9000`.
    pub fn new(base: impl Into<String>) -> Self {
        Self { base: base.into(), http: HttpClient::builder(TokioExecutor::new()).build_http() }
    }

    pub async fn get(&self, path: &str) -> Reply {
        Self::whole(self.send(Method::GET, path, Bytes::new()).await).await
    }

    /// `None` when nobody answers.
    pub async fn try_get(&self, path: &str) -> Option<Reply> {
        let request = Request::get(format!("{}{path}", self.base)).body(Full::default()).expect("a valid request");
        Some(Self::whole(self.http.request(request).await.ok()?).await)
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        Self::whole(self.send(Method::POST, path, body.to_string().into()).await).await
    }

    /// Sends bytes that may be anything.
    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Reply {
        Self::whole(self.send(Method::POST, path, body.into()).await).await
    }

    /// Sends `body` with `"stream": true` added.
    pub async fn stream(&self, path: &str, body: &Value) -> Streamed {
        let mut body = body.clone();
        body["stream"] = Value::Bool(true);
        let response = self.send(Method::POST, path, body.to_string().into()).await;
        Streamed {
            status: response.status().as_u16(),
            body: response.into_body(),
            buffer: Vec::new(),
            done: false,
            worst_gap: Duration::ZERO,
            last: None,
            broken: None,
        }
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Response<Incoming> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        let request =
            request.header("content-type", "application/json").body(Full::new(body)).expect("a valid request");
        self.http.request(request).await.expect("the scheduler answers")
    }

    async fn whole(response: Response<Incoming>) -> Reply {
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("a whole body").to_bytes();
        let body = serde_json::from_slice(&bytes);
        Reply { status, body: body.unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned())) }
    }
}

impl Streamed {
    /// The next event's JSON; `None` after `[DONE]` or at the end of the body.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let event = String::from_utf8(event).expect("events never hold half a character");
                match event.trim_end().strip_prefix("data: ") {
                    Some("[DONE]") => self.done = true,
                    Some(json) => {
                        let before = self.last.replace(Instant::now());
                        self.worst_gap = self.worst_gap.max(before.map_or(Duration::ZERO, |before| before.elapsed()));
                        return Some(serde_json::from_str(json).expect("an event holds JSON"));
                    }
                    None => assert!(event.starts_with(':'), "not an event: {event:?}"),
                }
                continue;
            }
            match self.body.frame().await? {
                Ok(frame) => self.buffer.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(error) => {
                    self.broken = Some(format!("{error:?}"));
                    return None;
                }
            }
        }
    }

    /// Reads to the end and joins the texts of choice `index`; panics on an error event.
    pub async fn text(&mut self, index: u64) -> String {
        let mut text = String::new();
        while let Some(event) = self.next().await {
            assert!(event["error"].is_null(), "error in the stream: {event}");
            for choice in event["choices"].as_array().expect("choices").iter().filter(|c| c["index"] == index) {
                text += choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
            }
        }
        assert!(
            self.done,
            "status {}: no [DONE] after {text:?}, broken: {:?}, left: {}",
            self.status,
            self.broken,
            String::from_utf8_lossy(&self.buffer)
        );
        text
    }
}
