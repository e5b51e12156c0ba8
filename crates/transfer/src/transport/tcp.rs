//! Our own framing over TCP (see `proto/kv.proto`), and the door that serves shared memory as well.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use edge::{PeerReader, PeerStream, PeerWriter, Port};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use kv::{KvSource, KvStore};
use net::{KeepAlive, TcpListener, TcpStream};
use prost::Message;
use proto::kv::kv_frame::Body;
use proto::kv::{KvFrame, KvHello, KvReply, Piece};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use types::Role;

use super::{FrameSink, FrameSource, Link, Payload, shm};
use crate::receiver::Registry;
use crate::serve::{REPLIES_MAX, serve};
use crate::{TransferConfig, TransferError, TransportKind, piece};

/// For a connection to be made, and for the last replies to a connection that we end.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects to a receiver.
pub(crate) async fn connect(config: &TransferConfig, address: &str) -> Result<Link, String> {
    let (reader, writer) = dial(config, address, Port::Kv).await?.into_split();
    Ok(Link { sink: Box::new(Sink::new(writer)), replies: replies(reader, config.bounds.message_bytes), offer: None })
}

/// A new connection to a receiver, which has proven that it is one of ours.
pub(crate) async fn dial(config: &TransferConfig, address: &str, port: Port) -> Result<PeerStream, String> {
    let stream = open(address).await?;
    let proven = config.credentials.connect(stream, Role::Decode, port, config.instance.as_str()).await;
    proven.map_err(|error| error.to_string())
}

/// Connects, and says nothing yet.
async fn open(address: &str) -> Result<TcpStream, String> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| format!("no answer in {} ms", CONNECT_TIMEOUT.as_millis()))?;
    let stream = stream.map_err(|error| error.to_string())?;
    tune(&stream);
    Ok(stream)
}

/// Sends at once, and notices within half a minute that an idle peer's machine is gone.
fn tune(stream: &TcpStream) {
    let patience = KeepAlive { idle: Duration::from_secs(10), interval: Duration::from_secs(5), count: 3 };
    let tuned = stream.set_nodelay(true).and_then(|()| net::keep_alive(stream, patience));
    if let Err(error) = tuned {
        tracing::debug!(%error, "tcp options not set");
    }
}

/// Writes frames, payload behind its header without copying it.
pub(crate) struct Sink {
    writer: PeerWriter,
    head: Vec<u8>,
}

impl Sink {
    pub(crate) fn new(writer: PeerWriter) -> Self {
        Self { writer, head: Vec::new() }
    }
}

impl FrameSink for Sink {
    fn send<'a>(&'a mut self, frame: Body, payload: &'a mut Vec<u8>) -> BoxFuture<'a, Result<(), String>> {
        async move {
            self.head.clear();
            encode(&KvFrame { body: Some(frame), payload: Default::default() }, &mut self.head);
            let mut bytes = Buf::chain(self.head.as_slice(), payload.as_slice());
            self.writer.write_all_buf(&mut bytes).await.map_err(|error| error.to_string())?;
            self.writer.flush().await.map_err(|error| error.to_string())
        }
        .boxed()
    }
}

/// Appends length and message.
pub(crate) fn encode(message: &impl Message, out: &mut Vec<u8>) {
    out.extend_from_slice(&(message.encoded_len() as u32).to_le_bytes());
    out.extend_from_slice(&message.encode_to_vec());
}

/// Reads one message of at most `bytes_max`; None at a clean end.
async fn decode<M: Message + Default>(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<Option<M>, String> {
    let mut length = [0; 4];
    match reader.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.to_string()),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > bytes_max {
        return Err(format!("a message of {length} bytes, at most {bytes_max} are read"));
    }
    buffer.resize(length, 0);
    reader.read_exact(buffer).await.map_err(|error| error.to_string())?;
    M::decode(&buffer[..]).map(Some).map_err(|error| error.to_string())
}

/// The replies that come back on a connection, until it ends.
pub(crate) fn replies(reader: PeerReader, bytes_max: usize) -> BoxStream<'static, Result<KvReply, String>> {
    let state = (BufReader::new(reader), Vec::new());
    futures::stream::unfold(state, move |(mut reader, mut buffer)| async move {
        let reply = decode::<KvReply>(&mut reader, &mut buffer, bytes_max).await.transpose()?;
        Some((reply, (reader, buffer)))
    })
    .boxed()
}

/// Binds the door and serves its connections until `stop`; returns the port.
pub(crate) async fn listen(
    registry: &Arc<Registry>,
    bind: SocketAddr,
    stop: CancellationToken,
) -> Result<u16, TransferError> {
    let failed = |error: std::io::Error| TransferError::Listen { address: bind.to_string(), reason: error.to_string() };
    let listener = TcpListener::bind(bind).await.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    let registry = registry.clone();
    tokio::spawn(async move { stop.run_until_cancelled(accept(registry, listener, stop.clone())).await });
    Ok(port)
}

async fn accept(registry: Arc<Registry>, listener: TcpListener, stop: CancellationToken) {
    let connections_max = registry.config.bounds.connections;
    let places = Arc::new(Semaphore::new(connections_max));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: wait for some to come back.
                tracing::warn!(%error, "kv connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%peer, limit = connections_max, "kv connection closed: too many");
            continue;
        };
        let (registry, stop) = (registry.clone(), stop.clone());
        tokio::spawn(async move {
            stop.run_until_cancelled(serve_stream(registry, stream, peer)).await;
            drop(place);
        });
    }
}

async fn serve_stream(registry: Arc<Registry>, stream: TcpStream, peer: SocketAddr) {
    tune(&stream);
    let Some(stream) = registry.admit(stream, peer).await else { return };
    let (reader, writer) = stream.into_split();
    let (sender, receiver) = mpsc::channel(REPLIES_MAX);
    let source = Source::new(reader, registry.config.bounds.message_bytes);
    let served = CancellationToken::new();
    let writing = write_replies(writer, receiver, served.clone());
    tokio::pin!(writing);
    tokio::select! {
        biased;
        () = serve(registry, Box::new(source), sender, peer.to_string()) => {}
        () = &mut writing => return,
    }
    // The last replies still go out, a refusal for instance.
    served.cancel();
    let _ = timeout(CONNECT_TIMEOUT, writing).await;
}

/// Carries replies until the connection breaks, or until `served`, when it sends what is waiting and ends.
async fn write_replies(mut writer: PeerWriter, mut replies: mpsc::Receiver<KvReply>, served: CancellationToken) {
    let (mut batch, mut bytes) = (Vec::new(), Vec::new());
    loop {
        tokio::select! {
            biased;
            count = replies.recv_many(&mut batch, REPLIES_MAX) => if count == 0 { return },
            () = served.cancelled() => replies.close(),
        }
        bytes.clear();
        batch.drain(..).for_each(|reply| encode(&reply, &mut bytes));
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

/// Reads frames, and payloads from the stream or from the memory that the peer shares.
pub(crate) struct Source<R> {
    reader: BufReader<R>,
    message: Vec<u8>,
    message_bytes_max: usize,
    /// The last payload; grows to the largest piece admitted.
    payload: Vec<u8>,
    /// P's, if it lets us.
    memory: Option<Box<dyn KvSource>>,
}

impl<R: AsyncRead + Unpin> Source<R> {
    pub(crate) fn new(reader: R, message_bytes_max: usize) -> Self {
        let reader = BufReader::new(reader);
        Self { reader, message: Vec::new(), message_bytes_max, payload: Vec::new(), memory: None }
    }
}

impl<R: AsyncRead + Unpin + Send> FrameSource for Source<R> {
    fn kind(&self) -> TransportKind {
        if self.memory.is_some() { TransportKind::Shm } else { TransportKind::Tcp }
    }

    fn open<'a>(&'a mut self, hello: &'a KvHello, store: &'a dyn KvStore) -> BoxFuture<'a, Result<(), String>> {
        async move {
            if let Some(shared) = &hello.shared {
                self.memory = Some(shm::open(hello, shared, store).await?);
            }
            Ok(())
        }
        .boxed()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Body>, String>> {
        async {
            match decode::<KvFrame>(&mut self.reader, &mut self.message, self.message_bytes_max).await? {
                Some(KvFrame { body: Some(body), .. }) => Ok(Some(body)),
                Some(_) => Err("a frame of a kind that we do not know".to_owned()),
                None => Ok(None),
            }
        }
        .boxed()
    }

    fn payload<'a>(&'a mut self, piece: &'a Piece) -> BoxFuture<'a, Result<Payload<'a>, String>> {
        async move {
            if !piece.shm_blocks.is_empty() {
                return Payload::fetched(piece, self.memory.as_deref());
            }
            self.payload.resize(piece.payload_len as usize, 0);
            self.reader.read_exact(&mut self.payload).await.map_err(|error| error.to_string())?;
            Ok(Payload::Sent(&self.payload))
        }
        .boxed()
    }

    fn skip<'a>(&'a mut self, piece: &'a Piece) -> BoxFuture<'a, Result<(), String>> {
        async move {
            if !piece.shm_blocks.is_empty() {
                return Ok(());
            }
            if piece.payload_len > piece::PAYLOAD_BYTES_MAX {
                return Err(format!("a payload of {} bytes, at most {}", piece.payload_len, piece::PAYLOAD_BYTES_MAX));
            }
            let mut payload = (&mut self.reader).take(piece.payload_len);
            let skipped = tokio::io::copy_buf(&mut payload, &mut tokio::io::sink()).await;
            skipped.map(drop).map_err(|error| error.to_string())
        }
        .boxed()
    }
}
