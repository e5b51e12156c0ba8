//! Ways to carry frames from P to D and replies back, one file each.
//!
//! P sees a [`Link`]: a sink of frames and a stream of replies. D sees a [`FrameSource`] and gives its replies to a channel.
//! Nothing here knows landings, credits or retries.

pub(crate) mod choose;
pub(crate) mod grpc;
pub(crate) mod inproc;
pub(crate) mod shm;
pub(crate) mod tcp;

use std::sync::OnceLock;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kv::{BlockId, KvSource, KvStore};
use proto::kv::kv_frame::Body;
use proto::kv::{KvHello, KvReply, Piece};
use tokio_util::sync::DropGuard;

/// P's end of a connection.
pub(crate) struct Link {
    pub(crate) sink: Box<dyn FrameSink>,
    pub(crate) replies: BoxStream<'static, Result<KvReply, String>>,
    /// Hands the memory's file over until this is dropped.
    pub(crate) offer: Option<DropGuard>,
}

/// Sends frames. A failed send ends the connection.
pub(crate) trait FrameSink: Send {
    /// Sends one frame; `payload` is empty unless it is a piece. The buffer comes back in any state, for reuse.
    fn send<'a>(&'a mut self, frame: Body, payload: &'a mut Vec<u8>) -> BoxFuture<'a, Result<(), String>>;
}

/// A piece's bytes.
pub(crate) enum Payload<'a> {
    Sent(&'a [u8]),
    /// Still in P's memory, in these blocks.
    Fetched {
        memory: &'a dyn KvSource,
        blocks: Vec<BlockId>,
    },
}

impl<'a> Payload<'a> {
    /// Of a piece that names blocks.
    fn fetched(piece: &Piece, memory: Option<&'a dyn KvSource>) -> Result<Self, String> {
        let memory = memory.ok_or("a piece in memory that was never offered")?;
        Ok(Payload::Fetched { memory, blocks: piece.shm_blocks.iter().copied().map(BlockId).collect() })
    }
}

/// For transports that cannot hand memory over: an offer is refused.
fn nothing_offered(hello: &KvHello) -> Result<(), String> {
    if hello.shared.is_none() { Ok(()) } else { Err("this connection shares no memory".to_owned()) }
}

/// Receives frames. Its errors are reasons to end the connection.
pub(crate) trait FrameSource: Send {
    /// How pieces are counted.
    fn kind(&self) -> crate::TransportKind;

    /// Opens the memory that a hello offers, to copy from it into `store`, or says why not.
    fn open<'a>(&'a mut self, hello: &'a KvHello, store: &'a dyn KvStore) -> BoxFuture<'a, Result<(), String>>;

    /// The next frame; None when the peer has closed. The payload of a piece is fetched or skipped before this is called again.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Body>, String>>;

    /// The payload of the piece that `next` gave; its length was admitted.
    fn payload<'a>(&'a mut self, piece: &'a Piece) -> BoxFuture<'a, Result<Payload<'a>, String>>;

    /// Passes over the payload of a refused piece without keeping it; its length is not to be trusted.
    fn skip<'a>(&'a mut self, piece: &'a Piece) -> BoxFuture<'a, Result<(), String>>;
}

/// Names the running kernel: processes that read the same one may share memory (the probe decides). Empty where unknown.
pub(crate) fn host_id() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_owned()
    })
}
