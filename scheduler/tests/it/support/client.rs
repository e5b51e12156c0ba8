//! A plain HTTP client: one connection per request, so that dropping a response is a client that left.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A response whose body is still arriving; dropping it closes the connection.
pub(crate) struct Open {
    pub(crate) status: u16,
    response: Response<Incoming>,
    connection: JoinHandle<()>,
    unread: String,
    /// Comment lines so far.
    pub(crate) comments: usize,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

pub(crate) async fn open(address: SocketAddr, request: Request<Full<Bytes>>) -> Open {
    open_on(TcpStream::connect(address).await.unwrap(), request).await
}

/// On a connection of the caller's.
pub(crate) async fn open_on(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Open {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    let response = sender.send_request(request).await.unwrap();
    Open { status: response.status().as_u16(), response, connection, unread: String::new(), comments: 0 }
}

impl Open {
    /// The next event's data, or `None` at the end of the body.
    pub(crate) async fn event(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.find("\n\n") {
                let event: String = self.unread.drain(..end + 2).collect();
                if event.starts_with(':') {
                    self.comments += 1;
                    continue;
                }
                return Some(event.trim().strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}")).to_owned());
            }
            let frame = self.response.body_mut().frame().await?;
            let data = frame.ok()?.into_data().ok()?;
            self.unread.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    /// Waits for a comment line and nothing else.
    pub(crate) async fn comment(&mut self) {
        let frame = self.response.body_mut().frame().await.unwrap().unwrap();
        assert!(frame.into_data().unwrap().starts_with(b": "));
    }

    /// Every event up to the end of the body.
    pub(crate) async fn events(mut self) -> Vec<String> {
        let mut events = Vec::new();
        while let Some(event) = self.event().await {
            events.push(event);
        }
        events
    }
}

pub(crate) async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let mut open = open(address, request).await;
    let headers = open.response.headers().clone();
    let body = open.response.body_mut().collect().await.unwrap().to_bytes();
    Answer { status: open.status, headers, body }
}

pub(crate) fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", "test");
    request.header("content-type", "application/json").body(Full::new(body.into())).unwrap()
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, request("GET", path, "")).await
}

pub(crate) async fn post(address: SocketAddr, path: &str, body: Value) -> Answer {
    send(address, request("POST", path, body.to_string())).await
}

pub(crate) async fn stream(address: SocketAddr, path: &str, body: Value) -> Open {
    open(address, request("POST", path, body.to_string())).await
}
