//! Which transport a pair uses: the best that both sides offer and that turns out to work.

use std::time::Duration;

use futures::StreamExt;
use kv::KvStore;
use proto::kv::kv_frame::Body as Frame;
use proto::kv::kv_reply::Body as Reply;
use proto::kv::{KvHello, KvReply, KvWelcome};
use tokio::time::timeout;

use super::{Link, grpc, host_id, inproc, shm, tcp};
use crate::handshake::{self, Peer};
use crate::piece::Carriage;
use crate::ticket::Endpoint;
use crate::{TransferConfig, TransferError, TransportKind};

/// For D's answer to the hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that has shaken hands.
pub(crate) struct Connected {
    pub(crate) link: Link,
    pub(crate) kind: TransportKind,
    pub(crate) address: String,
    /// Bytes that D lets us have unacknowledged.
    pub(crate) credit: u64,
    pub(crate) carriage: Carriage,
}

/// A transport to try, or why it is not tried.
type Candidate<'a> = Result<&'a Endpoint, (TransportKind, &'static str)>;

/// Every transport, best first, with what speaks against it before anything is tried.
fn candidates<'a>(
    endpoints: &'a [Endpoint],
    we_offer: impl Fn(TransportKind) -> bool,
    our_host: &str,
    is_here: impl Fn(&str) -> bool,
) -> Vec<Candidate<'a>> {
    let judge = |kind| {
        let endpoint =
            endpoints.iter().find(|endpoint| endpoint.kind == kind).ok_or((kind, "not offered by the peer"))?;
        let against = match kind {
            _ if !we_offer(kind) => Some("not offered by us"),
            TransportKind::Inproc if !is_here(&endpoint.address) => Some("another process"),
            TransportKind::Shm if our_host.is_empty() || endpoint.host_id != our_host => Some("another host"),
            _ => None,
        };
        against.map_or(Ok(endpoint), |reason| Err((kind, reason)))
    };
    TransportKind::ALL.into_iter().map(judge).collect()
}

/// Connects by the first transport that works. `only` is the one that was chosen for this process of the peer before.
///
/// # Errors
/// `Mismatch` when the two can never exchange KV, `PeerGone` when what was tried failed, `NoTransport` when nothing could be tried.
pub(crate) async fn connect(
    config: &TransferConfig,
    store: &dyn KvStore,
    hello: &KvHello,
    peer: &Peer,
    endpoints: &[Endpoint],
    only: Option<TransportKind>,
) -> Result<Connected, TransferError> {
    let we_offer = |kind| config.offers(kind) && only.is_none_or(|only| only == kind);
    // Why each better transport is not used: not to be tried, or tried in vain.
    let (mut unfit, mut failed) = (Vec::new(), Vec::new());
    let mut address = None;
    for candidate in candidates(endpoints, we_offer, host_id(), inproc::is_here) {
        let endpoint = match candidate {
            Ok(endpoint) => endpoint,
            Err((kind, reason)) => {
                unfit.push(format!("{kind}: {reason}"));
                continue;
            }
        };
        match shake(config, store, hello.clone(), peer, endpoint).await {
            Ok(connected) => {
                let (kind, address) = (connected.kind, &connected.address);
                let passed = [unfit, failed].concat().join(", ");
                tracing::info!(peer = %peer.instance, transport = %kind, address, passed, "kv transport chosen");
                return Ok(connected);
            }
            Err(TransferError::PeerGone { reason, .. }) => {
                failed.push(format!("{}: {reason}", endpoint.kind));
                address = Some(&endpoint.address);
            }
            Err(error) => return Err(error),
        }
    }
    Err(match address {
        Some(address) => peer.gone(address, failed.join(", ")),
        None => TransferError::NoTransport { peer: peer.instance.clone(), tried: unfit.join(", ") },
    })
}

/// Connects to one endpoint and shakes hands.
async fn shake(
    config: &TransferConfig,
    store: &dyn KvStore,
    mut hello: KvHello,
    peer: &Peer,
    endpoint: &Endpoint,
) -> Result<Connected, TransferError> {
    let Endpoint { kind, address, .. } = endpoint;
    let linked = match kind {
        TransportKind::Inproc => inproc::connect(address, store, &mut hello),
        TransportKind::Shm => shm::connect(config, address, store, &mut hello).await,
        TransportKind::Tcp => tcp::connect(config, address).await,
        TransportKind::Grpc => grpc::connect(config, address).await,
    };
    let mut link = linked.map_err(|reason| peer.gone(address, reason))?;
    let carriage = if hello.shared.is_some() { Carriage::Fetched } else { Carriage::Sent };
    let welcome = greet(&mut link, hello).await.map_err(|reason| peer.gone(address, reason))?;
    // D has the memory open, or never will.
    link.offer = None;
    let credit = handshake::accept(&welcome, peer, address)?;
    if !welcome.shm_refusal.is_empty() {
        return Err(peer.gone(address, format!("its view of our memory: {}", welcome.shm_refusal)));
    }
    Ok(Connected { link, kind: *kind, address: address.clone(), credit, carriage })
}

async fn greet(link: &mut Link, hello: KvHello) -> Result<KvWelcome, String> {
    link.sink.send(Frame::Hello(hello), &mut Vec::new()).await?;
    let answer = timeout(WELCOME_TIMEOUT, link.replies.next()).await;
    match answer.map_err(|_| "no answer to the hello".to_owned())? {
        Some(Ok(KvReply { body: Some(Reply::Welcome(welcome)) })) => Ok(welcome),
        Some(Ok(_)) => Err("the first answer is not a welcome".to_owned()),
        Some(Err(reason)) => Err(reason),
        None => Err("closed before the handshake".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "host-a";

    /// The kinds tried, in order, by a sender on host-a that knows only the in-process name `here`.
    fn tried(endpoints: &[(TransportKind, &str, &str)], ours: &[TransportKind]) -> Vec<TransportKind> {
        let endpoint = |&(kind, address, host): &(TransportKind, &str, &str)| Endpoint {
            kind,
            address: address.to_owned(),
            host_id: host.to_owned(),
        };
        let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
        let candidates = candidates(&endpoints, |kind| ours.contains(&kind), HOST, |name| name == "here");
        candidates.into_iter().filter_map(|candidate| candidate.ok().map(|endpoint| endpoint.kind)).collect()
    }

    #[test]
    fn the_best_that_both_offer_comes_first() {
        use TransportKind::{Grpc, Inproc, Shm, Tcp};
        let all = TransportKind::ALL;
        let near = [(Grpc, "g", HOST), (Tcp, "t", HOST), (Shm, "t", HOST), (Inproc, "here", HOST)];
        let far = [(Inproc, "there", "host-b"), (Shm, "t", "host-b"), (Tcp, "t", "host-b"), (Grpc, "g", "host-b")];
        let unknown = [(Shm, "t", ""), (Tcp, "t", "")];
        assert_eq!(tried(&near, &all), all);
        assert_eq!(tried(&near, &[Shm]), [Shm]);
        assert_eq!(tried(&far, &all), [Tcp, Grpc]);
        assert_eq!(tried(&far, &[Inproc, Shm]), []);
        assert_eq!(tried(&unknown, &all), [Tcp]);
    }
}
