//! The machine's limit for open streams: a thread that does nothing but send as many bytes as an event has, on connection after
//! connection, each when its reader has got the last.
//!
//! ```text
//! thread --event--> readers (tasks) --their numbers, over one connection--> thread
//! ```

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, ensure};
use rustix::thread::gettid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;

use super::process::LOOPBACK;
use super::server::{Processor, thread_processor};

/// Of a token's event, chunk framing included.
const EVENT_BYTES: usize = 223;
/// Numbers that are read at once.
const NUMBERS: usize = 1024;
const NUMBER_BYTES: usize = size_of::<u32>();

/// The thread and its readers; dropping it ends both.
pub(super) struct Sockets {
    /// Events that readers got.
    received: Arc<AtomicU64>,
    thread: i32,
    /// Dropping them closes the connections, which ends the thread.
    _readers: JoinSet<anyhow::Result<()>>,
    _sending: JoinHandle<()>,
}

impl Sockets {
    /// Opens so many streams and sends the first event on each.
    pub(super) async fn open(streams: usize) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((LOOPBACK, 0)).context("no free port")?;
        let address = listener.local_addr()?;
        let (told, thread) = std::sync::mpsc::channel();
        let sending = Builder::new().name("sockets".to_owned()).spawn(move || {
            told.send(gettid().as_raw_nonzero().get()).ok();
            // It ends with its readers, in the middle of whatever it does.
            send(&listener, streams).ok();
        })?;
        let received = Arc::new(AtomicU64::new(0));
        // Of every stream one number is under way.
        let (got, numbers) = channel(streams.max(1));
        let mut readers = JoinSet::new();
        readers.spawn(ask(tokio::net::TcpStream::connect(address).await?, numbers));
        for number in 0..streams as u32 {
            readers.spawn(read(connect(address, number).await?, number, got.clone(), received.clone()));
            got.send(number).await?;
        }
        Ok(Self { received, thread: thread.recv()?, _readers: readers, _sending: sending })
    }

    /// Events that arrived so far, and what sending took.
    pub(super) fn look(&self) -> anyhow::Result<(u64, Processor)> {
        Ok((self.received.load(Ordering::Relaxed), thread_processor(self.thread)?))
    }
}

/// The thread: accepts the connection of numbers, then the streams; then an event for every number that is asked for.
fn send(listener: &TcpListener, streams: usize) -> std::io::Result<()> {
    let (mut asked, _) = listener.accept()?;
    let mut sockets: Vec<Option<TcpStream>> = (0..streams).map(|_| None).collect();
    for _ in 0..streams {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        let mut number = [0; NUMBER_BYTES];
        socket.read_exact(&mut number)?;
        if let Some(place) = sockets.get_mut(u32::from_le_bytes(number) as usize) {
            *place = Some(socket);
        }
    }
    let (mut numbers, mut have) = ([0; NUMBERS * NUMBER_BYTES], 0);
    loop {
        match asked.read(&mut numbers[have..])? {
            0 => return Ok(()),
            read => have += read,
        }
        let (whole, _) = numbers[..have].as_chunks::<NUMBER_BYTES>();
        for number in whole {
            if let Some(Some(socket)) = sockets.get_mut(u32::from_le_bytes(*number) as usize) {
                socket.write_all(&[b'.'; EVENT_BYTES])?;
            }
        }
        let used = whole.len() * NUMBER_BYTES;
        numbers.copy_within(used..have, 0);
        have -= used;
    }
}

async fn connect(address: SocketAddr, number: u32) -> anyhow::Result<tokio::net::TcpStream> {
    let mut socket = tokio::net::TcpStream::connect(address).await?;
    socket.write_all(&number.to_le_bytes()).await?;
    Ok(socket)
}

/// Passes numbers on, all that there are at once.
async fn ask(mut socket: tokio::net::TcpStream, mut numbers: Receiver<u32>) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let mut batch = Vec::new();
    while numbers.recv_many(&mut batch, NUMBERS).await > 0 {
        let bytes: Vec<u8> = batch.drain(..).flat_map(u32::to_le_bytes).collect();
        socket.write_all(&bytes).await?;
    }
    Ok(())
}

/// Reads event after event and asks for the next.
async fn read(
    mut socket: tokio::net::TcpStream,
    number: u32,
    got: Sender<u32>,
    received: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let (mut event, mut have) = ([0; EVENT_BYTES], 0);
    loop {
        let read = socket.read(&mut event[have..]).await?;
        ensure!(read > 0, "the stream ended");
        have += read;
        if have == EVENT_BYTES {
            have = 0;
            received.fetch_add(1, Ordering::Relaxed);
            got.send(number).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn every_stream_goes_on_and_on() {
        let sockets = Sockets::open(3).await.unwrap();
        let until = tokio::time::Instant::now() + Duration::from_secs(20);
        while sockets.look().unwrap().0 < 30 {
            assert!(tokio::time::Instant::now() < until, "no thirty events");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
