//! Who is let in on the control port, and what strangers get out of it.

use std::time::Duration;

use edge::{Authority, ClusterSecret, ClusterTls, Credentials, Port, PortBounds};
use futures::future::join_all;
use net::TcpStream;
use proto::control::worker_client::WorkerClient;
use proto::control::{SchedulerMessage, scheduler_message as outbound, worker_message::Body};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use types::Role;

use super::tests::{Rig, hello, refusal};
use crate::{Config, fake, port_bounds};

/// A decode instance with these credentials; its address without a scheme.
async fn start(credentials: Credentials, port: PortBounds) -> (Rig, String) {
    let rig = Rig::start_as(Config { credentials, port, ..fake::config(Role::Decode, "decode-0", &[]) }).await;
    let address = rig.address.trim_start_matches("http://").to_owned();
    (rig, address)
}

fn secret(text: &str) -> ClusterSecret {
    ClusterSecret::new(text, "test").unwrap()
}

#[tokio::test]
async fn with_a_secret_strangers_see_health_and_nothing_else() {
    let (ours, theirs) = (secret("0123456789abcdef"), secret("fedcba9876543210"));
    let (rig, address) = start(Credentials { secret: Some(ours.clone()), tls: None }, port_bounds()).await;
    let stranger = WorkerClient::connect(rig.address.clone()).await.unwrap().control(tokio_stream::empty()).await;
    let status = stranger.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    assert!(status.message().contains("PDSERVE_CLUSTER_SECRET"), "{status}");
    for (path, expected) in [("/health", "200 OK"), ("/metrics", "200 OK")] {
        assert!(get(&address, path).await.starts_with(&format!("HTTP/1.1 {expected}")), "{path}");
    }
    for (secret, served) in [(theirs, false), (ours, true)] {
        let stream = TcpStream::connect(&address).await.unwrap();
        let credentials = Credentials { secret: Some(secret), tls: None };
        let proven = credentials.connect(stream, Role::Decode, Port::Worker, "scheduler").await;
        assert_eq!(proven.is_ok(), served, "{proven:?}");
    }
}

/// What a process of that role gets from `ca`.
fn certified(ca: &Authority, role: Role) -> Credentials {
    let directory = tempfile::tempdir().unwrap();
    let issued = ca.issue_role(role, Duration::from_secs(3600)).unwrap();
    ca.save(&issued, directory.path()).unwrap();
    Credentials { secret: None, tls: Some(ClusterTls::load(directory.path(), role).unwrap()) }
}

/// Opens a control stream with these credentials and hears the first message.
async fn control_with(credentials: Credentials, address: &str) -> Result<Option<Body>, tonic::Status> {
    let (sender, receiver) = mpsc::channel(4);
    sender.send(SchedulerMessage { body: Some(outbound::Body::Hello(hello())) }).await.unwrap();
    let target = address.to_owned();
    let dial = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let (credentials, target) = (credentials.clone(), target.clone());
        async move {
            let stream = TcpStream::connect(target).await.map_err(|error| error.to_string())?;
            let stream = credentials.connect(stream, Role::Decode, Port::Worker, "test").await;
            stream.map(hyper_util::rt::TokioIo::new).map_err(|error| error.to_string())
        }
    });
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel =
        endpoint.connect_with_connector(dial).await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let mut messages = WorkerClient::new(channel).control(ReceiverStream::new(receiver)).await?.into_inner();
    Ok(messages.message().await?.and_then(|message| message.body))
}

#[tokio::test]
async fn with_certificates_only_schedulers_of_the_cluster_come_in() {
    let (ours, theirs) = (Authority::new().unwrap(), Authority::new().unwrap());
    let (_rig, address) = start(certified(&ours, Role::Decode), port_bounds()).await;
    let address = address.as_str();
    let welcomed = control_with(certified(&ours, Role::Scheduler), address).await;
    assert_eq!(refusal(welcomed.unwrap()), "");
    // A prefill instance may bring KV to the port, and no more.
    let status = control_with(certified(&ours, Role::Prefill), address).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status}");
    let secret = secret("0123456789abcdef");
    let strangers = [
        certified(&ours, Role::Decode),
        certified(&theirs, Role::Scheduler),
        Credentials { secret: Some(secret), tls: None },
        Credentials::default(),
    ];
    for stranger in strangers {
        control_with(stranger, address).await.unwrap_err();
    }
    assert!(get(address, "/health").await.starts_with("HTTP/1.1 200 OK"));
}

/// A plain HTTP answer, with its head.
async fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a11_any_bytes_without_credentials_are_refused_and_idle_strangers_leave() {
    let quick = PortBounds { header_read: Duration::from_millis(300), ..port_bounds() };
    let ca = Authority::new().unwrap();
    let (_rig, address) = start(certified(&ca, Role::Decode), quick).await;
    let control = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let bytes: [&[u8]; 9] = [
        b"",
        b"\x00",
        b"\xff\xff\xff\xff",
        // A TLS record of the largest length, a handshake message of 16 MiB, an SSLv2 hello.
        &[&[0x16, 3, 1, 0xff, 0xff][..], &[0; 4096]].concat(),
        &[&[0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 4096]].concat(),
        b"\x80\x2e\x01\x00\x02",
        b"\x01pdauth1",
        control,
        b"POST /pdserve.control.v1.Worker/Control HTTP/1.1\r\nhost: x\r\n",
    ];
    let closed = async |bytes: &[u8]| {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "never closed after {bytes:?}");
        assert!(answer.len() < 200, "{} bytes for a stranger", answer.len());
    };
    join_all((0..200).map(|number| closed(bytes[number % bytes.len()]))).await;
    let welcomed = control_with(certified(&ca, Role::Scheduler), &address).await;
    assert_eq!(refusal(welcomed.unwrap()), "", "those of the cluster come in as before");
}
