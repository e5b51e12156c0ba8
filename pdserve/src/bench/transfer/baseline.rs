//! The rivals of a hand-over: copying the bytes once, and sending them through a bare TCP socket.

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::ends::Ends;

/// Bytes per write: the size at which loopback is fastest (64 KiB and 16 MiB are up to three times slower).
const WRITE_BYTES: usize = 1 << 20;

/// One thread copies memory to memory, layer by layer.
pub(super) struct PlainCopy {
    from: Vec<u8>,
    to: Vec<u8>,
    layer_bytes: usize,
}

impl PlainCopy {
    pub(super) fn new(layer_bytes: usize, layers: u32) -> Self {
        let bytes = layer_bytes * layers as usize;
        Self { from: vec![1; bytes], to: vec![2; bytes], layer_bytes }
    }

    pub(super) fn run(&mut self) -> Duration {
        let start = Instant::now();
        for (from, to) in self.from.chunks(self.layer_bytes).zip(self.to.chunks_mut(self.layer_bytes)) {
            to.copy_from_slice(black_box(from));
        }
        black_box(&mut self.to);
        start.elapsed()
    }
}

/// A blocking connection over loopback whose other end reads a message into memory and answers with one byte.
pub(super) struct RawSocket {
    stream: TcpStream,
    message: Vec<u8>,
}

impl RawSocket {
    /// The other end reads on D's cores.
    pub(super) fn connect(bytes: usize, ends: &Ends) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        stream.set_nodelay(true)?;
        let (peer, _) = listener.accept()?;
        // It ends when our end of the connection is dropped.
        ends.start_d(|| thread::Builder::new().name("bench-reader".to_owned()).spawn(move || answer(peer, bytes)))??;
        Ok(Self { stream, message: vec![1; bytes] })
    }

    pub(super) fn run(&mut self) -> io::Result<Duration> {
        let start = Instant::now();
        for part in self.message.chunks(WRITE_BYTES) {
            self.stream.write_all(part)?;
        }
        self.stream.read_exact(&mut [0])?;
        Ok(start.elapsed())
    }
}

fn answer(mut peer: TcpStream, bytes: usize) {
    let mut message = vec![0; bytes];
    while peer.read_exact(&mut message).is_ok() && peer.write_all(&[1]).is_ok() {}
}
