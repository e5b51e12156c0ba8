//! Other routers in the scheduler's place, between the same users and workers that answer at once over HTTP.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::str::FromStr;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::process::Command;

use super::load::{ANSWER_TOKENS, Load};
use super::process::{CONTEXT, LOOPBACK, MODEL};
use super::server::Server;
use crate::ports;

/// `NAME=COMMAND` of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Router {
    pub(super) name: String,
    command: String,
}

impl FromStr for Router {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, command) = text.split_once('=').context("want NAME=COMMAND")?;
        for place in ["{port}", "{prefill}", "{decode}"] {
            ensure!(command.contains(place), "the command of {name:?} has no {place}");
        }
        Ok(Self { name: name.to_owned(), command: command.to_owned() })
    }
}

impl Router {
    /// Starts a prefill and a decode worker and the router in front of them; waits until `load` is answered.
    pub(super) async fn start(&self, load: &Load) -> anyhow::Result<Server> {
        let port = ports::hold_port(LOOPBACK)?.local_addr()?.port();
        let places = [
            ("{port}", port.to_string()),
            ("{prefill}", format!("http://{}", serve_worker()?)),
            ("{decode}", format!("http://{}", serve_worker()?)),
        ];
        let filled =
            |word: &str| places.iter().fold(word.to_owned(), |word, (place, value)| word.replace(place, value));
        let mut words = self.command.split_whitespace().map(filled);
        let program = words.next().with_context(|| format!("the command of {:?} is empty", self.name))?;
        let child = Command::new(&program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {program} for {:?}", self.name))?;
        let is_ready = async |url: &str| load.once(url).await.is_ok();
        let server = Server::new(&self.name, format!("http://{LOOPBACK}:{port}"), child, is_ready).await;
        server.with_context(|| format!("its command, to try by hand: {}", self.command))
    }
}

/// A worker on a free port, until the process ends.
fn serve_worker() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((LOOPBACK, 0)).context("no free port")?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Without it the router waits for acknowledgements that are held back.
            stream.set_nodelay(true).ok();
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    });
    Ok(address)
}

/// What routers ask workers about themselves, and an answer of so many tokens to every prompt.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    // A body that breaks off ends the connection as well.
    request.into_body().collect().await.ok();
    let found = found(&path);
    let status = if found.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    let mut response = Response::new(Full::from(found.unwrap_or_default().to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn found(path: &str) -> Option<Value> {
    let usage = json!({ "prompt_tokens": 1, "completion_tokens": ANSWER_TOKENS, "total_tokens": 1 + ANSWER_TOKENS });
    let answer = |object, choice| json!({ "id": "1", "object": object, "created": 1, "model": MODEL, "choices": [choice], "usage": usage });
    Some(match path {
        "/health" => json!({}),
        "/version" => json!({ "version": "0" }),
        "/v1/models" => json!({ "object": "list", "data": [
            { "id": MODEL, "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": CONTEXT },
        ] }),
        "/v1/completions" => {
            answer("text_completion", json!({ "index": 0, "text": "AA", "logprobs": null, "finish_reason": "length" }))
        }
        "/v1/chat/completions" => {
            let message = json!({ "role": "assistant", "content": "AA" });
            answer(
                "chat.completion",
                json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": "length" }),
            )
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bench::gateway::prompts::{Bodies, Kind, Writer};

    #[test]
    fn a_command_says_where_everyone_is() {
        let router: Router = "smg=smg launch --port {port} --prefill {prefill} --decode {decode}".parse().unwrap();
        assert_eq!(router.name, "smg");
        for wrong in ["smg", "smg=smg launch --port {port} --prefill {prefill}", "=x"] {
            assert!(wrong.parse::<Router>().is_err(), "{wrong}");
        }
    }

    fn load(kind: Kind) -> Load {
        let fields = json!({ "max_tokens": ANSWER_TOKENS });
        let bodies = Bodies::texts(kind, &mut Writer::new(1), 1, 100, &fields);
        Load { bodies: Arc::new(bodies), numbers: Arc::default() }
    }

    #[tokio::test]
    async fn a_worker_answers_what_is_measured_and_says_who_it_is() {
        let url = format!("http://{}", serve_worker().unwrap());
        for kind in [Kind::Health, Kind::Text, Kind::Chat] {
            load(kind).once(&url).await.unwrap();
        }
        assert_eq!(found("/v1/models").unwrap()["data"][0]["id"], MODEL);
        assert_eq!(found("/v1/else"), None);
    }

    #[tokio::test]
    async fn a_router_that_ends_is_named_with_its_command() {
        let router: Router = "none=false {port} {prefill} {decode}".parse().unwrap();
        let error = router.start(&load(Kind::Text)).await.unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("false {port}") && error.contains("none ended before it was ready"), "{error}");
    }
}
