//! How the processes of a cluster know each other: by a secret, by certificates, or by both, the secret inside TLS.
//!
//! Both ends have proven themselves before a byte of HTTP or a frame is read. Without any of the two everyone is let in, which
//! start-up allows on loopback only.

use std::path::Path;
use std::time::Duration;

use net::TcpStream;
use types::Role;

use crate::secret::{ClusterSecret, MARK_START, Port, TIMEOUT};
use crate::tls::{ClusterTls, TLS_START};
use crate::{AuthError, PeerStream, SetupError};

/// What this process shows its peers, and asks of them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    pub secret: Option<ClusterSecret>,
    pub tls: Option<ClusterTls>,
}

/// A peer that has proven itself.
#[derive(Debug)]
pub struct Admitted {
    pub stream: PeerStream,
    /// As its certificate says; `None` without TLS.
    pub role: Option<Role>,
}

impl Credentials {
    /// From what the flags name; the secret may also come from its variable.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn load(secret_file: Option<&Path>, tls_dir: Option<&Path>, role: Role) -> Result<Self, SetupError> {
        let tls = tls_dir.map(|directory| ClusterTls::load(directory, role)).transpose()?;
        Ok(Self { secret: ClusterSecret::load(secret_file)?, tls })
    }

    /// Whether a peer must prove anything.
    pub fn any(&self) -> bool {
        self.secret.is_some() || self.tls.is_some()
    }

    /// Whether a connection that begins with this byte wants to prove something; no HTTP request does.
    pub fn is_proof(first: u8) -> bool {
        first == MARK_START || first == TLS_START
    }

    /// The side that connects, to a process of role `to`; `me` names this one to the other's log.
    ///
    /// # Errors
    /// See [`AuthError`]; the connection is closed.
    pub async fn connect(&self, stream: TcpStream, to: Role, port: Port, me: &str) -> Result<PeerStream, AuthError> {
        within(async {
            let mut stream = match &self.tls {
                Some(tls) => tls.connect(stream, to).await?,
                None => PeerStream::Plain(stream),
            };
            if let Some(secret) = &self.secret {
                secret.connect(&mut stream, port, me).await?;
            }
            Ok(stream)
        })
        .await
    }

    /// The side that listens: the peer proves itself before anything else of it is read.
    ///
    /// # Errors
    /// See [`AuthError`]; the connection is closed.
    pub async fn accept(&self, stream: TcpStream, port: Port, me: &str) -> Result<Admitted, AuthError> {
        within(async {
            let (mut stream, role) = match &self.tls {
                Some(tls) => tls.accept(stream).await.map(|(stream, role)| (stream, Some(role)))?,
                None => (PeerStream::Plain(stream), None),
            };
            // Decode instances never connect; only prefill instances bring KV.
            match role {
                Some(found @ Role::Decode) => return Err(AuthError::WrongRole { found }),
                Some(found @ Role::Scheduler) if port == Port::Kv => return Err(AuthError::WrongRole { found }),
                _ => {}
            }
            if let Some(secret) = &self.secret {
                secret.accept(&mut stream, port, me).await?;
            }
            Ok(Admitted { stream, role })
        })
        .await
    }

    /// Takes changed certificates over, for ever.
    pub async fn keep_fresh(self, every: Duration) {
        match self.tls {
            Some(tls) => tls.keep_fresh(every).await,
            None => std::future::pending().await,
        }
    }
}

async fn within<T>(exchange: impl Future<Output = Result<T, AuthError>>) -> Result<T, AuthError> {
    tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or(Err(AuthError::Late))
}
