//! Keeps one long-lived control stream to one instance: connects, shakes hands, reads until it is silent or gone, connects again.
//!
//! Silence is failure: a worker sends its load every 500 ms, so one that is silent for `Timings::stall` is frozen and its attempts
//! move elsewhere. One that is heard, but not of some attempt, is asked after as long whether it still holds that attempt.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use edge::{Credentials, PeerStream, Port};
use hyper_util::rt::TokioIo;
use net::TcpStream;
use proto::control::worker_client::WorkerClient;
use proto::control::worker_message::Body as FromWorker;
use proto::control::{Hello, Ping, Welcome, WorkerMessage, scheduler_message::Body};
use tokio::time::Instant;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Streaming;
use tonic::codegen::http::Uri;
use tonic::transport::Endpoint;
use tower::service_fn;
use tracing::{info, warn};

use crate::cluster::Cluster;
use crate::link::{Connection, Event};
use crate::outbox::Outbox;
use crate::pairing::Slot;
use crate::table::Target;

/// First pause before connecting again; it doubles up to `Timings::reconnect_max`.
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
/// How often an awaited instance is named in the log.
const WAITING_LOG: Duration = Duration::from_secs(3);

/// Why a connection ended or never came to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("no answer within {} ms", .0.as_millis())]
    Handshake(Duration),
    /// It runs, but is not what the rank table says, or refuses us.
    #[error("{0}")]
    Refused(String),
    #[error("silent for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("connection lost: {0}")]
    Lost(String),
    #[error("no longer in the rank table")]
    Unlisted,
}

/// Runs until the rank table names the instance no longer and it has finished what it had.
pub(crate) async fn keep(cluster: Arc<Cluster>, slot: Slot) {
    let mut pause = RECONNECT_FIRST;
    let mut named: Option<Instant> = None;
    loop {
        let (welcomed, ended) = session(&cluster, slot).await;
        cluster.lost(slot, &ended);
        let target = cluster.target(slot);
        if cluster.let_go(slot) {
            info!(instance = %target.id, address = %target.address, reason = %ended, "instance let go");
            return;
        }
        if welcomed {
            warn!(instance = %target.id, address = %target.address, reason = %ended, "instance lost");
            (pause, named) = (RECONNECT_FIRST, Some(Instant::now()));
        } else if named.is_none_or(|at| at.elapsed() >= WAITING_LOG) {
            if let Ended::Refused(_) = ended {
                warn!(instance = %target.id, address = %target.address, reason = %ended, "instance is not ready");
            } else {
                info!(instance = %target.id, address = %target.address, reason = %ended, "waiting for instance");
            }
            named = Some(Instant::now());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(cluster.timings().reconnect_max);
    }
}

/// One connection from start to end, and whether it came to a welcome.
async fn session(cluster: &Arc<Cluster>, slot: Slot) -> (bool, Ended) {
    let outbox = Outbox::default();
    let opened = timeout(cluster.timings().connect, open(cluster, slot, &outbox)).await;
    let opened = opened.unwrap_or_else(|_| Err(Ended::Handshake(cluster.timings().connect)));
    let (stream, welcome) = match opened {
        Ok(opened) => opened,
        Err(ended) => return (false, ended),
    };
    let connection = match cluster.welcomed(slot, welcome, outbox) {
        Ok(connection) => connection,
        Err(ended) => return (false, ended),
    };
    let ended = read(cluster, &connection, stream).await;
    connection.close();
    (true, ended)
}

/// Connects, says Hello, hears Welcome.
async fn open(cluster: &Cluster, slot: Slot, outbox: &Outbox) -> Result<(Streaming<WorkerMessage>, Welcome), Ended> {
    let target = cluster.target(slot);
    let endpoint = Endpoint::from_shared(format!("http://{}", target.address))
        .map_err(|error| Ended::Connect(root_cause(&error)))?
        .connect_timeout(cluster.timings().connect);
    let (to, credentials) = (target.clone(), cluster.credentials().clone());
    let dial = service_fn(move |_: Uri| dial(to.clone(), credentials.clone()));
    let channel = endpoint.connect_with_connector(dial).await.map_err(|error| Ended::Connect(root_cause(&error)))?;
    let mut client = WorkerClient::new(channel).max_decoding_message_size(proto::CONTROL_MESSAGE_BYTES_MAX);
    let hello = Hello {
        protocol: proto::PROTOCOL,
        table_hash: cluster.table_hash(),
        instance: target.id.to_string(),
        scheduler_incarnation: cluster.incarnation(),
    };
    let sent = outbox.send(Body::Hello(hello));
    debug_assert!(sent.is_ok(), "a new queue has room");
    let lost = |status: tonic::Status| Ended::Lost(status.message().to_owned());
    let mut stream = client.control(outbox.stream()).await.map_err(lost)?.into_inner();
    match stream.message().await.map_err(lost)?.and_then(|message| message.body) {
        Some(FromWorker::Welcome(welcome)) => Ok((stream, welcome)),
        Some(_) => Err(Ended::Refused("the first message is no Welcome; is this a pdserve worker?".into())),
        None => Err(Ended::Lost("closed before Welcome".into())),
    }
}

/// A connection to a worker that has proven, if there is anything to prove, that it is one of ours.
async fn dial(target: Arc<Target>, credentials: Credentials) -> Result<TokioIo<PeerStream>, std::io::Error> {
    let stream = TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    let stream = credentials.connect(stream, target.role, Port::Worker, "scheduler").await;
    stream.map(TokioIo::new).map_err(std::io::Error::other)
}

async fn read(cluster: &Cluster, connection: &Connection, mut stream: Streaming<WorkerMessage>) -> Ended {
    let stall = cluster.timings().stall;
    // They ask about quiet attempts, and let the worker, too, tell a frozen scheduler from one without work.
    let mut pings = interval(stall / 10);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            // First what has come: a busy process must not take its own delay for the worker's silence.
            biased;
            message = stream.message() => match message {
                Ok(Some(message)) => {
                    heard = Instant::now();
                    receive(cluster, connection, message);
                }
                Ok(None) => return Ended::Lost("closed by the worker".into()),
                Err(status) => return Ended::Lost(status.message().to_owned()),
            },
            () = tokio::time::sleep_until(heard + stall) => return Ended::Silent(stall),
            _ = pings.tick() => {
                if cluster.is_done(connection) {
                    return Ended::Unlisted;
                }
                let quiet = connection.quiet(stall).iter().map(Into::into).collect();
                // A full outbox is no reason to give up on a worker that is still heard.
                let _ = connection.outbox.send(Body::Ping(Ping { nonce: 0, quiet }));
            }
        }
    }
}

fn receive(cluster: &Cluster, connection: &Connection, message: WorkerMessage) {
    let (key, event) = match message.body {
        Some(FromWorker::Load(load)) => return cluster.loaded(connection.slot, load),
        Some(FromWorker::Reserved(mut message)) => (message.key.take(), Event::Reserved(message)),
        Some(FromWorker::Embedding(mut message)) => (message.key.take(), Event::Embedding(message)),
        Some(FromWorker::PromptScores(mut message)) => (message.key.take(), Event::PromptScores(message)),
        Some(FromWorker::FirstTokens(mut message)) => (message.key.take(), Event::FirstTokens(message)),
        Some(FromWorker::Shipped(message)) => (message.key, Event::Shipped(message.stats.unwrap_or_default())),
        Some(FromWorker::Tokens(mut message)) => (message.key.take(), Event::Tokens(message)),
        Some(FromWorker::Failed(mut message)) => (message.key.take(), Event::Failed(message)),
        Some(FromWorker::Pong(_) | FromWorker::Welcome(_)) | None => return,
    };
    match proto::request_key(key) {
        Ok(key) if connection.deliver(&key, event) => {}
        Ok(_) => cluster.metrics().stale_dropped(1),
        Err(error) => warn!(instance = %connection.instance, %error, "message dropped"),
    }
}

/// The innermost cause, which says what the operating system said.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
