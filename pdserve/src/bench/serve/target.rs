//! One server under load: streams completions over HTTP/1.1 and notes when each token came.

use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::chunk::Chunk;
use super::outcome::{Outcome, TokenEvent};
use super::workload::Job;
use crate::sse::Events;
use crate::web::Web;

/// Bytes of an answer that is not a stream: a list of models or an error.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Characters of a server's error that are shown.
const ERROR_CHARS_MAX: usize = 300;

/// A server and the model to ask it for. Cheap to clone: clones share connections.
#[derive(Debug, Clone)]
pub(in crate::bench) struct Target {
    /// Short, for the heads of columns.
    pub(super) label: String,
    /// What it is: an address, or how it was started.
    pub(super) description: String,
    pub(in crate::bench) model: String,
    /// Prompt and output together, if the server says.
    pub(super) max_model_len: Option<u32>,
    base: String,
    http: Web,
}

impl Target {
    /// Asks the server what it serves. `model`: `None` takes the first of its list.
    pub(in crate::bench) async fn connect(
        label: String,
        description: String,
        url: &str,
        model: Option<&str>,
        http: Web,
    ) -> anyhow::Result<Self> {
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let mut target = Self { label, description, model: String::new(), max_model_len: None, base, http };
        let models =
            target.get("/v1/models").await.with_context(|| format!("{url} does not answer as an OpenAI server"))?;
        let cards = models["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        let card = cards.iter().find(|card| model.is_none_or(|name| card["id"] == name));
        let card = card.with_context(|| format!("{url} does not serve {}", model.unwrap_or("any model")))?;
        target.model = card["id"].as_str().unwrap_or_default().to_owned();
        target.max_model_len = card["max_model_len"].as_u64().and_then(|len| u32::try_from(len).ok());
        Ok(target)
    }

    pub(in crate::bench) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.answer(path, Request::get(format!("{}{path}", self.base)).body(Full::default())?).await
    }

    pub(in crate::bench) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = Request::post(format!("{}{path}", self.base)).header("content-type", "application/json");
        self.answer(path, request.body(Full::from(body.to_string()))?).await
    }

    async fn answer(&self, path: &str, request: Request<Full<Bytes>>) -> anyhow::Result<Value> {
        let answer = self.http.request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
        ensure!(status.is_success(), "{path} answered {status}: {}", shorten(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    /// Sends one request and reads it to its end. `start` is when the run began; `due` is when the request should be sent, which
    /// counts as its beginning even if the client could not keep up.
    pub(super) async fn ask(&self, job: Job, vocab: u32, start: Instant, due: Instant, limit: Duration) -> Outcome {
        let mut outcome = Outcome::new(&job, due - start);
        let read = self.read(&job, vocab, start, &mut outcome);
        let error = match timeout(limit, read).await {
            Err(_) => Some(format!("no end within {} s", limit.as_secs())),
            Ok(Err(error)) => Some(format!("{error:#}")),
            Ok(Ok(())) if outcome.tokens() != job.output => {
                Some(format!("{} tokens asked for, {} came", job.output, outcome.tokens()))
            }
            Ok(Ok(())) => None,
        };
        outcome.end = start.elapsed();
        outcome.error = error;
        outcome
    }

    async fn read(&self, job: &Job, vocab: u32, start: Instant, outcome: &mut Outcome) -> anyhow::Result<()> {
        let body = json!({
            "model": self.model, "prompt": job.prompt.tokens(vocab), "max_tokens": job.output, "ignore_eos": true,
            "temperature": 0, "stream": true, "stream_options": { "include_usage": true, "continuous_usage_stats": true },
        });
        let request = Request::post(format!("{}/v1/completions", self.base))
            .header("content-type", "application/json")
            .body(Full::from(body.to_string()))?;
        let answer = self.http.request(request).await?;
        let status = answer.status();
        let mut body = answer.into_body();
        if !status.is_success() {
            let text = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(anyhow::Error::from_boxed)?;
            bail!("{status}: {}", shorten(&text.to_bytes()));
        }
        let (mut events, mut text) = (Events::default(), DefaultHasher::new());
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame?.into_data() else { continue };
            let now = start.elapsed();
            events.push(&bytes, |data| note(data, now, outcome, &mut text))?;
        }
        outcome.text_hash = text.finish();
        Ok(())
    }
}

/// Writes down what one event brought.
fn note(data: &str, now: Duration, outcome: &mut Outcome, text: &mut DefaultHasher) -> anyhow::Result<()> {
    if data == "[DONE]" {
        return Ok(());
    }
    let chunk: Chunk =
        serde_json::from_str(data).with_context(|| format!("not a chunk: {}", shorten(data.as_bytes())))?;
    if let Some(error) = &chunk.error {
        bail!("in the stream: {}", shorten(error.to_string().as_bytes()));
    }
    let tokens = chunk.tokens_after(outcome.tokens());
    if tokens > outcome.tokens() {
        outcome.events.push(TokenEvent { at: now, tokens });
    }
    for choice in &chunk.choices {
        text.write(choice.text.as_bytes());
    }
    if let Some(usage) = chunk.usage {
        outcome.prompt_tokens = usage.prompt_tokens;
        outcome.cached_tokens = usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
    }
    Ok(())
}

fn shorten(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(ERROR_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper::{Response, StatusCode};
    use hyper_util::rt::TokioIo;

    use super::*;
    use crate::bench::serve::prompts::PromptSource;
    use crate::bench::serve::workload::Class;
    use crate::web;

    /// Answers every completion with `status` and `body`, and says where.
    async fn server(status: u16, body: &'static str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/", listener.local_addr().unwrap());
        let answer = move |request: Request<Incoming>| async move {
            let models = r#"{"data":[{"id":"first","max_model_len":64},{"id":"second"}]}"#;
            let (status, body) = if request.uri().path() == "/v1/models" { (200, models) } else { (status, body) };
            let mut response = Response::new(Full::<Bytes>::from(body));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            Ok::<_, Infallible>(response)
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer));
                tokio::spawn(serving);
            }
        });
        url
    }

    async fn ask(status: u16, body: &'static str) -> Outcome {
        let target =
            Target::connect("t".into(), "t".into(), &server(status, body).await, None, web::client(None).unwrap())
                .await
                .unwrap();
        assert_eq!((target.model.as_str(), target.max_model_len), ("first", Some(64)));
        let prompt = PromptSource::new(1, 0, 0).unique(3);
        let job = Job { class: Class::Measured, after: Duration::ZERO, prompt, output: 2 };
        let now = Instant::now();
        target.ask(job, 100, now, now, Duration::from_secs(60)).await
    }

    #[tokio::test]
    async fn a_whole_stream_is_no_error() {
        let outcome = ask(200, "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\",\"finish_reason\":\"length\"}]}\n\n\
             data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":1}}}\n\ndata: [DONE]\n\n").await;
        assert_eq!(
            (outcome.error.as_deref(), outcome.tokens(), outcome.prompt_tokens, outcome.cached_tokens),
            (None, 2, 3, 1)
        );
        // Cut elsewhere, the text is the same.
        let one = ask(
            200,
            "data: {\"choices\":[{\"text\":\"ab\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n",
        )
        .await;
        assert_eq!((one.error.as_deref(), one.text_hash), (None, outcome.text_hash));
    }

    #[tokio::test]
    async fn what_is_not_a_whole_answer_is_an_error() {
        for (status, body, expected) in [
            (200, "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n", "2 tokens asked for, 1 came"),
            (200, "", "2 tokens asked for, 0 came"),
            (429, "{\"error\":\"busy\"}", "429 Too Many Requests: {\"error\":\"busy\"}"),
            (200, "data: {\"error\":{\"message\":\"lost\"}}\n\n", "in the stream: {\"message\":\"lost\"}"),
            (200, "data: nonsense\n\n", "not a chunk: nonsense: expected ident at line 1 column 2"),
        ] {
            assert_eq!(ask(status, body).await.error.as_deref(), Some(expected));
        }
    }

    #[tokio::test]
    async fn a_model_that_is_not_served_is_named() {
        let url = server(200, "").await;
        let connect =
            async |model| Target::connect("t".into(), "t".into(), &url, Some(model), web::client(None).unwrap()).await;
        assert_eq!(connect("second").await.unwrap().model, "second");
        assert!(connect("third").await.unwrap_err().to_string().ends_with("does not serve third"));
    }
}
