//! A prefill and a decode side in one process, connected by whatever transport a test names.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv::{
    BlockId, BlockPool, BlockRef, KvDtype, KvError, KvLayout, KvSource, KvSpan, KvStore, Owner, Phase, ShareableKv,
    SharedKv,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use types::RequestKey;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    KvReceiver, KvSender, Landing, LandingRequest, LandingStats, Listening, Outgoing, TransferConfig, TransferError,
    TransferStats, TransportKind,
};

pub(super) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Small enough that every byte is compared: 64 bytes per token, head and layer for each of K and V.
pub(super) fn layout(block_size: u32) -> KvLayout {
    KvLayout { layers: 3, kv_heads: 4, head_dim: 16, dtype: KvDtype::F32, block_size, blocks: 128 }
}

/// KV memory as `[layer][block][K|V][slot][head][dim]`, in a file that can be handed over.
pub(super) struct VecStore {
    layout: KvLayout,
    file: Arc<File>,
}

impl VecStore {
    pub(super) fn new(layout: KvLayout) -> Arc<Self> {
        let bytes = layout.block_bytes() * layout.blocks as usize;
        let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(bytes as u64).unwrap();
        Arc::new(Self { layout, file: Arc::new(file) })
    }

    /// (offset in the store, offset in the canonical bytes, length) of the stretches that correspond.
    fn places(&self, span: &KvSpan, blocks: &[BlockId]) -> Vec<(usize, usize, usize)> {
        let layout = &self.layout;
        let head = layout.dtype.head_bytes(layout.head_dim as usize);
        let (row, heads) = (layout.kv_heads as usize * head, span.heads.len() * head);
        let half = span.payload_bytes(layout) / 2;
        let mut places = Vec::new();
        for run in span.runs(layout.block_size) {
            let block = span.layer as usize * layout.blocks as usize + blocks[run.block].0 as usize;
            for part in 0..2 {
                let slot = (block * 2 + part) * layout.block_size as usize + run.slots.start as usize;
                let (from, to) = (slot * row + span.heads.start as usize * head, part * half + run.offset * heads);
                // All heads of a run of tokens lie side by side.
                if heads == row {
                    places.push((from, to, run.slots.len() * row));
                } else {
                    places.extend((0..run.slots.len()).map(|token| (from + token * row, to + token * heads, heads)));
                }
            }
        }
        places
    }

    /// Every byte of `tokens`, in canonical form, layer after layer.
    pub(super) fn dump(&self, blocks: &[BlockId], tokens: Range<u32>) -> Vec<u8> {
        let mut dump = Vec::new();
        for layer in (0..self.layout.layers).filter(|_| !tokens.is_empty()) {
            let span = KvSpan { layer, heads: 0..self.layout.kv_heads, tokens: tokens.clone() };
            let mut bytes = vec![0; span.payload_bytes(&self.layout)];
            self.read(&span, blocks, &mut bytes).unwrap();
            dump.extend(bytes);
        }
        dump
    }

    /// Fills `tokens` with bytes that say where they belong and to whom, and are never 0.
    pub(super) fn fill(&self, blocks: &[BlockId], tokens: Range<u32>, seed: u64) {
        for layer in 0..self.layout.layers {
            let span = KvSpan { layer, heads: 0..self.layout.kv_heads, tokens: tokens.clone() };
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(layer + 1);
            let bytes = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8 | 1
            });
            let bytes: Vec<u8> = bytes.take(span.payload_bytes(&self.layout)).collect();
            self.write(&span, blocks, &bytes).unwrap();
        }
    }
}

impl KvStore for VecStore {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    fn read(&self, span: &KvSpan, blocks: &[BlockId], out: &mut [u8]) -> Result<(), KvError> {
        span.check(&self.layout, blocks, out.len())?;
        for (store, canonical, length) in self.places(span, blocks) {
            self.file.read_exact_at(&mut out[canonical..canonical + length], store as u64).unwrap();
        }
        Ok(())
    }

    fn write(&self, span: &KvSpan, blocks: &[BlockId], input: &[u8]) -> Result<(), KvError> {
        span.check(&self.layout, blocks, input.len())?;
        for (store, canonical, length) in self.places(span, blocks) {
            self.file.write_all_at(&input[canonical..canonical + length], store as u64).unwrap();
        }
        Ok(())
    }

    fn shareable(&self) -> Option<&dyn ShareableKv> {
        Some(self)
    }
}

impl ShareableKv for VecStore {
    fn share(&self) -> SharedKv {
        SharedKv { file: self.file.clone(), layout: self.layout, ranks: 1 }
    }

    fn checksum(&self, span: &KvSpan, blocks: &[BlockId], seed: u64) -> Result<u64, KvError> {
        let mut bytes = vec![0; span.payload_bytes(&self.layout)];
        self.read(span, blocks, &mut bytes)?;
        Ok(xxh3_64_with_seed(&bytes, seed))
    }

    fn open(&self, theirs: &SharedKv) -> Result<Box<dyn KvSource>, KvError> {
        let from = VecStore { layout: theirs.layout, file: theirs.file.clone() };
        let to = VecStore { layout: self.layout, file: self.file.clone() };
        Ok(Box::new(Copier { from, to }))
    }
}

struct Copier {
    from: VecStore,
    to: VecStore,
}

impl KvSource for Copier {
    fn copy(&self, span: &KvSpan, theirs: &[BlockId], ours: &[BlockId], seed: u64) -> Result<u64, KvError> {
        let mut bytes = vec![0; span.payload_bytes(&self.to.layout)];
        let start = span.tokens.start % self.from.layout.block_size;
        let their_span = KvSpan { tokens: start..start + span.tokens.len() as u32, ..span.clone() };
        self.from.read(&their_span, theirs, &mut bytes)?;
        self.to.write(span, ours, &bytes)?;
        Ok(xxh3_64_with_seed(&bytes, seed))
    }
}

/// One instance's memory.
pub(super) struct Side {
    pub(super) store: Arc<VecStore>,
    pub(super) pool: BlockPool,
}

impl Side {
    pub(super) fn new(layout: KvLayout) -> Self {
        Self { store: VecStore::new(layout), pool: BlockPool::new(layout.blocks, layout.block_size) }
    }

    pub(super) fn blocks(&self, key: &RequestKey, tokens: u32, phase: Phase) -> Vec<BlockRef> {
        let count = tokens.div_ceil(self.pool.block_size()) as usize;
        self.pool.allocate(count, Owner { key: key.clone(), phase }).unwrap()
    }
}

pub(super) fn ids(blocks: &[BlockRef]) -> Vec<BlockId> {
    blocks.iter().map(BlockRef::id).collect()
}

pub(super) fn key(request: &str, epoch: u32) -> RequestKey {
    RequestKey { request: request.into(), epoch }
}

pub(super) fn config(instance: &str, kind: TransportKind) -> TransferConfig {
    TransferConfig { transports: vec![kind], ..TransferConfig::new(instance.into(), 7, "model") }
}

/// Two sides that can only use one transport.
pub(super) struct Pair {
    pub(super) p: Side,
    pub(super) d: Side,
    pub(super) sender: KvSender,
    pub(super) receiver: KvReceiver,
    pub(super) listening: Option<Listening>,
    _grpc: Option<DropGuard>,
}

/// What to hand over, and in which portions the engine reports it.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) prompt: u32,
    /// Leading tokens that D already has.
    pub(super) cached: u32,
    /// Tokens per report.
    pub(super) chunk: u32,
    /// Heads per report, as ranks would.
    pub(super) heads: u32,
}

/// A hand-over under way: D's blocks and both ends.
pub(super) struct Started {
    pub(super) case: Case,
    pub(super) p_blocks: Vec<BlockId>,
    pub(super) d_blocks: Vec<BlockRef>,
    pub(super) landing: Landing,
    pub(super) outgoing: Outgoing,
}

impl Pair {
    pub(super) async fn new(kind: TransportKind, p: KvLayout, d: KvLayout) -> Self {
        Self::with(kind, Side::new(p), Side::new(d), config("prefill-0", kind)).await
    }

    pub(super) async fn with(kind: TransportKind, p: Side, d: Side, sender: TransferConfig) -> Self {
        Self::between(kind, p, d, sender, config("decode-0", kind)).await
    }

    pub(super) async fn between(
        kind: TransportKind,
        p: Side,
        d: Side,
        sender: TransferConfig,
        receiver: TransferConfig,
    ) -> Self {
        let receiver = KvReceiver::new(receiver, d.store.clone());
        let listening = receiver.listen(LOCALHOST, LOCALHOST, 0).await.unwrap();
        let grpc = if kind == TransportKind::Grpc { Some(serve_grpc(&receiver).await) } else { None };
        let sender = KvSender::new(sender, p.store.clone());
        Self { p, d, sender, receiver, listening: Some(listening), _grpc: grpc }
    }

    pub(super) fn open(&self, key: &RequestKey, tokens: Range<u32>, blocks: &[BlockRef]) -> Landing {
        let lease = Duration::from_secs(10);
        self.receiver.open(LandingRequest { key: key.clone(), blocks: ids(blocks), tokens, lease })
    }

    /// Sets blocks aside on both sides, fills P's and begins.
    pub(super) fn start(&self, key: &RequestKey, case: &Case, seed: u64) -> Started {
        self.start_by(key, case, seed, |ticket| ticket)
    }

    /// As `start`, with a ticket that may lead elsewhere.
    pub(super) fn start_by(
        &self,
        key: &RequestKey,
        case: &Case,
        seed: u64,
        reroute: impl FnOnce(Bytes) -> Bytes,
    ) -> Started {
        let d_blocks = self.d.blocks(key, case.prompt, Phase::Landing);
        let landing = self.open(key, case.cached..case.prompt, &d_blocks);
        let blocks = self.p.blocks(key, case.prompt, Phase::HandOver);
        let p_blocks = ids(&blocks);
        self.p.store.fill(&p_blocks, 0..case.prompt, seed);
        let outgoing = self.sender.begin(&reroute(landing.ticket()), blocks).unwrap();
        assert_eq!(outgoing.needed(), case.cached..case.prompt);
        Started { case: case.clone(), p_blocks, d_blocks, landing, outgoing }
    }

    /// A whole hand-over; on success D's bytes are P's and what D had is untouched.
    pub(super) async fn hand_over(
        &self,
        key: &RequestKey,
        case: &Case,
        seed: u64,
    ) -> Result<(TransferStats, LandingStats), TransferError> {
        self.complete(self.start(key, case, seed)).await
    }

    /// Reports everything and waits for both ends.
    pub(super) async fn complete(&self, started: Started) -> Result<(TransferStats, LandingStats), TransferError> {
        let case = &started.case.clone();
        let kept = self.d.store.dump(&ids(&started.d_blocks), 0..case.cached);
        started.report(&self.p, 0..case.prompt);
        let sent = self.p.store.dump(&started.p_blocks, case.cached..case.prompt);
        let Started { landing, outgoing, d_blocks, .. } = started;
        let land = async {
            landing.landed().await?;
            landing.commit()
        };
        let (shipped, landed) = tokio::try_join!(outgoing.finish(), land)?;
        let d_ids = ids(&d_blocks);
        assert!(self.d.store.dump(&d_ids, case.cached..case.prompt) == sent, "D's bytes differ: {case:?}");
        assert!(self.d.store.dump(&d_ids, 0..case.cached) == kept, "D's own bytes were touched");
        Ok((shipped, landed))
    }
}

impl Started {
    /// Reports `tokens` as an engine with ranks would, chunk by chunk.
    pub(super) fn report(&self, p: &Side, tokens: Range<u32>) {
        let layout = p.store.layout();
        for start in tokens.clone().step_by(self.case.chunk as usize) {
            for layer in 0..layout.layers {
                for head in (0..layout.kv_heads).step_by(self.case.heads as usize) {
                    let chunk = start..(start + self.case.chunk).min(tokens.end);
                    self.outgoing.layer_ready(layer, head..head + self.case.heads, chunk);
                }
            }
        }
    }
}

/// Serves the receiver's gRPC door until the guard is dropped.
async fn serve_grpc(receiver: &KvReceiver) -> DropGuard {
    let listener = tokio::net::TcpListener::bind(SocketAddr::new(LOCALHOST, 0)).await.unwrap();
    receiver.set_grpc_address(listener.local_addr().unwrap());
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(crate::GRPC_WINDOW_BYTES)
        .initial_connection_window_size(crate::GRPC_WINDOW_BYTES)
        .max_frame_size(crate::GRPC_FRAME_BYTES)
        .add_service(receiver.grpc_service())
        .serve_with_incoming(incoming);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move { stopped.run_until_cancelled(server).await });
    stop.drop_guard()
}
