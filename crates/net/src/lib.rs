//! The TCP sockets that every role uses: the operating system's.
//!
//! With the feature `sim` the same names also stand for the sockets of a network inside this process (`sim`), on threads that have
//! entered one; so a whole cluster runs its production code under simulated time and seeded faults. The product is built without.

#[cfg(feature = "sim")]
mod either;
#[cfg(feature = "sim")]
pub mod sim;

use std::io;
use std::time::Duration;

#[cfg(feature = "sim")]
pub use either::{OwnedReadHalf, OwnedWriteHalf, TcpListener, TcpStream};
#[cfg(not(feature = "sim"))]
pub use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
#[cfg(not(feature = "sim"))]
pub use tokio::net::{TcpListener, TcpStream};

/// When an idle peer whose machine is gone is noticed: after `idle`, then `count` unanswered probes at `interval`.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    pub idle: Duration,
    pub interval: Duration,
    pub count: u32,
}

/// Bounds what the kernel keeps of bytes that the peer has not taken.
///
/// # Errors
/// What the operating system says against it.
pub fn send_buffer(stream: &TcpStream, bytes: usize) -> io::Result<()> {
    #[cfg(feature = "sim")]
    let Some(stream) = stream.real() else { return Ok(()) };
    Ok(rustix::net::sockopt::set_socket_send_buffer_size(stream, bytes)?)
}

/// Lets so many connections wait to be accepted: a burst of clients. Of the 128 that is usual the kernel turns the rest away for a second,
/// or forgets them.
///
/// # Errors
/// What the operating system says against it.
pub fn backlog(listener: &TcpListener, connections: usize) -> io::Result<()> {
    #[cfg(feature = "sim")]
    let Some(listener) = listener.real() else { return Ok(()) };
    Ok(rustix::net::listen(listener, i32::try_from(connections).unwrap_or(i32::MAX))?)
}

/// Sets TCP keep-alive.
///
/// # Errors
/// What the operating system says against it.
pub fn keep_alive(stream: &TcpStream, wanted: KeepAlive) -> io::Result<()> {
    use rustix::net::sockopt;
    #[cfg(feature = "sim")]
    let Some(stream) = stream.real() else { return Ok(()) };
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, wanted.idle)?;
    sockopt::set_tcp_keepintvl(stream, wanted.interval)?;
    sockopt::set_tcp_keepcnt(stream, wanted.count)?;
    Ok(())
}
