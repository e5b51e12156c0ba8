//! Shared memory: TCP carries the frames, a file in memory the payloads.
//!
//! The sender owns the file and uses it as a ring: a piece takes the next free stretch and keeps it until D has acknowledged it.
//! Both sides go through `pread`/`pwrite` rather than a mapping, so that a peer that truncates the file causes an error and not
//! a fault. The file loses its name as soon as both have it open, so nothing is left behind by a crash.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use edge::Port;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use proto::kv::kv_frame::Body;
use proto::kv::kv_reply::Body as Reply;
use proto::kv::{KvHello, KvReply};
use tokio::sync::Notify;

use super::{FrameSink, Link, tcp};
use crate::TransferConfig;

/// Room for sixteen pieces: reading and writing overlap, and one pair takes little of /dev/shm.
const RING_BYTES: u64 = 16 << 20;
/// The file's start belongs to the probe; payloads begin at the next page.
const RING_START: u64 = 4096;
const PROBE_BYTES: usize = 16;
/// What a receiver is willing to open is called.
const NAME_PREFIX: &str = "pdserve-kv-";

/// Connects to a receiver and adds the offer of a new file to `hello`.
pub(crate) async fn connect(config: &TransferConfig, address: &str, hello: &mut KvHello) -> Result<Link, String> {
    let (reader, writer) = tcp::dial(config, address, Port::Kv).await?.into_split();
    let (ring, offer) = Ring::create(hello).map_err(|error| format!("no shared file: {error}"))?;
    let ring = Arc::new(ring);
    let replies = {
        let ring = ring.clone();
        tcp::replies(reader, config.bounds.message_bytes).inspect(move |reply| ring.on_reply(reply)).boxed()
    };
    Ok(Link { sink: Box::new(Sink { frames: tcp::Sink::new(writer), ring }), replies, offer: Some(offer) })
}

/// For transports without files: an offer is refused.
pub(crate) fn not_shared(hello: &KvHello) -> Result<(), String> {
    if hello.shm_path.is_empty() { Ok(()) } else { Err("this connection shares no file".to_owned()) }
}

/// Takes the file's name away when dropped.
pub(crate) struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "shared file not removed");
        }
    }
}

/// Where shared files may be: memory first.
fn directories() -> [PathBuf; 2] {
    [PathBuf::from("/dev/shm"), std::env::temp_dir()]
}

struct Sink {
    frames: tcp::Sink,
    ring: Arc<Ring>,
}

impl FrameSink for Sink {
    fn send<'a>(&'a mut self, mut frame: Body, payload: &'a mut Vec<u8>) -> BoxFuture<'a, Result<(), String>> {
        async move {
            if let Body::Piece(piece) = &mut frame {
                piece.shm_offset = Some(self.ring.write(piece.piece, payload).await?);
            }
            self.frames.send(frame, &mut Vec::new()).await
        }
        .boxed()
    }
}

/// The sender's end of the file.
struct Ring {
    file: File,
    stretches: Mutex<Stretches>,
    freed: Notify,
}

impl Ring {
    /// A new file, its memory reserved, described in `hello`.
    fn create(hello: &mut KvHello) -> std::io::Result<(Self, Unlink)> {
        let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
        for directory in directories() {
            let path = directory.join(format!("{NAME_PREFIX}{:032x}", rand::random::<u128>()));
            match Self::create_at(&path, hello) {
                Ok(created) => return Ok(created),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn create_at(path: &Path, hello: &mut KvHello) -> std::io::Result<(Self, Unlink)> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let unlink = Unlink(path.to_owned());
        // Reserved, not only promised: a full /dev/shm shows here and not in the middle of a hand-over.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RING_BYTES)?;
        let probe: [u8; PROBE_BYTES] = rand::random();
        file.write_all_at(&probe, 0)?;
        hello.shm_path = path.to_string_lossy().into_owned();
        hello.shm_bytes = RING_BYTES;
        hello.shm_probe = Bytes::copy_from_slice(&probe);
        let stretches = Mutex::new(Stretches { end: RING_BYTES, held: VecDeque::new() });
        Ok((Self { file, stretches, freed: Notify::new() }, unlink))
    }

    /// Writes a piece's payload where there is room, waiting for acknowledgements if there is none; returns the offset.
    async fn write(&self, piece: u64, payload: &[u8]) -> Result<u64, String> {
        let bytes = payload.len() as u64;
        if bytes > RING_BYTES - RING_START {
            return Err(format!("a piece of {bytes} bytes does not fit into the shared file"));
        }
        let offset = loop {
            if let Some(offset) = self.stretches.lock().take(piece, bytes) {
                break offset;
            }
            self.freed.notified().await;
        };
        self.file.write_all_at(payload, offset).map_err(|error| format!("shared file: {error}"))?;
        Ok(offset)
    }

    /// An answered piece is not read again: its stretch is free.
    fn on_reply(&self, reply: &Result<KvReply, String>) {
        let answered = match reply {
            Ok(KvReply { body: Some(Reply::Ack(ack)) }) => ack.piece,
            Ok(KvReply { body: Some(Reply::Nack(nack)) }) => nack.piece,
            _ => return,
        };
        self.stretches.lock().free(answered);
        self.freed.notify_one();
    }
}

/// Which stretches of the ring are in use, oldest first.
struct Stretches {
    end: u64,
    held: VecDeque<Stretch>,
}

struct Stretch {
    piece: u64,
    range: Range<u64>,
    free: bool,
}

impl Stretches {
    /// The next stretch of `bytes`, behind the newest one or again from the ring's start.
    fn take(&mut self, piece: u64, bytes: u64) -> Option<u64> {
        let offset = match (self.held.front(), self.held.back()) {
            (Some(oldest), Some(newest)) => {
                let (head, tail) = (oldest.range.start, newest.range.end);
                if newest.range.start >= head {
                    if tail + bytes <= self.end {
                        Some(tail)
                    } else {
                        (RING_START + bytes <= head).then_some(RING_START)
                    }
                } else {
                    (tail + bytes <= head).then_some(tail)
                }
            }
            _ => (RING_START + bytes <= self.end).then_some(RING_START),
        }?;
        self.held.push_back(Stretch { piece, range: offset..offset + bytes, free: false });
        Some(offset)
    }

    /// Marks a piece's stretch; it is reused once all older ones are free as well.
    fn free(&mut self, piece: u64) {
        if let Some(stretch) = self.held.iter_mut().find(|stretch| stretch.piece == piece && !stretch.free) {
            stretch.free = true;
        }
        while self.held.front().is_some_and(|stretch| stretch.free) {
            self.held.pop_front();
        }
    }
}

/// The receiver's end of the file.
pub(crate) struct Shared {
    file: File,
    bytes: u64,
}

impl Shared {
    /// Opens what a hello offers. The name comes from the peer, so only our own kind of file is touched: a plain one, private to
    /// our own user, in a directory that we would use.
    pub(crate) fn open(hello: &KvHello) -> Result<Self, String> {
        let path = Path::new(&hello.shm_path);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let place = path.parent().is_some_and(|parent| directories().iter().any(|directory| directory == parent));
        if !place || !name.starts_with(NAME_PREFIX) {
            return Err("not a name that a sender uses".to_owned());
        }
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path);
        let file = file.map_err(|error| format!("cannot open it: {error}"))?;
        let meta = file.metadata().map_err(|error| error.to_string())?;
        let ours = meta.is_file()
            && meta.uid() == rustix::process::geteuid().as_raw()
            && meta.mode() & 0o777 == 0o600
            && meta.len() == hello.shm_bytes;
        if !ours {
            return Err("not a private file of our user with the size told".to_owned());
        }
        let mut probe = [0; PROBE_BYTES];
        file.read_exact_at(&mut probe, 0).map_err(|error| format!("cannot read it: {error}"))?;
        if hello.shm_probe != probe[..] {
            return Err("it does not hold the probe".to_owned());
        }
        Ok(Self { file, bytes: hello.shm_bytes })
    }

    /// Reads a piece's payload.
    pub(crate) fn read(&self, offset: u64, payload: &mut [u8]) -> Result<(), String> {
        let end = offset.checked_add(payload.len() as u64).filter(|&end| offset >= RING_START && end <= self.bytes);
        if end.is_none() {
            return Err(format!("{} bytes at {offset} of a shared file of {} bytes", payload.len(), self.bytes));
        }
        self.file.read_exact_at(payload, offset).map_err(|error| format!("shared file: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_ring_wraps_and_waits_for_the_oldest() {
        let mut ring = Stretches { end: RING_START + 10, held: VecDeque::new() };
        let start = RING_START;
        assert_eq!(ring.take(1, 4), Some(start));
        assert_eq!(ring.take(2, 4), Some(start + 4));
        assert_eq!(ring.take(3, 4), None);
        ring.free(2);
        assert_eq!(ring.take(3, 4), None, "1 is older and still held");
        ring.free(1);
        assert_eq!(ring.take(3, 4), Some(start), "empty: from the start");
        assert_eq!(ring.take(4, 6), Some(start + 4));
        ring.free(3);
        assert_eq!(ring.take(5, 4), Some(start), "wrapped");
        assert_eq!(ring.take(6, 1), None);
    }

    proptest! {
        #[test]
        fn held_stretches_never_overlap(steps in prop::collection::vec((1..7u64, any::<bool>(), 0..4usize), 1..80)) {
            let mut ring = Stretches { end: RING_START + 16, held: VecDeque::new() };
            let mut live: Vec<(u64, Range<u64>)> = Vec::new();
            for (piece, (bytes, free, which)) in steps.into_iter().enumerate() {
                if free && !live.is_empty() {
                    let (piece, _) = live.remove(which % live.len());
                    ring.free(piece);
                } else if let Some(offset) = ring.take(piece as u64, bytes) {
                    let new = offset..offset + bytes;
                    prop_assert!(new.start >= RING_START && new.end <= ring.end);
                    prop_assert!(live.iter().all(|(_, held)| held.end <= new.start || new.end <= held.start));
                    live.push((piece as u64, new));
                }
            }
            live.iter().for_each(|(piece, _)| ring.free(*piece));
            prop_assert!(ring.take(u64::MAX, 16).is_some(), "all of it comes back");
        }
    }

    #[test]
    fn only_our_own_files_are_opened() {
        let mut hello = KvHello::default();
        let (_ring, unlink) = Ring::create(&mut hello).unwrap();
        assert!(Shared::open(&hello).is_ok());
        let cases = [
            (KvHello { shm_path: "/etc/passwd".into(), ..hello.clone() }, "not a name"),
            (KvHello { shm_path: "/dev/shm/other".into(), ..hello.clone() }, "not a name"),
            (KvHello { shm_path: format!("/dev/shm/../{NAME_PREFIX}1"), ..hello.clone() }, "not a name"),
            (KvHello { shm_path: format!("/dev/shm/{NAME_PREFIX}gone"), ..hello.clone() }, "cannot open"),
            (KvHello { shm_bytes: 1, ..hello.clone() }, "size told"),
            (KvHello { shm_probe: vec![0; PROBE_BYTES].into(), ..hello.clone() }, "probe"),
        ];
        for (offer, reason) in cases {
            let refused = Shared::open(&offer).err().unwrap_or_default();
            assert!(refused.contains(reason), "{offer:?}: {refused}");
        }
        drop(unlink);
        assert!(Shared::open(&hello).is_err(), "the name is gone");
    }

    #[test]
    fn reads_stay_within_the_payloads() {
        let mut hello = KvHello::default();
        let (_ring, _unlink) = Ring::create(&mut hello).unwrap();
        let shared = Shared::open(&hello).unwrap();
        for (offset, bytes, ok) in
            [(RING_START, 16, true), (0, 16, false), (RING_BYTES - 8, 16, false), (u64::MAX, 16, false)]
        {
            assert_eq!(shared.read(offset, &mut vec![0; bytes]).is_ok(), ok, "{offset}");
        }
    }
}
