//! How our commands call servers that others started: `http://` bare, `https://` believing the CA of `--cacert`.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use anyhow::Context;
use bytes::Bytes;
use edge::{PeerStream, Trust};
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tower::Service;

/// Shares connections among its clones.
pub(crate) type Web = Client<Dial, Full<Bytes>>;

/// A client; `cacert` is needed for `https://`.
///
/// # Errors
/// A file that holds no certificate of a CA.
pub(crate) fn client(cacert: Option<&Path>) -> anyhow::Result<Web> {
    let trust = cacert.map(Trust::load).transpose().context("--cacert")?;
    Ok(Client::builder(TokioExecutor::new()).build(Dial(trust)))
}

/// Opens connections.
#[derive(Clone, Debug)]
pub(crate) struct Dial(Option<Trust>);

impl Dial {
    async fn open(self, uri: Uri) -> anyhow::Result<Stream> {
        let host = uri.host().with_context(|| format!("{uri} names no host"))?.trim_matches(['[', ']']);
        let https = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let found = tokio::net::lookup_host((host, port)).await?.next();
        let address = found.with_context(|| format!("{host} has no address"))?;
        let stream = match (https, &self.0) {
            (false, _) => PeerStream::connect(address).await?,
            (true, Some(trust)) => trust.connect(address, host).await?,
            (true, None) => anyhow::bail!("https needs --cacert FILE, the CA of the server's certificate"),
        };
        Ok(Stream(TokioIo::new(stream)))
    }
}

impl Service<Uri> for Dial {
    type Response = Stream;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Stream, Self::Error>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let opening = self.clone().open(uri);
        Box::pin(async move { opening.await.map_err(Into::into) })
    }
}

/// A connection as hyper wants it.
#[derive(Debug)]
pub(crate) struct Stream(TokioIo<PeerStream>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
