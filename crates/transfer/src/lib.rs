//! Moves KV blocks from a prefill instance (P) to a decode instance (D).
//!
//! D opens a [`Landing`] and gives its ticket away; P begins an [`Outgoing`] with that ticket, reports layers as they are computed,
//! and its connection to D pushes the bytes meanwhile. D acknowledges each piece once it is checked and written, and commits when
//! all have arrived. Nothing is written for a ticket that is not open, and nothing is served that was not checked.
//!
//! Start reading with `sender.rs` (the life of a hand-over on P) and `receiver.rs` (on D); `transport/` has one file per way
//! to carry a frame.

mod bounds;
mod config;
mod connection;
mod counters;
mod coverage;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod handshake;
mod landing;
mod piece;
mod receiver;
mod sender;
mod serve;
mod shipment;
mod ticket;
mod transport;

pub use bounds::KvBounds;
pub use config::{TransferConfig, TransportKind};
pub use counters::Counters;
pub use error::{Refusal, TransferError};
pub use landing::{Landing, LandingRequest, LandingStats};
pub use receiver::{KvReceiver, Listening};
pub use sender::{KvSender, Outgoing, TransferStats};
pub use transport::grpc::{GRPC_FRAME_BYTES, GRPC_WINDOW_BYTES, GrpcDoor};

#[cfg(test)]
mod tests;
