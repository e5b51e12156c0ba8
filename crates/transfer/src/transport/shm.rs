//! Shared memory: TCP carries the frames, and D copies each piece straight out of P's KV memory into its own.
//!
//! P hands the memory's file over once, by a Unix socket whose name only the hello tells, to a process of its own user. The file can
//! neither shrink nor be written to through the hand-over, so D maps it without fear. A piece names P's blocks, which stay held until D
//! has answered; the checksum that D computes while it copies tells whether they did.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;

use kv::{KvSource, KvStore};
use proto::kv::{KvHello, KvShared};
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio_util::sync::CancellationToken;

use super::{Link, tcp};
use crate::{TransferConfig, handshake};

/// What the sockets are called, before a random number.
const NAME_PREFIX: &str = "pdserve-kv-";

/// Connects to a receiver and adds the offer of our memory to `hello`.
pub(crate) async fn connect(
    config: &TransferConfig,
    address: &str,
    store: &dyn KvStore,
    hello: &mut KvHello,
) -> Result<Link, String> {
    let memory = store.shareable().ok_or("our memory cannot be shared")?.share();
    let link = tcp::connect(config, address).await?;
    let name = format!("{NAME_PREFIX}{:032x}", rand::random::<u128>());
    let listener = listen(&name).map_err(|error| format!("no socket to hand our memory over: {error}"))?;
    hello.shared = Some(handshake::describe(&memory, name));
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        if let Some(Err(error)) = stopped.run_until_cancelled(hand_over(listener, memory.file)).await {
            tracing::debug!(%error, "kv memory not handed over");
        }
    });
    Ok(Link { offer: Some(stop.drop_guard()), ..link })
}

/// Opens the memory that a hello offers.
pub(crate) async fn open(hello: &KvHello, shared: &KvShared, store: &dyn KvStore) -> Result<Box<dyn KvSource>, String> {
    if !shared.socket.starts_with(NAME_PREFIX) {
        return Err("not a name that a sender uses".to_owned());
    }
    let ours = store.shareable().ok_or("our own memory cannot be shared")?;
    let file = fetch(&shared.socket).await.map_err(|error| format!("it was not handed over: {error}"))?;
    let theirs = handshake::offered(hello, shared, Arc::new(file))?;
    ours.open(&theirs).map_err(|error| error.to_string())
}

fn listen(name: &str) -> io::Result<tokio::net::UnixListener> {
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

/// Gives the file to the first process of our user that asks.
async fn hand_over(listener: tokio::net::UnixListener, file: Arc<File>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        if is_ours(&stream)? {
            return stream.async_io(Interest::WRITABLE, || send_file(&stream, &file)).await;
        }
    }
}

async fn fetch(name: &str) -> io::Result<File> {
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    if !is_ours(&stream)? {
        return Err(io::Error::other("offered by another user"));
    }
    stream.async_io(Interest::READABLE, || receive_file(&stream)).await
}

fn is_ours(stream: &tokio::net::UnixStream) -> io::Result<bool> {
    Ok(stream.peer_cred()?.uid() == rustix::process::geteuid().as_raw())
}

fn send_file(stream: &tokio::net::UnixStream, file: &File) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&files));
    rustix::net::sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The file that comes with the next byte; whatever else comes is closed.
pub(crate) fn receive_file(stream: impl AsFd) -> io::Result<File> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    file.map(File::from).ok_or_else(|| io::Error::other("no file came"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[tokio::test]
    async fn a_file_changes_hands() {
        let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap());
        file.write_all_at(b"keys and values", 0).unwrap();
        let name = format!("{NAME_PREFIX}{:032x}", rand::random::<u128>());
        let listener = listen(&name).unwrap();
        let (handed, fetched) = tokio::join!(hand_over(listener, Arc::new(file)), fetch(&name));
        handed.unwrap();
        let mut bytes = [0; 15];
        fetched.unwrap().read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"keys and values");
        assert!(fetch(&name).await.is_err(), "nobody listens there any more");
    }
}
