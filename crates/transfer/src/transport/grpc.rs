//! A gRPC byte stream on the worker's own port: slower than TCP, but it passes wherever the control plane does.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use edge::Port;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use hyper_util::rt::TokioIo;
use kv::KvStore;
use proto::kv::kv_frame::Body;
use proto::kv::kv_transfer_client::KvTransferClient;
use proto::kv::kv_transfer_server::{KvTransfer, KvTransferServer};
use proto::kv::{KvFrame, KvHello, KvReply, Piece};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::Uri;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status, Streaming};
use tower::service_fn;

use super::{FrameSink, FrameSource, Link, Payload};
use crate::receiver::Registry;
use crate::serve::{REPLIES_MAX, serve};
use crate::{TransferConfig, TransportKind};

/// HTTP/2 window of a stream and of the connection: with the 64 KiB of the standard a hand-over waits at every turn.
pub const GRPC_WINDOW_BYTES: u32 = 64 << 20;
/// HTTP/2 frame size; larger ones were not faster.
pub const GRPC_FRAME_BYTES: u32 = 1 << 20;

/// Frames waiting for the connection.
const FRAMES_MAX: usize = 2;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects to a receiver whose service is mounted at `address`.
pub(crate) async fn connect(config: &TransferConfig, address: &str) -> Result<Link, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(GRPC_WINDOW_BYTES)
        .initial_connection_window_size(GRPC_WINDOW_BYTES);
    let (sender, frames) = mpsc::channel(FRAMES_MAX);
    let message_bytes_max = config.bounds.grpc_message_bytes;
    let (config, address) = (config.clone(), address.to_owned());
    let dial = service_fn(move |_: Uri| {
        let (config, address) = (config.clone(), address.clone());
        async move { super::tcp::dial(&config, &address, Port::Worker).await.map(TokioIo::new) }
    });
    let pushing = async {
        let channel = endpoint.connect_with_connector(dial).await.map_err(|error| describe(&error))?;
        let mut client = KvTransferClient::new(channel).max_encoding_message_size(message_bytes_max);
        client.push(ReceiverStream::new(frames)).await.map_err(|status| describe(&status))
    };
    let response = timeout(CONNECT_TIMEOUT, pushing).await;
    let response = response.map_err(|_| format!("no answer in {} ms", CONNECT_TIMEOUT.as_millis()))??;
    let replies = response.into_inner().map(|reply| reply.map_err(|status| describe(&status))).boxed();
    Ok(Link { sink: Box::new(Sink { frames: sender }), replies, offer: None })
}

/// An error with its causes: tonic's own text stops at "transport error".
fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

struct Sink {
    frames: mpsc::Sender<KvFrame>,
}

impl FrameSink for Sink {
    fn send<'a>(&'a mut self, frame: Body, payload: &'a mut Vec<u8>) -> BoxFuture<'a, Result<(), String>> {
        let payload = Bytes::from(std::mem::take(payload));
        let sent = self.frames.send(KvFrame { body: Some(frame), payload });
        sent.map(|sent| sent.map_err(|_| "the stream has ended".to_owned())).boxed()
    }
}

/// The gRPC door, mounted on the worker's own server.
pub struct GrpcDoor {
    registry: Arc<Registry>,
}

/// The service to mount.
pub(crate) fn service(registry: Arc<Registry>) -> KvTransferServer<GrpcDoor> {
    let message_bytes_max = registry.config.bounds.grpc_message_bytes;
    KvTransferServer::new(GrpcDoor { registry }).max_decoding_message_size(message_bytes_max)
}

#[tonic::async_trait]
impl KvTransfer for GrpcDoor {
    type PushStream = BoxStream<'static, Result<KvReply, Status>>;

    async fn push(&self, request: Request<Streaming<KvFrame>>) -> Result<Response<Self::PushStream>, Status> {
        let address = request.remote_addr().map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        let source = Source { frames: request.into_inner(), payload: Bytes::new() };
        let (sender, replies) = mpsc::channel(REPLIES_MAX);
        let serving = serve(self.registry.clone(), Box::new(source), sender, address);
        tokio::spawn(serving);
        Ok(Response::new(ReceiverStream::new(replies).map(Ok).boxed()))
    }
}

struct Source {
    frames: Streaming<KvFrame>,
    /// Of the last frame.
    payload: Bytes,
}

impl FrameSource for Source {
    fn kind(&self) -> TransportKind {
        TransportKind::Grpc
    }

    fn open<'a>(&'a mut self, hello: &'a KvHello, _: &'a dyn KvStore) -> BoxFuture<'a, Result<(), String>> {
        futures::future::ready(super::nothing_offered(hello)).boxed()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Body>, String>> {
        async {
            match self.frames.message().await.map_err(|status| describe(&status))? {
                Some(KvFrame { body: Some(body), payload }) => {
                    self.payload = payload;
                    Ok(Some(body))
                }
                Some(_) => Err("a frame of a kind that we do not know".to_owned()),
                None => Ok(None),
            }
        }
        .boxed()
    }

    fn payload<'a>(&'a mut self, _: &'a Piece) -> BoxFuture<'a, Result<Payload<'a>, String>> {
        futures::future::ready(Ok(Payload::Sent(&self.payload))).boxed()
    }

    fn skip<'a>(&'a mut self, _: &'a Piece) -> BoxFuture<'a, Result<(), String>> {
        self.payload = Bytes::new();
        futures::future::ready(Ok(())).boxed()
    }
}
