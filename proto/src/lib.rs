//! The wire between processes: generated clients and servers, and `convert` (wire <-> types).
//!
//! `control` is the scheduler-worker plane, `kv` the prefill-decode plane. Read the .proto files first: they are the contract.

mod convert;

pub use convert::{WireError, generate_spec, pack, request_key, spec_of};

/// Version of both planes; negotiated as the lower of the two sides, refused below [`PROTOCOL_MIN`].
pub const PROTOCOL: u32 = 1;
/// Oldest peer we still talk to.
pub const PROTOCOL_MIN: u32 = 1;
/// Control messages hold token ids and tickets, never KV bytes.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 4 << 20;

#[allow(unreachable_pub, clippy::all, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod control {
    tonic::include_proto!("pdserve.control.v1");
}

#[allow(unreachable_pub, clippy::all, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod kv {
    tonic::include_proto!("pdserve.kv.v1");
}
