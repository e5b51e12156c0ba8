//! HTTP/2 frames by hand: what no client library would send.

use tokio::io::{AsyncRead, AsyncReadExt};

/// What a connection begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames, a flag, and a reason to reset a stream.
pub const RESET: u8 = 3;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const ACK: u8 = 1;
pub const REFUSED_STREAM: u8 = 7;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame of any kind.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Our settings, empty.
pub fn settings() -> Vec<u8> {
    frame(4, 0, 0, &[])
}

/// The head of `GET path`, in HPACK without any table: method and scheme from the static one, the rest as it is.
pub fn get_block(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend([0x01, 1, b'x']);
    block
}

/// A whole request without a body.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(1, END_STREAM | END_HEADERS, stream, &get_block(path))
}

/// The head of `POST path` with a gRPC content type, whose body never comes.
pub fn open_post(stream: u32, path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    block.extend([0x01, 1, b'x']);
    // Name 31 of the static table, as a literal.
    block.extend([0x0f, 0x10, b"application/grpc".len() as u8]);
    block.extend(b"application/grpc");
    frame(1, END_HEADERS, stream, &block)
}

/// The start of a head that never ends.
pub fn endless_headers(stream: u32, path: &str) -> Vec<u8> {
    frame(1, END_STREAM, stream, &get_block(path))
}

/// More of it: one header of 1 KiB.
pub fn continuation(stream: u32) -> Vec<u8> {
    let mut block = vec![0x00, 1, b'a', 0x7f, 0x81, 0x07];
    block.extend([b'v'; 1024]);
    frame(9, 0, stream, &block)
}

pub fn reset(stream: u32) -> Vec<u8> {
    frame(RESET, 0, stream, &8u32.to_be_bytes())
}

pub fn ping() -> Vec<u8> {
    frame(PING, 0, 0, &[0; 8])
}

/// The next frame: its kind, flags, stream and payload.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> (u8, u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.expect("the connection is open");
    let [a, b, c, kind, flags, number @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.expect("a whole frame");
    (kind, flags, u32::from_be_bytes(number), payload)
}
