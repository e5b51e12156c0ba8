//! Sockets that are real or simulated; which, is decided where they are made: by whether the thread has entered a network.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{self, ToSocketAddrs, tcp};

use crate::sim;

/// As [`tokio::net::TcpListener`].
#[derive(Debug)]
pub enum TcpListener {
    Real(net::TcpListener),
    Sim(sim::Listener),
}

/// As [`tokio::net::TcpStream`].
#[derive(Debug)]
pub enum TcpStream {
    Real(net::TcpStream),
    Sim(sim::Stream),
}

/// As [`tcp::OwnedReadHalf`].
#[derive(Debug)]
pub enum OwnedReadHalf {
    Real(tcp::OwnedReadHalf),
    Sim(sim::ReadHalf),
}

/// As [`tcp::OwnedWriteHalf`].
#[derive(Debug)]
pub enum OwnedWriteHalf {
    Real(tcp::OwnedWriteHalf),
    Sim(sim::WriteHalf),
}

impl TcpListener {
    /// As [`net::TcpListener::bind`].
    ///
    /// # Errors
    /// As there.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        match sim::current() {
            Some(host) => host.bind(first(address).await?).map(Self::Sim),
            None => net::TcpListener::bind(address).await.map(Self::Real),
        }
    }

    pub(crate) fn real(&self) -> Option<&net::TcpListener> {
        match self {
            Self::Real(listener) => Some(listener),
            Self::Sim(_) => None,
        }
    }

    /// As [`net::TcpListener::local_addr`].
    ///
    /// # Errors
    /// As there.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Real(listener) => listener.local_addr(),
            Self::Sim(listener) => Ok(listener.local_addr()),
        }
    }

    /// As [`net::TcpListener::accept`]: cancel safe.
    ///
    /// # Errors
    /// As there.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Real(listener) => listener.accept().await.map(|(stream, peer)| (TcpStream::Real(stream), peer)),
            Self::Sim(listener) => {
                let stream = std::future::poll_fn(|cx| listener.poll_accept(cx)).await;
                let peer = stream.peer_addr();
                Ok((TcpStream::Sim(stream), peer))
            }
        }
    }
}

impl TcpStream {
    /// As [`net::TcpStream::connect`].
    ///
    /// # Errors
    /// As there.
    pub async fn connect(address: impl ToSocketAddrs) -> io::Result<Self> {
        match sim::current() {
            Some(host) => host.connect(first(address).await?).await.map(Self::Sim),
            None => net::TcpStream::connect(address).await.map(Self::Real),
        }
    }

    /// As [`net::TcpStream::set_nodelay`].
    ///
    /// # Errors
    /// As there.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.real().map_or(Ok(()), |stream| stream.set_nodelay(nodelay))
    }

    /// As [`net::TcpStream::peer_addr`].
    ///
    /// # Errors
    /// As there.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Real(stream) => stream.peer_addr(),
            Self::Sim(stream) => Ok(stream.peer_addr()),
        }
    }

    /// As [`net::TcpStream::peek`].
    ///
    /// # Errors
    /// As there.
    pub async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Real(stream) => stream.peek(bytes).await,
            Self::Sim(stream) => std::future::poll_fn(|cx| stream.poll_peek(cx, bytes)).await,
        }
    }

    /// As [`net::TcpStream::into_split`].
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        match self {
            Self::Real(stream) => {
                let (reader, writer) = stream.into_split();
                (OwnedReadHalf::Real(reader), OwnedWriteHalf::Real(writer))
            }
            Self::Sim(stream) => {
                let (reader, writer) = stream.into_split();
                (OwnedReadHalf::Sim(reader), OwnedWriteHalf::Sim(writer))
            }
        }
    }

    pub(crate) fn real(&self) -> Option<&net::TcpStream> {
        match self {
            Self::Real(stream) => Some(stream),
            Self::Sim(_) => None,
        }
    }
}

async fn first(address: impl ToSocketAddrs) -> io::Result<SocketAddr> {
    let none = || io::Error::new(io::ErrorKind::InvalidInput, "no address");
    net::lookup_host(address).await?.next().ok_or_else(none)
}

macro_rules! read {
    ($of:ident) => {
        impl AsyncRead for $of {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Real(stream) => Pin::new(stream).poll_read(cx, buf),
                    Self::Sim(stream) => stream.poll_read(cx, buf),
                }
            }
        }
    };
}

macro_rules! write {
    ($of:ident) => {
        impl AsyncWrite for $of {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Real(stream) => Pin::new(stream).poll_write(cx, bytes),
                    Self::Sim(stream) => stream.poll_write(cx, &[IoSlice::new(bytes)]),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Real(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
                    Self::Sim(stream) => stream.poll_write(cx, bytes),
                }
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Real(stream) => Pin::new(stream).poll_flush(cx),
                    Self::Sim(_) => Poll::Ready(Ok(())),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Real(stream) => Pin::new(stream).poll_shutdown(cx),
                    Self::Sim(stream) => {
                        stream.shutdown();
                        Poll::Ready(Ok(()))
                    }
                }
            }
        }
    };
}

read!(TcpStream);
read!(OwnedReadHalf);
write!(TcpStream);
write!(OwnedWriteHalf);
