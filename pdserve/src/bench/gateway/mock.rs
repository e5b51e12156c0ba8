//! Workers without a model: they speak the real control protocol and answer every message at once.
//!
//! A request whose id is that of a stream gets its tokens one by one, a message each, as its reader asks for them; see
//! [`stream_id`]. Every other request gets all its tokens in one message.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proto::control::worker_message::Body;
use proto::control::worker_server::{Worker, WorkerServer};
use proto::control::{self, Finish, Key, SchedulerMessage, Token, Welcome, WorkerMessage, scheduler_message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use types::{Limits, ModelIdentity};

use super::process::CONTEXT;

/// Well within the silence after which a worker counts as frozen.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// Messages on their way to the scheduler; more than all streams ever have under way.
const OUTBOX: usize = 1 << 17;
/// Never the reason to wait.
const BLOCKS: u32 = 1 << 30;
/// What every instance says, over and over; a printable character in any byte-level vocabulary.
pub(super) const TOKEN: u32 = 65;

type Sender = mpsc::Sender<Result<WorkerMessage, Status>>;

/// Streams that are open, by number. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Streams(Arc<Vec<Mutex<Option<Stream>>>>);

#[derive(Debug)]
struct Stream {
    key: Key,
    next: u32,
    max_tokens: u32,
    sender: Sender,
}

impl Streams {
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new((0..count).map(|_| Mutex::new(None)).collect()))
    }

    /// Sends the next `count` tokens of a stream, each as a message of its own.
    pub(super) fn send(&self, number: usize, count: u32) {
        let Some(stream) = self.0.get(number) else { return };
        if let Some(stream) = stream.lock().as_mut() {
            (0..count).for_each(|_| stream.send());
        }
    }

    fn open(&self, number: usize, stream: Stream) {
        if let Some(place) = self.0.get(number) {
            *place.lock() = Some(stream);
        }
    }
}

impl Stream {
    fn send(&mut self) {
        if self.next < self.max_tokens {
            let tokens = tokens(self.key.clone(), self.next..self.next + 1, self.max_tokens);
            // Full or gone: the stream stands still, and its reader says so.
            self.sender.try_send(Ok(WorkerMessage { body: Some(tokens) })).ok();
            self.next += 1;
        }
    }
}

/// The id that a stream is asked for with: its number, and how many tokens of it may be under way.
pub(super) fn stream_id(number: usize, ahead: u32) -> String {
    format!("s{number}.{ahead}")
}

/// What [`stream_id`] put into the id, of which the scheduler makes one of its own.
fn parse_stream_id(request_id: &str) -> Option<(usize, u32)> {
    let (number, ahead) = request_id.strip_prefix('s')?.split_once('-')?.0.split_once('.')?;
    Some((number.parse().ok()?, ahead.parse().ok()?))
}

fn token(position: u32, max_tokens: u32) -> Token {
    let finish = if position + 1 == max_tokens { Finish::Length } else { Finish::None };
    Token { id: TOKEN, position, finish: finish.into(), ..Token::default() }
}

fn tokens(key: Key, positions: std::ops::Range<u32>, max_tokens: u32) -> Body {
    let tokens = positions.map(|position| token(position, max_tokens)).collect();
    Body::Tokens(control::Tokens { key: Some(key), tokens, prefill: None })
}

/// Serves on this port until the process ends. Number 0 is the prefill instance, the others decode.
pub(super) fn serve(listener: TcpListener, number: usize, table_hash: String, streams: Streams) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?).with_nodelay(Some(true));
    let service = WorkerServer::new(Mock { number, table_hash, streams });
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    Ok(())
}

#[derive(Clone)]
struct Mock {
    number: usize,
    table_hash: String,
    streams: Streams,
}

#[tonic::async_trait]
impl Worker for Mock {
    type ControlStream = ReceiverStream<Result<WorkerMessage, Status>>;

    async fn control(
        &self,
        request: Request<Streaming<SchedulerMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let (sender, receiver) = mpsc::channel(OUTBOX);
        tokio::spawn(self.clone().converse(request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Mock {
    /// Until the scheduler is gone.
    async fn converse(self, mut stream: Streaming<SchedulerMessage>, sender: Sender) -> Option<()> {
        let send = async |body| sender.send(Ok(WorkerMessage { body: Some(body) })).await.ok();
        send(Body::Welcome(self.welcome())).await?;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                message = stream.message() => {
                    for answer in self.answers(message.ok()??.body?, &sender) {
                        send(answer).await?;
                    }
                }
                _ = heartbeat.tick() => send(Body::Load(load())).await?,
            }
        }
    }

    fn answers(&self, body: scheduler_message::Body, sender: &Sender) -> Vec<Body> {
        use scheduler_message::Body as Heard;
        match body {
            Heard::Reserve(control::Reserve { key, .. }) => {
                let ticket = vec![0; 64].into();
                vec![Body::Reserved(control::Reserved { key, ticket, cached_tokens: 0, lease_ms: 10_000 })]
            }
            Heard::Prefill(control::Prefill { key, spec, .. }) => {
                let tokens = vec![token(0, max_tokens(spec.as_ref()))];
                let first = control::FirstTokens { key: key.clone(), tokens, stats: None };
                let shipped = control::Shipped { key, stats: None };
                vec![Body::FirstTokens(first), Body::Shipped(shipped)]
            }
            Heard::Generate(control::Generate { key: Some(key), spec, first }) => {
                let (next, max_tokens) = (first.len() as u32, max_tokens(spec.as_ref()));
                let Some((number, ahead)) = parse_stream_id(&key.request_id) else {
                    return vec![tokens(key, next..max_tokens, max_tokens)];
                };
                self.streams.open(number, Stream { key, next, max_tokens, sender: sender.clone() });
                self.streams.send(number, ahead);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn welcome(&self) -> Welcome {
        let model = ModelIdentity {
            digest: "none".into(),
            architecture: "mock".into(),
            dtype: "none".into(),
            kv_dtype: "none".into(),
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            vocab_size: CONTEXT,
            rope: "none".into(),
            sliding_window: 0,
            max_model_len: CONTEXT,
        };
        let limits = Limits {
            block_size: 16,
            blocks_total: BLOCKS,
            tensor_parallel_size: 1,
            max_num_seqs: CONTEXT,
            max_num_batched_tokens: CONTEXT,
            instructions: "none".into(),
        };
        let (instance, role) = match self.number {
            0 => ("prefill-0".to_owned(), "prefill"),
            number => (format!("decode-{}", number - 1), "decode"),
        };
        Welcome {
            protocol: proto::PROTOCOL,
            table_hash: self.table_hash.clone(),
            instance,
            role: role.to_owned(),
            model: Some((&model).into()),
            limits: Some((&limits).into()),
            incarnation: 1,
            refusal: String::new(),
        }
    }
}

fn max_tokens(spec: Option<&control::Spec>) -> u32 {
    spec.and_then(|spec| spec.sampling.as_ref()).map_or(1, |sampling| sampling.max_tokens)
}

fn load() -> control::Load {
    control::Load { blocks_total: BLOCKS, blocks_free: BLOCKS, ..control::Load::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_told_by_their_ids() {
        assert_eq!(parse_stream_id(&format!("{}-00ab.0", stream_id(12, 3))), Some((12, 3)));
        for id in ["s12-00ab.0", "s-00ab.0", "1f.1-00ab.0", "sx.1-1.0", "canary-1", ""] {
            assert_eq!(parse_stream_id(id), None, "{id}");
        }
    }

    #[test]
    fn a_stream_sends_what_is_asked_for_and_no_more_than_its_tokens() {
        let (sender, mut receiver) = mpsc::channel(10);
        let streams = Streams::new(1);
        streams.send(0, 1);
        streams.open(0, Stream { key: Key::default(), next: 1, max_tokens: 4, sender });
        for (count, expected) in [(1, 1), (5, 2), (1, 0)] {
            streams.send(0, count);
            assert_eq!(std::iter::from_fn(|| receiver.try_recv().ok()).count(), expected, "{count}");
        }
        streams.send(7, 1);
    }
}
