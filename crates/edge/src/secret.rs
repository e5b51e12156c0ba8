//! The cluster secret: both ends of a connection prove that they know it, before a byte of anything else is read.
//!
//! ```text
//! client -> server   mark, name, nonce      server -> client   name, nonce
//! client -> server   proof                  server -> client   proof
//! ```
//! All parts have a fixed size, so a stranger makes us parse and allocate nothing. A proof is a keyed hash over who speaks, the port,
//! both names and both nonces: it is of no use on another connection, port or direction. The side that listens proves itself last
//! and so tells a stranger nothing. What follows on the connection is neither encrypted nor signed.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{AuthError, SetupError};

/// Holds the secret itself; a file with it can be named by a flag instead.
pub const SECRET_VARIABLE: &str = "PDSERVE_CLUSTER_SECRET";
/// First byte of a connection that proves the secret; no HTTP request begins with it.
pub(crate) const MARK_START: u8 = MARK[0];

pub(crate) const MARK: [u8; 8] = *b"\x01pdauth1";
pub(crate) const NAME_BYTES: usize = 64;
pub(crate) const NONCE_BYTES: usize = 32;
/// Shortest secret taken: `openssl rand -hex 16` gives 32 characters.
pub(crate) const SECRET_BYTES_MIN: usize = 16;
pub(crate) const SECRET_BYTES_MAX: u64 = 4096;
/// For a peer to prove itself, whatever the way.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// What all processes of a cluster know and nobody else. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret([u8; 32]);

/// Which port the proof is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// The worker's own: control plane and KV over gRPC.
    Worker = 1,
    /// KV over TCP and shared memory.
    Kv = 2,
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(hidden)")
    }
}

impl ClusterSecret {
    /// From text; surrounding white space is no part of it. `place` names its source in errors.
    ///
    /// # Errors
    /// `Length` when it is too short to be one, or too long.
    pub fn new(text: &str, place: impl Into<String>) -> Result<Self, SetupError> {
        let text = text.trim();
        if text.len() < SECRET_BYTES_MIN || text.len() as u64 > SECRET_BYTES_MAX {
            return Err(SetupError::SecretLength { place: place.into(), found: text.len() });
        }
        Ok(Self(blake3::derive_key("pdserve 2026 cluster secret", text.as_bytes())))
    }

    /// From the file if one is named, else from [`SECRET_VARIABLE`]; `None` without both.
    ///
    /// # Errors
    /// The file cannot be read, or what was found is no secret.
    pub fn load(file: Option<&Path>) -> Result<Option<Self>, SetupError> {
        let Some(path) = file else {
            let text = std::env::var(SECRET_VARIABLE).ok().filter(|text| !text.trim().is_empty());
            return text.map(|text| Self::new(&text, SECRET_VARIABLE)).transpose();
        };
        let failed = |reason: String| SetupError::SecretFile { path: path.to_owned(), reason };
        let bytes = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
        if bytes > SECRET_BYTES_MAX {
            return Err(failed(format!("{bytes} bytes, at most {SECRET_BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        Self::new(&text, format!("--cluster-secret-file {}", path.display())).map(Some)
    }

    /// The side that connects: proves itself to whoever listens, and has that proven. Returns the listener's name.
    ///
    /// # Errors
    /// See [`AuthError`]; the connection is of no use then.
    pub(crate) async fn connect(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        port: Port,
        me: &str,
    ) -> Result<String, AuthError> {
        let (client, nonce) = (name(me), rand::random::<[u8; NONCE_BYTES]>());
        send(stream, &[&MARK[..], &client, &nonce].concat()).await?;
        let (server, server_nonce) = (receive(stream).await?, receive(stream).await?);
        let said = Said { port, client, server, nonces: [nonce, server_nonce] };
        send(stream, self.proof(CLIENT, &said).as_bytes()).await?;
        self.check(SERVER, &said, receive(stream).await?)?;
        Ok(shown(&server))
    }

    /// The side that listens: the peer proves itself first. Returns the peer's name.
    ///
    /// # Errors
    /// See [`AuthError`]; nothing the peer sends after is to be read.
    pub(crate) async fn accept(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        port: Port,
        me: &str,
    ) -> Result<String, AuthError> {
        if receive(stream).await? != MARK {
            return Err(AuthError::NoMark);
        }
        let (client, nonce) = (receive(stream).await?, receive(stream).await?);
        let (server, server_nonce) = (name(me), rand::random::<[u8; NONCE_BYTES]>());
        send(stream, &[&server[..], &server_nonce].concat()).await?;
        let said = Said { port, client, server, nonces: [nonce, server_nonce] };
        self.check(CLIENT, &said, receive(stream).await?)?;
        send(stream, self.proof(SERVER, &said).as_bytes()).await?;
        Ok(shown(&client))
    }

    fn proof(&self, speaker: u8, said: &Said) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[speaker, said.port as u8]).update(&said.client).update(&said.server);
        hasher.update(&said.nonces[0]).update(&said.nonces[1]).finalize()
    }

    /// Compares in constant time, as `blake3::Hash` does.
    fn check(&self, speaker: u8, said: &Said, proof: [u8; 32]) -> Result<(), AuthError> {
        if self.proof(speaker, said) == blake3::Hash::from_bytes(proof) { Ok(()) } else { Err(AuthError::Proof) }
    }
}

const CLIENT: u8 = b'c';
const SERVER: u8 = b's';

/// What both sides have said before a proof.
struct Said {
    port: Port,
    client: [u8; NAME_BYTES],
    server: [u8; NAME_BYTES],
    nonces: [[u8; NONCE_BYTES]; 2],
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), AuthError> {
    stream.write_all(bytes).await.map_err(|_| AuthError::Closed)
}

async fn receive<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> Result<[u8; N], AuthError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await.map_err(|_| AuthError::Closed)?;
    Ok(bytes)
}

/// A name at its fixed size: cut or filled up with zeros.
fn name(name: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    let length = name.len().min(NAME_BYTES);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

fn shown(name: &[u8; NAME_BYTES]) -> String {
    String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> ClusterSecret {
        ClusterSecret::new(text, "test").unwrap()
    }

    const OURS: &str = "0123456789abcdef";
    const THEIRS: &str = "fedcba9876543210";

    #[tokio::test]
    async fn both_sides_must_know_the_secret_and_mean_the_same_port() {
        let (names, other) = (Ok("prefill-0".to_owned()), Err(AuthError::Proof));
        let cases = [
            (OURS, OURS, Port::Kv, names.clone()),
            (OURS, " 0123456789abcdef\n", Port::Kv, names),
            (OURS, THEIRS, Port::Kv, other.clone()),
            (OURS, OURS, Port::Worker, other),
        ];
        for (listens, connects, port, expected) in cases {
            let (mut near, mut far) = tokio::io::duplex(1024);
            let (listens, connects) = (secret(listens), secret(connects));
            let accepting = async {
                let accepted = listens.accept(&mut near, Port::Kv, "decode-0").await;
                drop(near);
                accepted
            };
            let (accepted, connected) = tokio::join!(accepting, connects.connect(&mut far, port, "prefill-0"));
            let told = accepted.as_ref().map(|_| "decode-0".to_owned()).map_err(|_| AuthError::Closed);
            assert_eq!((accepted, connected), (expected, told));
        }
    }

    #[tokio::test]
    async fn a_listener_that_only_repeats_what_it_hears_proves_nothing() {
        let (mut near, mut far) = tokio::io::duplex(1024);
        let mirror = async {
            let mut heard = [0; MARK.len()];
            far.read_exact(&mut heard).await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(far);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        };
        let secret = secret(OURS);
        let connecting = async {
            let connected = secret.connect(&mut near, Port::Kv, "x").await;
            drop(near);
            connected
        };
        assert_eq!(tokio::join!(connecting, mirror).0, Err(AuthError::Proof));
    }

    #[tokio::test]
    async fn strangers_are_refused_by_their_first_bytes() {
        let hello = [&MARK[..], &[0; NAME_BYTES + NONCE_BYTES]].concat();
        let cases: [(&[u8], AuthError); 5] = [
            (b"", AuthError::Closed),
            (b"GET / HTTP/1.1\r\n\r\n", AuthError::NoMark),
            (&[0xff; 4096], AuthError::NoMark),
            (&hello, AuthError::Closed),
            (&[&hello[..], &[7; 32]].concat(), AuthError::Proof),
        ];
        for (bytes, expected) in cases {
            let (mut near, mut far) = tokio::io::duplex(8192);
            far.write_all(bytes).await.unwrap();
            far.shutdown().await.unwrap();
            assert_eq!(secret(OURS).accept(&mut near, Port::Worker, "w").await, Err(expected), "{bytes:?}");
        }
    }

    #[test]
    fn a_secret_is_long_enough_and_never_shown() {
        for (text, found) in [("", 0), ("short", 5), (" 0123456789abcde ", 15)] {
            let error = ClusterSecret::new(text, "here").unwrap_err().to_string();
            assert!(error.starts_with(&format!("here: {found} bytes")), "{error}");
        }
        assert!(ClusterSecret::new(&"x".repeat(5000), "here").is_err());
        assert_eq!(format!("{:?}", secret(OURS)), "ClusterSecret(hidden)");
        let missing = ClusterSecret::load(Some(Path::new("/nonexistent/secret"))).unwrap_err().to_string();
        assert!(missing.starts_with("--cluster-secret-file /nonexistent/secret: "), "{missing}");
    }
}
