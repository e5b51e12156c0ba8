//! What the public port bears, whoever sends it. Every bound can be set; `docs/bounds.md` is written from this table.

use std::time::Duration;

types::bounds! {
    /// Bounds of the public port.
    pub struct Bounds {
        /// Bytes of a URL.
        url_bytes: Bytes = 8 << 10, "414";
        /// From a request's head to the end of its body.
        body_read: Time = Duration::from_secs(30), "400, closed";
        /// Bytes of all bodies that are arriving; the first 64 KiB of each do not count.
        arriving_bytes: Bytes = 256 << 20, "429 with Retry-After, at once";
        /// Requests in flight.
        requests: Count = 4096, "429 with Retry-After, at once";
        /// Requests waiting for room on the instances.
        waiting: Count = 1024, "429 with Retry-After, at once";
        /// Text that a reader may lag behind.
        unread_bytes: Bytes = 256 << 10, "the stream is cancelled";
        /// Bytes that the kernel keeps of what a reader has not taken; as much again is its bookkeeping.
        socket_bytes: Bytes = 128 << 10, "writes wait, for write_progress at most";
        /// Silence in a stream of events.
        silence: Time = Duration::from_secs(15), "a comment line is sent, so that nothing between takes the stream for dead";
        /// Answers of /v1/responses that are kept.
        stored_answers: Count = 1024, "the oldest is forgotten";
        /// Bytes of the answers of /v1/responses that are kept.
        stored_bytes: Bytes = 64 << 20, "the oldest are forgotten";
        /// Attempts at one request (or, once it has text, at one choice).
        attempts: Count = 4, "503 with Retry-After";
        with
        /// What one request may ask for.
        request: openai::Bounds;
        /// What one connection may cost.
        port: edge::PortBounds;
    }
}
