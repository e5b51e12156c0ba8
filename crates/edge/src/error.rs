//! Why a process cannot take part (its files are not right), and why a peer is refused.

use std::path::PathBuf;

use types::Role;

use crate::secret::{SECRET_BYTES_MAX, SECRET_BYTES_MIN, SECRET_VARIABLE, TIMEOUT};

/// A secret or certificate that cannot be used. No text holds any of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    #[error("--cluster-secret-file {}: {reason}", path.display())]
    SecretFile { path: PathBuf, reason: String },
    #[error(
        "{place}: {found} bytes, expected {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}; `openssl rand -hex 32` makes one"
    )]
    SecretLength { place: String, found: usize },
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    /// The files can be read, but do not belong together.
    #[error("{}: {reason}", path.display())]
    Certificate { path: PathBuf, reason: String },
}

/// Why a peer is refused, or refuses us.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AuthError {
    #[error("no cluster secret offered; give all roles the same {SECRET_VARIABLE} or --cluster-secret-file")]
    NoMark,
    #[error("not the same cluster secret; give all roles the same {SECRET_VARIABLE} or --cluster-secret-file")]
    Proof,
    #[error(
        "closed while the cluster secret was proven: the other side has none or another one; give all roles the same {SECRET_VARIABLE} or --cluster-secret-file"
    )]
    Closed,
    #[error("the peer did not prove itself within {} s", TIMEOUT.as_secs())]
    Late,
    #[error("the peer speaks no TLS; give all roles --cluster-tls-dir")]
    NoTls,
    #[error("TLS: {0}")]
    Tls(String),
    #[error("the peer's certificate is for {found}, which has no business on this port")]
    WrongRole { found: Role },
    #[error("the peer's certificate names no role; `pdserve certs` makes certificates that do")]
    NoRole,
}
