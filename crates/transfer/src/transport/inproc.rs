//! Both ends in one process: frames pass through a channel, payloads change owner.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use proto::kv::kv_frame::Body;
use proto::kv::{KvHello, Piece};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{FrameSink, FrameSource, Link};
use crate::TransportKind;
use crate::receiver::Registry;
use crate::serve::{REPLIES_MAX, serve};

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
pub(crate) fn connect(name: &str) -> Result<Link, String> {
    let found = RECEIVERS.lock().get(name).cloned();
    let (registry, stop) = found.ok_or("it has stopped listening")?;
    let registry = registry.upgrade().ok_or("it has stopped")?;
    let (frame_sender, frames) = mpsc::channel(FRAMES_MAX);
    let (reply_sender, replies) = mpsc::channel(REPLIES_MAX);
    let source = Source { frames, payload: Bytes::new() };
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
}

impl FrameSource for Source {
    fn kind(&self) -> TransportKind {
        TransportKind::Inproc
    }

    fn share(&mut self, hello: &KvHello) -> Result<(), String> {
        super::shm::not_shared(hello)
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Body>, String>> {
        async {
            let Some((frame, payload)) = self.frames.recv().await else { return Ok(None) };
            self.payload = payload;
            Ok(Some(frame))
        }
        .boxed()
    }

    fn payload<'a>(&'a mut self, _: &'a Piece) -> BoxFuture<'a, Result<&'a [u8], String>> {
        futures::future::ready(Ok(&self.payload[..])).boxed()
    }

    fn skip<'a>(&'a mut self, _: &'a Piece) -> BoxFuture<'a, Result<(), String>> {
        self.payload = Bytes::new();
        futures::future::ready(Ok(())).boxed()
    }
}
