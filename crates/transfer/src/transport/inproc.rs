//! Both ends in one process: frames pass through a channel, and D copies out of P's memory. Memory that cannot be shared is read by P,
//! and the payload changes owner.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kv::{KvSource, KvStore, SharedKv};
use parking_lot::Mutex;
use proto::kv::kv_frame::Body;
use proto::kv::{KvHello, Piece};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{FrameSink, FrameSource, Link, Payload};
use crate::receiver::Registry;
use crate::serve::{REPLIES_MAX, serve};
use crate::{TransportKind, handshake};

/// Frames between the two ends; the credit bounds their bytes.
const FRAMES_MAX: usize = 4;

/// Receivers of this process that listen, by name.
static RECEIVERS: Mutex<BTreeMap<String, (Weak<Registry>, CancellationToken)>> = Mutex::new(BTreeMap::new());

/// A receiver's entry; dropping it takes the name away.
pub(crate) struct Registered {
    name: String,
}

/// Makes a receiver reachable under a name that no other process has.
pub(crate) fn register(registry: &Arc<Registry>, stop: CancellationToken) -> Registered {
    let name = format!("{}-{:016x}", std::process::id(), rand::random::<u64>());
    RECEIVERS.lock().insert(name.clone(), (Arc::downgrade(registry), stop));
    Registered { name }
}

impl Registered {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        RECEIVERS.lock().remove(&self.name);
    }
}

/// Whether the name is one of this process.
pub(crate) fn is_here(name: &str) -> bool {
    RECEIVERS.lock().contains_key(name)
}

/// Connects to a receiver of this process.
pub(crate) fn connect(name: &str, store: &dyn KvStore, hello: &mut KvHello) -> Result<Link, String> {
    let found = RECEIVERS.lock().get(name).cloned();
    let (registry, stop) = found.ok_or("it has stopped listening")?;
    let registry = registry.upgrade().ok_or("it has stopped")?;
    let (frame_sender, frames) = mpsc::channel(FRAMES_MAX);
    let (reply_sender, replies) = mpsc::channel(REPLIES_MAX);
    let offered = store.shareable().map(|memory| memory.share());
    hello.shared = offered.as_ref().map(|memory| handshake::describe(memory, String::new()));
    let source = Source { frames, payload: Bytes::new(), offered, memory: None };
    let address = name.to_owned();
    tokio::spawn(async move {
        let serving = serve(registry, Box::new(source), reply_sender, address);
        stop.run_until_cancelled(serving).await;
    });
    let replies = ReceiverStream::new(replies).map(Ok).boxed();
    Ok(Link { sink: Box::new(Sink { frames: frame_sender }), replies, offer: None })
}

struct Sink {
    frames: mpsc::Sender<(Body, Bytes)>,
}

impl FrameSink for Sink {
    fn send<'a>(&'a mut self, frame: Body, payload: &'a mut Vec<u8>) -> BoxFuture<'a, Result<(), String>> {
        let payload = Bytes::from(std::mem::take(payload));
        let sent = self.frames.send((frame, payload));
        sent.map(|sent| sent.map_err(|_| "the receiver has stopped".to_owned())).boxed()
    }
}

struct Source {
    frames: mpsc::Receiver<(Body, Bytes)>,
    /// Of the last frame.
    payload: Bytes,
    /// P's memory, then what D made of it.
    offered: Option<SharedKv>,
    memory: Option<Box<dyn KvSource>>,
}

impl FrameSource for Source {
    fn kind(&self) -> TransportKind {
        TransportKind::Inproc
    }

    fn open<'a>(&'a mut self, hello: &'a KvHello, store: &'a dyn KvStore) -> BoxFuture<'a, Result<(), String>> {
        let mut open = || -> Result<(), String> {
            let (Some(offered), Some(_)) = (&self.offered, &hello.shared) else { return Ok(()) };
            let ours = store.shareable().ok_or("our own memory cannot be shared")?;
            self.memory = Some(ours.open(offered).map_err(|error| error.to_string())?);
            Ok(())
        };
        futures::future::ready(open()).boxed()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Body>, String>> {
        async {
            let Some((frame, payload)) = self.frames.recv().await else { return Ok(None) };
            self.payload = payload;
            Ok(Some(frame))
        }
        .boxed()
    }

    fn payload<'a>(&'a mut self, piece: &'a Piece) -> BoxFuture<'a, Result<Payload<'a>, String>> {
        let payload = match piece.shm_blocks.is_empty() {
            true => Ok(Payload::Sent(&self.payload)),
            false => Payload::fetched(piece, self.memory.as_deref()),
        };
        futures::future::ready(payload).boxed()
    }

    fn skip<'a>(&'a mut self, _: &'a Piece) -> BoxFuture<'a, Result<(), String>> {
        self.payload = Bytes::new();
        futures::future::ready(Ok(())).boxed()
    }
}
