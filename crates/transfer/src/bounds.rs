//! What a KV port bears, whoever is at the other end. `docs/bounds.md` is written from this table.

use std::time::Duration;

use crate::piece;

types::bounds! {
    /// Bounds of the KV plane on a decode instance.
    pub struct KvBounds {
        /// Connections to the KV port open at once.
        connections: Count = 256, "closed at once";
        /// Bytes of a message over TCP; payloads are apart.
        message_bytes: Bytes = 4096, "closed";
        /// Bytes of a message over gRPC, payload included.
        grpc_message_bytes: Bytes = 8 * piece::PIECE_BYTES, "the stream is ended";
        /// From proving itself to the first message.
        hello: Time = Duration::from_secs(5), "closed";
        /// For the payload of a piece whose header has arrived, and for a peer to take its replies.
        payload: Time = Duration::from_secs(30), "closed, what was arriving has failed";
        /// Bytes that a peer may have unacknowledged on one connection: keeps a link of 10 GB/s busy for 3 ms without an answer.
        credit_bytes: Bytes = 32 << 20, "told to the peer, which waits";
    }
}
