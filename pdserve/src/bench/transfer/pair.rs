//! Two ends of the KV plane that can only use one transport.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kv::{BlockId, BlockPool, BlockRef, KvLayout, KvSpan, KvStore, Owner, Phase};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tonic::transport::server::TcpIncoming;
use transfer::{
    KvReceiver, KvSender, LandingRequest, Listening, Outgoing, TransferConfig, TransferError, TransferStats,
    TransportKind,
};
use types::RequestKey;

use super::ends::Ends;
use super::{LAYER_COMPUTES, Sample, ms};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LEASE: Duration = Duration::from_secs(30);

/// A sender and a receiver, each with its own KV memory.
pub(super) struct Pair {
    pub(super) kind: TransportKind,
    tokens: u32,
    sender: KvSender,
    receiver: KvReceiver,
    /// P's memory and pool, then D's.
    sides: [Side; 2],
    hand_overs: u64,
    _listening: Listening,
    _grpc: Option<GrpcServer>,
    d: OwnRuntime,
}

/// D's sockets, on threads of their own: in a cluster P and D are two processes, whose tasks do not wait for each other's.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn start(ends: &Ends) -> anyhow::Result<Self> {
        let build = || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2).thread_name("bench-d").enable_all().build()
        };
        let runtime = ends.start_d(build).flatten().context("no threads for D")?;
        Ok(Self(Some(runtime)))
    }

    /// Lets D begin something: what it spawns runs on its threads.
    async fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> anyhow::Result<T> {
        let runtime = self.0.as_ref().context("D has ended")?;
        runtime.spawn(task).await.context("D failed")
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        // Dropping a runtime waits for its threads, which asynchronous code may not.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

struct Side {
    store: Arc<dyn KvStore>,
    /// The prompt's, for every hand-over anew.
    blocks: Vec<BlockRef>,
}

impl Pair {
    /// Opens D's doors and fills P's memory.
    pub(super) async fn connect(
        kind: TransportKind,
        layout: KvLayout,
        tokens: u32,
        ends: &Ends,
    ) -> anyhow::Result<Self> {
        let [p, d] = [Side::new(layout)?, Side::new(layout)?];
        let config =
            |name: String| TransferConfig { transports: vec![kind], ..TransferConfig::new(name.into(), 1, "bench") };
        let receiver = KvReceiver::new(config(format!("decode-{kind}")), d.store.clone());
        let (runtime, d_side) = (OwnRuntime::start(ends)?, receiver.clone());
        let doors = async move {
            let listening = d_side.listen(LOOPBACK, LOOPBACK, 0).await?;
            let grpc = if kind == TransportKind::Grpc { Some(GrpcServer::start(&d_side).await?) } else { None };
            Ok::<_, anyhow::Error>((listening, grpc))
        };
        let (listening, grpc) = runtime.run(doors).await??;
        let sender = KvSender::new(config(format!("prefill-{kind}")), p.store.clone());
        p.fill(tokens)?;
        Ok(Self {
            kind,
            tokens,
            sender,
            receiver,
            sides: [p, d],
            hand_overs: 0,
            _listening: listening,
            _grpc: grpc,
            d: runtime,
        })
    }

    /// A hand-over whose layers are all there at once, for its time, and one whose layers come one by one, for what stays exposed.
    pub(super) async fn sample(&mut self) -> anyhow::Result<Sample> {
        let start = Instant::now();
        let (pieces, _) = self.hand_over(None).await?;
        let took = start.elapsed();
        let (_, exposed) = self.hand_over(Some(LAYER_COMPUTES)).await?;
        Ok(Sample { ms: ms(took), pieces: Some(pieces), exposed_ms: Some(ms(exposed)) })
    }

    /// Number of pieces, and the time from just before the last layer's report to D's commit.
    async fn hand_over(&mut self, layer_every: Option<Duration>) -> anyhow::Result<(u32, Duration)> {
        self.hand_overs += 1;
        let key = RequestKey { request: format!("bench-{}", self.hand_overs).into(), epoch: 1 };
        let [p, d] = &self.sides;
        let request = LandingRequest { key, blocks: d.ids(), tokens: 0..self.tokens, lease: LEASE };
        let landing = self.receiver.open(request);
        let outgoing = self.sender.begin(&landing.ticket(), p.blocks.clone())?;
        let land = self.d.run(async move {
            landing.landed().await?;
            landing.commit().map(|stats| (stats, Instant::now()))
        });
        let (shipped, landed) = tokio::join!(ship(outgoing, p.store.layout(), self.tokens, layer_every), land);
        let ((shipped, computed), (landed, committed)) = (shipped?, landed??);
        ensure!(shipped.transport == Some(self.kind), "{} was asked for, {:?} was used", self.kind, shipped.transport);
        Ok((landed.pieces, committed - computed))
    }

    /// Fails unless D has what P has.
    pub(super) fn check_bytes(&self) -> anyhow::Result<()> {
        let layout = self.sides[0].store.layout();
        for layer in 0..layout.layers {
            let span = KvSpan { layer, heads: 0..layout.kv_heads, tokens: 0..self.tokens };
            let mut bytes = [vec![0; span.payload_bytes(&layout)], vec![0; span.payload_bytes(&layout)]];
            for (side, bytes) in self.sides.iter().zip(&mut bytes) {
                side.store.read(&span, &side.ids(), bytes)?;
            }
            ensure!(bytes[0] == bytes[1], "{}: layer {layer} arrived with other bytes", self.kind);
        }
        Ok(())
    }
}

/// Reports layer after layer; returns when the last one was there, too. Not after its report: whoever that wakes may run first.
async fn ship(
    outgoing: Outgoing,
    layout: KvLayout,
    tokens: u32,
    layer_every: Option<Duration>,
) -> Result<(TransferStats, Instant), TransferError> {
    let mut computed = Instant::now();
    for layer in 0..layout.layers {
        if let Some(computing) = layer_every {
            sleep(computing).await;
        }
        computed = Instant::now();
        outgoing.layer_ready(layer, 0..layout.kv_heads, 0..tokens);
    }
    outgoing.computed();
    Ok((outgoing.finish().await?, computed))
}

impl Side {
    fn new(layout: KvLayout) -> anyhow::Result<Self> {
        let owner = Owner { key: RequestKey { request: "bench".into(), epoch: 0 }, phase: Phase::HandOver };
        let blocks = BlockPool::new(layout.blocks, layout.block_size).allocate(layout.blocks as usize, owner)?;
        Ok(Self { store: engine::kv_memory(layout)?, blocks })
    }

    fn ids(&self) -> Vec<BlockId> {
        self.blocks.iter().map(BlockRef::id).collect()
    }

    /// Every page becomes memory, and no two layers or tokens are alike.
    fn fill(&self, tokens: u32) -> anyhow::Result<()> {
        let layout = self.store.layout();
        for layer in 0..layout.layers {
            let span = KvSpan { layer, heads: 0..layout.kv_heads, tokens: 0..tokens };
            let mut bytes = vec![0; span.payload_bytes(&layout)];
            for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
                let value = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(layer);
                word.copy_from_slice(&value.to_le_bytes());
            }
            self.store.write(&span, &self.ids(), &bytes)?;
        }
        Ok(())
    }
}

/// D's gRPC door on a server of its own; dropping it ends the server.
struct GrpcServer {
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl GrpcServer {
    async fn start(receiver: &KvReceiver) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind(SocketAddr::new(LOOPBACK, 0)).await.context("no port for gRPC")?;
        receiver.set_grpc_address(listener.local_addr()?);
        let server = tonic::transport::Server::builder()
            .initial_stream_window_size(transfer::GRPC_WINDOW_BYTES)
            .initial_connection_window_size(transfer::GRPC_WINDOW_BYTES)
            .max_frame_size(transfer::GRPC_FRAME_BYTES)
            .add_service(receiver.grpc_service())
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        Ok(Self { task: tokio::spawn(server) })
    }
}

impl Drop for GrpcServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
