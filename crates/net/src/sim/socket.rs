//! What code holds of the network: listeners, dials and both halves of a stream. Dropping one closes it.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::connection::Segment;
use super::{Dial, Network};

/// An open port.
pub struct Listener {
    network: Network,
    address: SocketAddr,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Stream {
    reader: ReadHalf,
    writer: WriteHalf,
}

#[derive(Debug)]
pub struct ReadHalf(Arc<Socket>);

/// Dropping it ends what the peer reads.
#[derive(Debug)]
pub struct WriteHalf(Arc<Socket>);

/// Closed when both halves are gone.
struct Socket {
    network: Network,
    connection: u64,
    end: usize,
}

impl Listener {
    pub(super) fn new(network: Network, address: SocketAddr) -> Self {
        Self { network, address }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Stream> {
        let mut state = self.network.0.lock();
        // The host may have lost its power.
        let Some(door) = state.doors.get_mut(&self.address) else { return Poll::Pending };
        match door.backlog.pop_front() {
            Some(connection) => Poll::Ready(Stream::new(&self.network, connection, 1)),
            None => {
                door.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let door = self.network.0.lock().doors.remove(&self.address);
        for connection in door.into_iter().flat_map(|door| door.backlog) {
            drop(Stream::new(&self.network, connection, 1));
        }
    }
}

/// A connection that is being made; see [`Host::connect`](super::Host::connect).
pub(super) struct Dialing {
    network: Network,
    number: u64,
}

impl Dialing {
    pub(super) fn start(network: &Network, from: IpAddr, to: SocketAddr) -> Self {
        let mut state = network.0.lock();
        let (number, from) = (state.number(), SocketAddr::new(from, state.free_port()));
        let due = state.arrival(from.ip(), to.ip(), [number, super::DIALS, 0]);
        state.dials.insert(number, Dial { from, to, due, answer: None, waker: None });
        Self { network: network.clone(), number }
    }
}

impl Future for Dialing {
    type Output = io::Result<Stream>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.network.0.lock();
        let now = state.now;
        let Some(dial) = state.dials.get_mut(&self.number) else { return Poll::Pending };
        match dial.answer {
            Some(answer) if dial.due <= now => {
                state.dials.remove(&self.number);
                Poll::Ready(answer.map(|it| Stream::new(&self.network, it, 0)).map_err(Into::into))
            }
            _ => {
                dial.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        let dial = self.network.0.lock().dials.remove(&self.number);
        if let Some(Ok(connection)) = dial.and_then(|dial| dial.answer) {
            drop(Stream::new(&self.network, connection, 0));
        }
    }
}

impl Stream {
    fn new(network: &Network, connection: u64, end: usize) -> Self {
        let socket = Arc::new(Socket { network: network.clone(), connection, end });
        Self { reader: ReadHalf(socket.clone()), writer: WriteHalf(socket) }
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        let socket = &self.reader.0;
        let state = socket.network.0.lock();
        // A connection of which one end is held is there.
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        state.connections.get(&socket.connection).map_or(unknown, |it| it.address(1 - socket.end))
    }

    pub(crate) fn poll_peek(&self, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let Socket { network, connection, end } = &*self.reader.0;
        match network.0.lock().connections.get_mut(connection) {
            Some(connection) => connection.poll_peek(*end, cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }

    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.reader.poll_read(cx, buf)
    }

    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.writer.poll_write(cx, bytes)
    }

    pub(crate) fn shutdown(&mut self) {
        self.writer.shutdown();
    }

    pub(crate) fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.reader, self.writer)
    }
}

impl ReadHalf {
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Socket { network, connection, end } = &*self.0;
        match network.0.lock().connections.get_mut(connection) {
            Some(connection) => connection.poll_read(*end, cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl WriteHalf {
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let Socket { network, connection: number, end } = &*self.0;
        let mut state = network.0.lock();
        let Some(connection) = state.connections.get_mut(number) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        connection.poll_write(*end, cx, bytes).map_ok(|taken| {
            let count = taken.len();
            state.send(*number, 1 - end, Segment::Bytes(taken));
            count
        })
    }

    pub(crate) fn shutdown(&mut self) {
        let Socket { network, connection: number, end } = &*self.0;
        let mut state = network.0.lock();
        if state.connections.get_mut(number).is_some_and(|connection| connection.shut(*end)) {
            state.send(*number, 1 - end, Segment::Fin);
        }
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut state = self.network.0.lock();
        let told = state.connections.get_mut(&self.connection).and_then(|connection| connection.close(self.end));
        if let Some(told) = told {
            state.send(self.connection, 1 - self.end, told);
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "listener at {}", self.address)
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "end {} of connection {}", self.end, self.connection)
    }
}
