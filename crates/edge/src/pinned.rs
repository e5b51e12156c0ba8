//! A client that believes one certificate and no other, whatever names it carries: for who has the server's own file at hand.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use crate::tls::{certificates, provider, reason, unfit};
use crate::{AuthError, PeerStream, SetupError};

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pinned(Arc<ClientConfig>);

impl Pinned {
    /// Believes the first certificate of a PEM file.
    ///
    /// # Errors
    /// A file that cannot be read or holds no certificate.
    pub fn load(certificate: &Path) -> Result<Self, SetupError> {
        let failed =
            |error: std::io::Error| SetupError::File { path: certificate.to_owned(), reason: error.to_string() };
        let pem = std::fs::read(certificate).map_err(failed)?;
        let certificate_der = certificates(certificate, &pem)?.swap_remove(0);
        let verifier = Verifier { certificate: certificate_der, provider: provider() };
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| unfit(certificate, error))?;
        let config = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// # Errors
    /// Nobody listens, the server shows another certificate, or speaks no TLS.
    pub async fn connect(&self, address: SocketAddr) -> Result<PeerStream, AuthError> {
        let stream = TcpStream::connect(address).await.map_err(|error| AuthError::Tls(error.to_string()))?;
        // Not checked, and not sent: it is an address.
        let name = ServerName::from(address.ip());
        let connected = TlsConnector::from(self.0.clone()).connect(name, stream).await;
        connected.map(|stream| PeerStream::Tls(Box::new(stream.into()))).map_err(|error| reason(&error))
    }
}

#[derive(Debug)]
struct Verifier {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match *shown == self.certificate {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
