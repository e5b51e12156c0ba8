//! Lands KV on D.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv::{BlockId, KvStore};
use proto::kv::kv_transfer_server::{KvTransfer, KvTransferServer};
use proto::kv::{KvFrame, KvReply};
use types::RequestKey;

use crate::{Counters, TransferConfig, TransferError, TransportKind};

/// D's side of the KV plane. Cheap to clone.
#[derive(Clone)]
pub struct KvReceiver {}

/// The doors for TCP, shared memory and in-process peers; dropping it shuts them.
pub struct Listening {}

/// The gRPC door, mounted on the worker's own server.
pub struct GrpcDoor {}

/// What D sets aside for one attempt.
#[derive(Clone, Debug)]
pub struct LandingRequest {
    pub key: RequestKey,
    /// The sequence's blocks from token 0 on, including those that D already has. The caller keeps them leased as long as the Landing.
    pub blocks: Vec<BlockId>,
    /// The tokens that D lacks; may be empty.
    pub tokens: Range<u32>,
    /// Extended by each piece that arrives.
    pub lease: Duration,
}

/// The open door for one attempt's pieces. Dropping it closes the door: once `drop` has returned nothing is written any more.
pub struct Landing {}

/// What arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LandingStats {
    /// None when nothing had to be sent.
    pub transport: Option<TransportKind>,
    pub bytes: u64,
    pub pieces: u32,
}

impl KvReceiver {
    pub fn new(_config: TransferConfig, _store: Arc<dyn KvStore>) -> Self {
        unimplemented!()
    }

    /// Opens the TCP door (port 0 = any), which serves shared memory too, and the in-process one. Peers are told `advertise`.
    pub async fn listen(&self, _bind: IpAddr, _advertise: IpAddr, _port: u16) -> Result<Listening, TransferError> {
        unimplemented!()
    }

    /// The service to mount; tell its address with [`KvReceiver::set_grpc_address`].
    pub fn grpc_service(&self) -> KvTransferServer<GrpcDoor> {
        unimplemented!()
    }

    /// Where the mounted gRPC service can be reached; from then on tickets offer it.
    pub fn set_grpc_address(&self, _address: SocketAddr) {
        unimplemented!()
    }

    /// Opens the door for one attempt's pieces.
    pub fn open(&self, _request: LandingRequest) -> Landing {
        unimplemented!()
    }

    pub fn counters(&self) -> &Counters {
        unimplemented!()
    }
}

impl Listening {
    /// What peers connect to.
    pub fn address(&self) -> SocketAddr {
        unimplemented!()
    }
}

impl Landing {
    /// For P, by way of the scheduler: addresses, capability, epoch, and which tokens D lacks.
    pub fn ticket(&self) -> Bytes {
        unimplemented!()
    }

    /// Waits until every byte has arrived and been checked, or the attempt has failed.
    pub async fn landed(&self) -> Result<LandingStats, TransferError> {
        unimplemented!()
    }

    /// Closes the door and tells P that it may forget the attempt. Fails if not everything has landed.
    pub fn commit(self) -> Result<LandingStats, TransferError> {
        unimplemented!()
    }
}

type ReplyStream = Pin<Box<dyn futures::Stream<Item = Result<KvReply, tonic::Status>> + Send>>;

#[tonic::async_trait]
impl KvTransfer for GrpcDoor {
    type PushStream = ReplyStream;

    async fn push(
        &self,
        _request: tonic::Request<tonic::Streaming<KvFrame>>,
    ) -> Result<tonic::Response<ReplyStream>, tonic::Status> {
        unimplemented!()
    }
}
