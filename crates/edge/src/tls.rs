//! TLS from PEM files that may change while we run: HTTPS for clients, mutual TLS between the processes of a cluster.
//!
//! Within a cluster a certificate says which role its holder has, by a name that is the same in every cluster; the cluster is told by its
//! CA. Who connects names the role it wants to reach, and who listens learns the role of its peer.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use net::TcpStream;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use types::Role;

use crate::watched::Watched;
use crate::{AuthError, PeerStream, SetupError};

/// In a cluster directory: the certificates of the CA, what a role shows of itself, and its key. Kubernetes names them so as well.
pub const CA_FILE: &str = "ca.crt";
pub const CERTIFICATE_FILE: &str = "tls.crt";
pub const KEY_FILE: &str = "tls.key";

/// First byte of a TLS connection (a handshake record); no HTTP request begins with it.
pub(crate) const TLS_START: u8 = 0x16;

const ROLES: [Role; 3] = [Role::Scheduler, Role::Prefill, Role::Decode];

/// The DNS name by which a certificate says that its holder has this role.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Scheduler => "scheduler.pdserve.internal",
        Role::Prefill => "prefill.pdserve.internal",
        Role::Decode => "decode.pdserve.internal",
    }
}

/// HTTPS: a certificate for clients to check. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls(Arc<Watched<Arc<ServerConfig>>>);

/// Mutual TLS: what a process of the cluster shows, and whom it believes. Cheap to clone.
#[derive(Clone)]
pub struct ClusterTls(Arc<Watched<Both>>);

/// A process listens and connects with the same certificate.
struct Both {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls(..)")
    }
}

impl fmt::Debug for ClusterTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterTls(..)")
    }
}

impl ServerTls {
    /// From PEM files: the certificate with those between it and its CA, and its key.
    ///
    /// # Errors
    /// A file that cannot be read or is no PEM, a key that is not the certificate's.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, SetupError> {
        let files = vec![certificate.to_owned(), key.to_owned()];
        let paths = files.clone();
        let make = move |contents: &[Vec<u8>]| {
            let shown = Shown::read(&paths[0], &contents[0], &paths[1], &contents[1])?;
            let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
            let builder = builder.map_err(|error| unfit(&paths[0], error))?.with_no_client_auth();
            let config = builder.with_single_cert(shown.chain, shown.key);
            let mut config = config.map_err(|error| unfit(&paths[0], error))?;
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Ok(Arc::new(config))
        };
        Watched::load(files, make).map(|watched| Self(Arc::new(watched)))
    }

    /// A client's handshake; how long it may take is the caller's business.
    ///
    /// # Errors
    /// It speaks no TLS, or none that we speak.
    pub async fn accept(&self, stream: TcpStream) -> Result<PeerStream, AuthError> {
        let accepted = TlsAcceptor::from((*self.0.current()).clone()).accept(stream).await;
        accepted.map(|stream| PeerStream::Tls(Box::new(stream.into()))).map_err(|error| reason(&error))
    }

    /// Takes changed files over, for ever.
    pub async fn keep_fresh(self, every: Duration) {
        self.0.keep_fresh("--tls-cert", every).await;
    }
}

impl ClusterTls {
    /// From a directory with [`CA_FILE`], [`CERTIFICATE_FILE`] and [`KEY_FILE`], as `pdserve certs` writes one per role.
    ///
    /// # Errors
    /// A file that cannot be read or is no PEM, a key that is not the certificate's, a certificate that does not name `role`.
    pub fn load(directory: &Path, role: Role) -> Result<Self, SetupError> {
        let files = [CA_FILE, CERTIFICATE_FILE, KEY_FILE].map(|name| directory.join(name)).to_vec();
        let paths = files.clone();
        let make = move |contents: &[Vec<u8>]| Both::make(&paths, contents, role);
        Watched::load(files, make).map(|watched| Self(Arc::new(watched)))
    }

    /// Looks at the files at once; what it came to, for tests.
    #[cfg(test)]
    pub(crate) fn look(&self) -> String {
        format!("{:?}", self.0.look())
    }

    /// The side that connects, to a process of that role.
    pub(crate) async fn connect(&self, stream: TcpStream, to: Role) -> Result<PeerStream, AuthError> {
        let name = ServerName::try_from(role_name(to)).map_err(|error| AuthError::Tls(error.to_string()))?;
        let connected = TlsConnector::from(self.0.current().client.clone()).connect(name, stream).await;
        connected.map(|stream| PeerStream::Tls(Box::new(stream.into()))).map_err(|error| reason(&error))
    }

    /// The side that listens; which role the peer has.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Result<(PeerStream, Role), AuthError> {
        let accepted = TlsAcceptor::from(self.0.current().server.clone()).accept(stream).await;
        let stream = TlsStream::from(accepted.map_err(|error| reason(&error))?);
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let role = certificate.and_then(role_of).ok_or(AuthError::NoRole)?;
        Ok((PeerStream::Tls(Box::new(stream)), role))
    }

    /// Takes changed files over, for ever.
    pub async fn keep_fresh(self, every: Duration) {
        self.0.keep_fresh("--cluster-tls-dir", every).await;
    }
}

impl Both {
    /// TLS 1.3 alone: all peers are of our kind.
    fn make(paths: &[PathBuf], contents: &[Vec<u8>], role: Role) -> Result<Self, SetupError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&paths[0], &contents[0])? {
            roots.add(certificate).map_err(|error| unfit(&paths[0], error))?;
        }
        let roots = Arc::new(roots);
        let shown = Shown::read(&paths[1], &contents[1], &paths[2], &contents[2])?;
        if shown.chain.first().and_then(role_of) != Some(role) {
            let reason = format!("does not name {}; `pdserve certs` makes a directory for each role", role_name(role));
            return Err(SetupError::Certificate { path: paths[1].clone(), reason });
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build();
        let verifier = verifier.map_err(|error| unfit(&paths[0], error))?;
        let unfit = |error| unfit(&paths[1], error);
        let server =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).map_err(unfit)?;
        let server = server.with_client_cert_verifier(verifier);
        let mut server = server.with_single_cert(shown.chain.clone(), shown.key.clone_key()).map_err(unfit)?;
        // Connections live long; none is taken up again on the word of an old certificate.
        server.send_tls13_tickets = 0;
        let client =
            ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]).map_err(unfit)?;
        let client =
            client.with_root_certificates(roots).with_client_auth_cert(shown.chain, shown.key).map_err(unfit)?;
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

/// What one side shows of itself.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Shown {
    fn read(certificate: &Path, certificate_pem: &[u8], key: &Path, key_pem: &[u8]) -> Result<Self, SetupError> {
        let chain = certificates(certificate, certificate_pem)?;
        let no_key =
            |error| SetupError::Certificate { path: key.to_owned(), reason: format!("no private key in PEM: {error}") };
        Ok(Self { chain, key: PrivateKeyDer::from_pem_slice(key_pem).map_err(no_key)? })
    }
}

pub(crate) fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let failed = |reason: String| SetupError::Certificate { path: path.to_owned(), reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| failed(format!("no certificates in PEM: {error}")))?;
    if found.is_empty() { Err(failed("no certificate in PEM".to_owned())) } else { Ok(found) }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

pub(crate) fn unfit(path: &Path, error: impl fmt::Display) -> SetupError {
    SetupError::Certificate { path: path.to_owned(), reason: error.to_string() }
}

fn role_of(certificate: &CertificateDer<'_>) -> Option<Role> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let names = |role: &Role| {
        let name = ServerName::try_from(role_name(*role));
        name.is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    };
    ROLES.into_iter().find(names)
}

/// Why a handshake failed: that the peer speaks no TLS is said in our words.
pub(crate) fn reason(error: &std::io::Error) -> AuthError {
    use tokio_rustls::rustls::Error as Tls;
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) {
        Some(Tls::InvalidMessage(_)) => AuthError::NoTls,
        Some(error) => AuthError::Tls(error.to_string()),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            AuthError::Tls("closed during the handshake".to_owned())
        }
        None => AuthError::Tls(error.to_string()),
    }
}
