//! A TCP proxy that misbehaves on order: holds bytes back, delays them, flips bits, cuts connections.
//!
//! The order may change at any time and holds for open and new connections alike. Only bytes towards the server are damaged: that is
//! the way that orders and KV pieces go.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Bytes read at once, and how many such portions may be on their way in one direction.
const CHUNK_BYTES: usize = 16 << 10;
const CHUNKS_MAX: usize = 256;

/// One portion in so many is lost, and arrives when TCP's shortest retransmission timer is over.
const LOST_EVERY: u64 = 100;
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// What a proxy does to the bytes that pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Holds every byte of both directions back, as a network does that drops packets; afterwards they arrive.
    Hold,
    /// Every byte of both directions arrives this much later.
    Delay(Duration),
    /// The same on a link that loses one segment in a hundred: TCP sends it again when its timer is over, and what follows waits.
    Lossy { delay: Duration },
    /// Flips one bit in each so many bytes.
    FlipEvery(u64),
    /// Closes the connection that carries the last of each so many bytes.
    CutEvery(u64),
}

/// Stands between one server and its clients. Dropping it ends all its connections.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    to: Mutex<SocketAddr>,
    fault: watch::Sender<Fault>,
    /// Counts the orders to cut what is open.
    cut: watch::Sender<u64>,
    /// Bytes until the next flip or cut.
    until_damage: Mutex<u64>,
    portions: AtomicU64,
    damaged: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToServer,
    ToClient,
}

impl FaultProxy {
    /// Listens on `listen` (port 0 = any) for the server at `to`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(listen: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            to: Mutex::new(to),
            fault: watch::Sender::new(Fault::None),
            cut: watch::Sender::new(0),
            until_damage: Mutex::new(0),
            portions: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { address, shared, accepting })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on.
    pub fn set(&self, fault: Fault) {
        if let Fault::FlipEvery(bytes) | Fault::CutEvery(bytes) = fault {
            *self.shared.until_damage.lock() = bytes;
        }
        self.shared.fault.send_replace(fault);
    }

    /// Closes every connection that is open.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|orders| *orders += 1);
    }

    /// New connections lead to this server.
    pub fn lead_to(&self, server: SocketAddr) {
        *self.shared.to.lock() = server;
    }

    /// Bits flipped and connections cut by damage so far.
    pub fn damaged(&self) -> u64 {
        self.shared.damaged.load(Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Connections live in the set and end with it.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((client, _)) = accepted {
                let shared = shared.clone();
                connections.spawn(async move {
                    let mut cut = shared.cut.subscribe();
                    tokio::select! {
                        // How a connection ended concerns its two ends, who both see it.
                        _ = connect(client, &shared) => {}
                        _ = cut.changed() => {}
                    }
                });
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(client: TcpStream, shared: &Shared) -> io::Result<()> {
    shared.passable().await;
    let to = *shared.to.lock();
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(
        forward(from_client, to_server, shared, Way::ToServer),
        forward(from_server, to_client, shared, Way::ToClient)
    )?;
    Ok(())
}

async fn forward(from: OwnedReadHalf, to: OwnedWriteHalf, shared: &Shared, way: Way) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    tokio::try_join!(read(from, sender, shared), write(to, receiver, shared, way))?;
    Ok(())
}

/// Notes for each portion when it may arrive.
async fn read(mut from: OwnedReadHalf, to: mpsc::Sender<(Instant, Vec<u8>)>, shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        if to.send((Instant::now() + shared.delay(), bytes.to_vec())).await.is_err() {
            return Ok(());
        }
    }
}

async fn write(
    mut to: OwnedWriteHalf,
    mut from: mpsc::Receiver<(Instant, Vec<u8>)>,
    shared: &Shared,
    way: Way,
) -> io::Result<()> {
    while let Some((due, mut bytes)) = from.recv().await {
        sleep_until(due).await;
        shared.passable().await;
        if way == Way::ToServer {
            shared.damage(&mut bytes)?;
        }
        to.write_all(&bytes).await?;
    }
    to.shutdown().await
}

impl Shared {
    /// Waits while everything is held back.
    async fn passable(&self) {
        // The sender lives as long as we do.
        let _ = self.fault.subscribe().wait_for(|fault| *fault != Fault::Hold).await;
    }

    /// Of the next portion.
    fn delay(&self) -> Duration {
        match *self.fault.borrow() {
            Fault::Delay(delay) => delay,
            Fault::Lossy { delay } if self.portions.fetch_add(1, Relaxed) % LOST_EVERY == LOST_EVERY - 1 => {
                delay + RETRANSMISSION
            }
            Fault::Lossy { delay } => delay,
            _ => Duration::ZERO,
        }
    }

    /// Flips what is due in these bytes; an error when the connection is due.
    fn damage(&self, bytes: &mut [u8]) -> io::Result<()> {
        let fault = *self.fault.borrow();
        let (Fault::FlipEvery(every) | Fault::CutEvery(every)) = fault else { return Ok(()) };
        let mut until = self.until_damage.lock();
        let mut at = *until;
        while let Some(byte) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at)) {
            self.damaged.fetch_add(1, Relaxed);
            if matches!(fault, Fault::CutEvery(_)) {
                *until = every;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            *byte ^= 1 << (at % 8);
            at += every.max(1);
        }
        *until = at - bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy before a server that answers every byte with the same.
    async fn echo() -> (FaultProxy, TcpStream) {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(local).await.unwrap();
        let proxy = FaultProxy::start(local, listener.local_addr().unwrap()).await.unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mut reader, mut writer) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut reader, &mut writer).await });
            }
        });
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        (proxy, client)
    }

    async fn ask(client: &mut TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
        client.write_all(bytes).await?;
        let mut answer = vec![0; bytes.len()];
        client.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn held_bytes_arrive_when_the_partition_heals() {
        let (proxy, mut client) = echo().await;
        assert_eq!(ask(&mut client, b"before").await.unwrap(), b"before");
        proxy.set(Fault::Hold);
        let held = tokio::time::timeout(Duration::from_millis(50), ask(&mut client, b"during")).await;
        assert!(held.is_err(), "nothing passes");
        proxy.set(Fault::None);
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"during");
    }

    #[tokio::test]
    async fn bits_are_flipped_at_the_given_distance_and_counted() {
        let (proxy, mut client) = echo().await;
        proxy.set(Fault::FlipEvery(4));
        let mut found = ask(&mut client, &[0; 6]).await.unwrap();
        found.extend(ask(&mut client, &[0; 6]).await.unwrap());
        let flipped: Vec<_> = found.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect();
        assert_eq!((flipped.as_slice(), proxy.damaged()), (&[4, 8][..], 2));
    }

    #[tokio::test]
    async fn a_connection_is_cut_at_the_given_byte_and_on_order() {
        let (proxy, mut client) = echo().await;
        proxy.set(Fault::CutEvery(8));
        assert_eq!(ask(&mut client, b"12345678").await.unwrap(), b"12345678");
        assert!(ask(&mut client, b"9").await.is_err());
        proxy.set(Fault::None);
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(ask(&mut client, b"again").await.is_ok());
        proxy.cut();
        assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0, "cut on order");
    }
}
