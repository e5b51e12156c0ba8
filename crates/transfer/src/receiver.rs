//! D's side: lands KV that prefill instances push.
//!
//! The life of a hand-over on D:
//! 1. **open** — the worker has leased blocks and opens a [`Landing`]; its ticket carries a fresh capability and our addresses.
//! 2. **arriving** — connections bring pieces in any order. Each is admitted by its header, then read, checked and written under
//!    the site's lock (`landing.rs`), and acknowledged. A damaged one is asked for again.
//! 3. **landed** — layers x heads x tokens are covered exactly.
//! 4. **committed** — the worker has made the sequence visible; P is told and forgets it.
//!
//! From 1 to 3 it may also end as **failed**: lease ran out, P's connection broke, P gave up, a newer attempt of the request was
//! opened, or the Landing was dropped. Whatever comes later is refused by reason and counted.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use edge::{PeerStream, Port};
use kv::{KvLayout, KvStore};
use net::TcpStream;
use parking_lot::Mutex;
use proto::kv::kv_transfer_server::KvTransferServer;
use proto::kv::{Abandon, Piece};
use telemetry::Seldom;
use tokio_util::sync::{CancellationToken, DropGuard};
use types::{RequestId, RequestKey};

use crate::landing::Site;
use crate::ticket::{Endpoint, Ticket, same_capability};
use crate::transport::{grpc, host_id, inproc, tcp};
use crate::{Counters, GrpcDoor, Landing, LandingRequest, Refusal, TransferConfig, TransferError, TransportKind};

/// D's side of the KV plane. Cheap to clone.
#[derive(Clone)]
pub struct KvReceiver {
    registry: Arc<Registry>,
}

/// The doors for TCP, shared memory and in-process peers; dropping it shuts them and ends their connections.
pub struct Listening {
    address: SocketAddr,
    registry: Arc<Registry>,
    endpoints: Vec<Endpoint>,
    _inproc: inproc::Registered,
    _stop: DropGuard,
}

/// What every connection of one receiver shares.
pub(crate) struct Registry {
    pub(crate) config: TransferConfig,
    pub(crate) layout: KvLayout,
    pub(crate) counters: Counters,
    pub(crate) store: Arc<dyn KvStore>,
    /// One open site per request: its newest attempt.
    sites: Mutex<BTreeMap<RequestId, Arc<Site>>>,
    /// Where we can be reached, for tickets.
    endpoints: Mutex<Vec<Endpoint>>,
    connections: AtomicU64,
    refusals: Mutex<Seldom>,
}

impl KvReceiver {
    pub fn new(config: TransferConfig, store: Arc<dyn KvStore>) -> Self {
        let registry = Registry {
            layout: store.layout(),
            config,
            counters: Counters::default(),
            store,
            sites: Mutex::new(BTreeMap::new()),
            endpoints: Mutex::new(Vec::new()),
            connections: AtomicU64::new(0),
            refusals: Mutex::default(),
        };
        Self { registry: Arc::new(registry) }
    }

    /// Opens the TCP door (port 0 = any), which serves shared memory too, and the in-process one. Peers are told `advertise`.
    ///
    /// # Errors
    /// `Listen` when the address cannot be bound.
    pub async fn listen(&self, bind: IpAddr, advertise: IpAddr, port: u16) -> Result<Listening, TransferError> {
        let stop = CancellationToken::new();
        let port = tcp::listen(&self.registry, SocketAddr::new(bind, port), stop.clone()).await?;
        let address = SocketAddr::new(advertise, port);
        let inproc = inproc::register(&self.registry, stop.clone());
        let endpoint = |kind, address: String| Endpoint { kind, address, host_id: host_id().to_owned() };
        let endpoints: Vec<_> = [
            endpoint(TransportKind::Inproc, inproc.name().to_owned()),
            endpoint(TransportKind::Shm, address.to_string()),
            endpoint(TransportKind::Tcp, address.to_string()),
        ]
        .into_iter()
        .filter(|endpoint| self.registry.config.offers(endpoint.kind))
        .collect();
        self.registry.endpoints.lock().extend(endpoints.iter().cloned());
        let registry = self.registry.clone();
        Ok(Listening { address, registry, endpoints, _inproc: inproc, _stop: stop.drop_guard() })
    }

    /// Open landings, and how long each lives on without another sign of P or of whoever vouches for it.
    pub fn leases(&self) -> Vec<(RequestKey, Duration)> {
        self.registry.sites.lock().values().map(|site| (site.key.clone(), site.lease_left())).collect()
    }

    /// The service to mount; tell its address with [`KvReceiver::set_grpc_address`].
    ///
    /// The server that mounts it sets `TCP_NODELAY` (else each hand-over waits 40 ms for a delayed acknowledgement),
    /// [`crate::GRPC_WINDOW_BYTES`] as stream and connection window and [`crate::GRPC_FRAME_BYTES`] as frame size.
    pub fn grpc_service(&self) -> KvTransferServer<GrpcDoor> {
        grpc::service(self.registry.clone())
    }

    /// Where the mounted gRPC service can be reached; from then on tickets offer it.
    pub fn set_grpc_address(&self, address: SocketAddr) {
        let mut endpoints = self.registry.endpoints.lock();
        endpoints.retain(|endpoint| endpoint.kind != TransportKind::Grpc);
        if self.registry.config.offers(TransportKind::Grpc) {
            let (kind, address) = (TransportKind::Grpc, address.to_string());
            endpoints.push(Endpoint { kind, address, host_id: host_id().to_owned() });
        }
    }

    /// Opens the door for one attempt's pieces. An older attempt of the same request fails by it; if a newer or the same one is
    /// open, it is the new Landing that has failed.
    pub fn open(&self, request: LandingRequest) -> Landing {
        let registry = &self.registry;
        let ticket = Ticket {
            key: request.key.clone(),
            capability: rand::random(),
            instance: registry.config.instance.clone(),
            incarnation: registry.config.incarnation,
            tokens: request.tokens.clone(),
            lease: request.lease,
            endpoints: registry.endpoints.lock().clone(),
        };
        let site = Arc::new(Site::new(request, ticket.capability, registry.store.clone()));
        registry.enter(&site);
        Landing::new(site, Arc::downgrade(registry), ticket.encode())
    }

    #[cfg(feature = "fuzz")]
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    pub fn counters(&self) -> &Counters {
        &self.registry.counters
    }

    /// Connections served since start.
    pub fn connections(&self) -> u64 {
        self.registry.connections.load(Ordering::Relaxed)
    }
}

impl Listening {
    /// What peers connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.registry.endpoints.lock().retain(|endpoint| !self.endpoints.contains(endpoint));
    }
}

impl Registry {
    /// The stream of a new TCP connection if its peer is one of ours; before that nothing else of it is read.
    pub(crate) async fn admit(&self, stream: TcpStream, peer: SocketAddr) -> Option<PeerStream> {
        match self.config.credentials.accept(stream, Port::Kv, self.config.instance.as_str()).await {
            Ok(admitted) => Some(admitted.stream),
            Err(error) => {
                self.counters.count_unauthenticated();
                if self.refusals.lock().due(peer.ip(), Instant::now()) {
                    tracing::warn!(%peer, %error, "kv connection refused");
                }
                None
            }
        }
    }

    /// A number for a new connection.
    pub(crate) fn connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// The open site that a piece is for.
    pub(crate) fn site_of(&self, piece: &Piece) -> Result<Arc<Site>, Refusal> {
        let sites = self.sites.lock();
        let site = sites.get(&RequestId::from(piece.request_id.as_str())).ok_or(Refusal::UnknownRequest)?;
        match site.key.epoch.cmp(&piece.epoch) {
            std::cmp::Ordering::Equal => Ok(site.clone()),
            std::cmp::Ordering::Greater => Err(Refusal::Stale),
            std::cmp::Ordering::Less => Err(Refusal::UnknownRequest),
        }
    }

    /// P gives up on an attempt.
    pub(crate) fn abandon(&self, abandon: &Abandon) {
        let request = RequestId::from(abandon.request_id.as_str());
        let site = self.sites.lock().get(&request).cloned();
        let site = site
            .filter(|site| site.key.epoch == abandon.epoch && same_capability(&site.capability, &abandon.capability));
        if let Some(site) = site {
            let reason = format!("abandoned by the prefill instance: {}", abandon.reason);
            site.fail(TransferError::Refused { key: site.key.clone(), reason });
        }
    }

    /// A connection broke: everything that was arriving by it has failed.
    pub(crate) fn lost(&self, connection: u64, error: &TransferError) {
        let sites: Vec<_> = self.sites.lock().values().cloned().collect();
        sites.iter().for_each(|site| site.lost(connection, error));
    }

    /// The landing is dropped: its pieces are unknown from now on.
    pub(crate) fn forget(&self, site: &Arc<Site>) {
        let mut sites = self.sites.lock();
        if sites.get(&site.key.request).is_some_and(|open| Arc::ptr_eq(open, site)) {
            sites.remove(&site.key.request);
        }
    }

    /// Makes `site` the one open site of its request, unless an attempt as new as it is open.
    pub(crate) fn enter(&self, site: &Arc<Site>) {
        let mut sites = self.sites.lock();
        let request = &site.key.request;
        let open = sites.get(request).cloned();
        let (loser, winner) = match &open {
            Some(open) if open.key.epoch >= site.key.epoch => (Some(site), open),
            open => {
                sites.insert(request.clone(), site.clone());
                (open.as_ref(), site)
            }
        };
        drop(sites);
        if let Some(loser) = loser {
            let reason = format!("attempt {} of the request is open", winner.key.epoch);
            loser.fail(TransferError::Refused { key: loser.key.clone(), reason });
        }
    }
}
