//! A client of public HTTPS ports that believes what one CA has signed.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::tls::{certificates, provider, reason, unfit};
use crate::{AuthError, PeerStream, SetupError};

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// Believes the CA certificates of a PEM file.
    ///
    /// # Errors
    /// A file that cannot be read or holds no certificate of a CA.
    pub fn load(ca: &Path) -> Result<Self, SetupError> {
        let failed = |error: std::io::Error| SetupError::File { path: ca.to_owned(), reason: error.to_string() };
        let pem = std::fs::read(ca).map_err(failed)?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca, &pem)? {
            roots.add(certificate).map_err(|error| unfit(ca, error))?;
        }
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| unfit(ca, error))?;
        Ok(Self(Arc::new(builder.with_root_certificates(roots).with_no_client_auth())))
    }

    /// # Errors
    /// Nobody listens, `host` is no name, or the server shows a certificate that is not for it or not of the CA, or speaks no TLS.
    pub async fn connect(&self, address: SocketAddr, host: &str) -> Result<PeerStream, AuthError> {
        let stream = TcpStream::connect(address).await.map_err(|error| AuthError::Tls(error.to_string()))?;
        let name = ServerName::try_from(host.to_owned()).map_err(|error| AuthError::Tls(format!("{host}: {error}")))?;
        let connected = TlsConnector::from(self.0.clone()).connect(name, stream).await;
        connected.map(|stream| PeerStream::Tls(Box::new(stream.into()))).map_err(|error| reason(&error))
    }
}
