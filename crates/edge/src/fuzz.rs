//! What a stranger's bytes reach before he has proven anything, without a socket: entries for the fuzz targets.

use crate::secret::{ClusterSecret, MARK, NAME_BYTES, NONCE_BYTES, Port};
use crate::{AuthError, SetupError};

/// Both sides of the exchange hear `bytes`; true if they were a whole one for the side that listens.
///
/// # Errors
/// Never: the secret is long enough.
///
/// # Panics
/// When somebody who does not know the secret is let in.
pub async fn exchange(bytes: &[u8]) -> Result<bool, SetupError> {
    let secret = ClusterSecret::new("a secret that nobody knows", "fuzz")?;
    let says = || tokio::io::join(bytes, tokio::io::sink());
    let listened = secret.accept(&mut says(), Port::Kv, "decode-0").await;
    let connected = secret.connect(&mut says(), Port::Kv, "prefill-0").await;
    assert!(listened.is_err() && connected.is_err(), "{listened:?} {connected:?}");
    Ok(listened == Err(AuthError::Proof))
}

/// A name, a nonce and the proof of another secret.
pub fn exchange_example() -> Vec<u8> {
    [&MARK[..], &[b'n'; NAME_BYTES], &[7; NONCE_BYTES], &[9; 32]].concat()
}
