//! What stands between a socket and what is served on it: who may come in, and how long a stranger may take.
//!
//! `credentials` settles who a peer is (cluster secret, mutual TLS) before a byte of anything else is read; `tls` makes
//! certificates of files and follows them when they change, `authority` issues them; `port` bounds what one connection may cost and `deadlines` how long it may wait.

mod authority;
mod credentials;
mod deadlines;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod paced;
mod pinned;
mod port;
mod secret;
mod stream;
mod tls;
mod trust;
mod watched;

pub use authority::{Authority, CA_KEY_FILE, IssueError, Issued};
pub use credentials::{Admitted, Credentials};
pub use deadlines::Deadlines;
pub use error::{AuthError, SetupError};
pub use paced::Paced;
pub use pinned::Pinned;
pub use port::{Guarded, PortBounds, turn_away};
pub use secret::{ClusterSecret, Port, SECRET_VARIABLE};
pub use stream::{PeerReader, PeerStream, PeerWriter};
pub use tls::{CA_FILE, CERTIFICATE_FILE, ClusterTls, KEY_FILE, ServerTls, role_name};
pub use trust::Trust;

#[cfg(test)]
mod tests;
