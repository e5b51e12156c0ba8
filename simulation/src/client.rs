//! A client of one request: sends it, writes down what it sees, and perhaps leaves early.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use net::TcpStream;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;
use types::TokenId;

use crate::ask::{Ask, Leave, Seen, Text, hundredths};
use crate::witness::Witness;

/// A client that waits for ever finds nothing; longer than anything the cluster may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a client that waits for its hand-over looks.
const LOOK: Duration = Duration::from_millis(1);

/// The request's own id, as the ledgers of the workers show it.
pub(crate) fn request_id(number: usize) -> String {
    format!("ask{number}")
}

/// Which ask a request's name on a worker belongs to; canaries are the scheduler's own.
pub(crate) fn ask_of(request: &str) -> Option<usize> {
    // A completion's prompts and choices have endings of their own, and a prefix may tell the endpoint.
    let digits = request.split("ask").nth(1)?;
    digits.split(|part: char| !part.is_ascii_digit()).next()?.parse().ok()
}

/// Lives the client of `ask`. Its clock began when the world's did.
pub(crate) async fn live(number: usize, ask: Ask, scheduler: SocketAddr, seen: Arc<Mutex<Seen>>, witness: Witness) {
    let start = Instant::now();
    tokio::time::sleep_until(start + ask.at).await;
    let asking = exchange(number, &ask, scheduler, &seen);
    tokio::select! {
        biased;
        asked = asking => {
            if let Err(reason) = asked {
                seen.lock().broken = Some(reason);
            }
        }
        () = leaving(number, ask.leaves, &witness) => {}
    }
    seen.lock().over = Some(start.elapsed());
}

/// Waits until the client has had enough.
async fn leaving(number: usize, leaves: Option<Leave>, witness: &Witness) {
    let given_up = Instant::now() + PATIENCE;
    match leaves {
        None => tokio::time::sleep_until(given_up).await,
        Some(Leave::After(patience)) => tokio::time::sleep(patience).await,
        Some(Leave::Landing) => {
            while !witness.lands(number) && Instant::now() < given_up {
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

async fn exchange(number: usize, ask: &Ask, scheduler: SocketAddr, seen: &Mutex<Seen>) -> Result<(), String> {
    let stream = TcpStream::connect(scheduler).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let request = Request::post(ask.path()).header("host", "sim").header("content-type", "application/json");
    let request =
        request.header("x-request-id", request_id(number)).body(Full::new(Bytes::from(ask.body().to_string())));
    let request = request.map_err(|error| error.to_string())?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        seen.lock().status = Some(response.status().as_u16());
        match ask.stream && response.status().is_success() {
            true => events(response, seen).await,
            false => whole(response, seen).await,
        }
    };
    tokio::select! {
        // What has come is read before the connection's end is looked at.
        biased;
        talked = talk => talked,
        ended = connection => Err(ended.err().map_or_else(|| "closed".to_owned(), |error| error.to_string())),
    }
}

async fn events(mut response: Response<Incoming>, seen: &Mutex<Seen>) -> Result<(), String> {
    let mut unread = Vec::new();
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        unread.extend(frame.into_data().unwrap_or_default());
        while let Some(end) = unread.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = unread.drain(..end + 2).collect();
            let event = String::from_utf8(event).map_err(|_| "an event that is no UTF-8".to_owned())?;
            seen.lock().event(event.trim());
        }
    }
    Ok(())
}

async fn whole(mut response: Response<Incoming>, seen: &Mutex<Seen>) -> Result<(), String> {
    let success = response.status().is_success();
    let body = response.body_mut().collect().await.map_err(|error| error.to_string())?.to_bytes();
    let mut seen = seen.lock();
    match serde_json::from_slice::<Value>(&body) {
        Ok(value) if success => {
            seen.chunk(&value);
            seen.ends += 1;
        }
        _ => seen.errors.push(String::from_utf8_lossy(&body).into_owned()),
    }
    Ok(())
}

impl Seen {
    fn event(&mut self, event: &str) {
        let data = event.strip_prefix("data: ").unwrap_or(event);
        if data == "[DONE]" {
            self.ends += 1;
            return;
        }
        match serde_json::from_str::<Value>(data) {
            Ok(value) if value.get("error").is_none() => self.chunk(&value),
            // Keep-alive comments are no JSON; they carry nothing.
            Err(_) if data.starts_with(':') => {}
            _ => self.errors.push(data.to_owned()),
        }
    }

    /// A part of the answer, or all of it.
    fn chunk(&mut self, value: &Value) {
        for choice in value["choices"].as_array().into_iter().flatten() {
            let index = choice["index"].as_u64().unwrap_or(u64::MAX).min(64) as usize;
            if self.choices.len() <= index {
                self.choices.resize(index + 1, Text::default());
            }
            let text = &mut self.choices[index];
            let said = ["delta", "message"].map(|part| choice[part]["content"].as_str());
            text.text += choice["text"].as_str().or(said[0]).or(said[1]).unwrap_or_default();
            let ids = choice["token_ids"].as_array().into_iter().flatten();
            text.tokens.extend(ids.map(|id| id.as_u64().unwrap_or(u64::MAX) as TokenId));
            text.logprobs.extend(logprobs(&choice["logprobs"]));
            match (choice["finish_reason"].as_str(), &text.finish) {
                (Some(reason), None) => text.finish = Some(reason.to_owned()),
                (Some(reason), Some(before)) => self.errors.push(format!("finished twice: {before}, {reason}")),
                (None, _) => {}
            }
        }
        if let Some(usage) = value.get("usage").filter(|usage| usage.is_object()) {
            let count = |name: &str| usage[name].as_u64().unwrap_or(u64::MAX);
            self.usage = Some((count("prompt_tokens"), count("completion_tokens")));
        }
    }
}

/// Of the tokens of a chunk, whichever endpoint it is of.
fn logprobs(of_choice: &Value) -> impl Iterator<Item = i64> {
    let completion = of_choice["token_logprobs"].as_array().into_iter().flatten();
    let chat = of_choice["content"].as_array().into_iter().flatten().map(|token| &token["logprob"]);
    completion.chain(chat).map(|logprob| hundredths(logprob.as_f64().unwrap_or(f64::NAN)))
}
