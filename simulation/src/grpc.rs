//! One direction of a control connection, taken apart and put together again: HTTP/2 frames, and in those with data the messages of its
//! one gRPC stream. Everything else goes on as it came.

use net::sim::Tamper;

/// What the side that opens a connection says first.
pub(crate) const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
/// Every peer takes frames of this size.
const FRAME_BYTES_MAX: usize = 16 << 10;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;

/// Hears every message, and says what goes on instead: itself, nothing, or more than one.
pub(crate) trait Meddler: Send {
    fn message(&mut self, message: Vec<u8>) -> Vec<Vec<u8>>;
}

pub(crate) struct Grpc<M> {
    meddler: M,
    /// Of the preface, still to come.
    preface: usize,
    unread: Vec<u8>,
    /// Data of the stream that is no whole message yet.
    part: Vec<u8>,
}

impl<M: Meddler> Grpc<M> {
    /// `preface`: bytes that come before the first frame.
    pub(crate) fn new(preface: usize, meddler: M) -> Self {
        Self { meddler, preface, unread: Vec::new(), part: Vec::new() }
    }

    /// A frame with data: the same stream's, with what the meddler makes of the messages that are whole now.
    fn data(&mut self, frame: &[u8], out: &mut Vec<u8>) {
        let (head, data) = frame.split_at(HEAD_BYTES);
        self.part.extend(data);
        let mut goes_on = Vec::new();
        while let Some(message) = take_message(&mut self.part) {
            for message in self.meddler.message(message) {
                goes_on.push(0);
                goes_on.extend((message.len() as u32).to_be_bytes());
                goes_on.extend(message);
            }
        }
        let ends = head[4] & END_STREAM != 0;
        let mut frames: Vec<&[u8]> = goes_on.chunks(FRAME_BYTES_MAX).collect();
        if frames.is_empty() && ends {
            frames.push(&[]);
        }
        let last = frames.len().saturating_sub(1);
        for (number, payload) in frames.into_iter().enumerate() {
            out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
            out.extend([DATA, if ends && number == last { END_STREAM } else { 0 }]);
            out.extend(&head[5..]);
            out.extend(payload);
        }
    }
}

impl<M: Meddler> Tamper for Grpc<M> {
    fn pass(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        self.unread.extend(bytes);
        let preface = self.preface.min(self.unread.len());
        self.preface -= preface;
        let mut out: Vec<u8> = self.unread.drain(..preface).collect();
        while let Some(frame) = take_frame(&mut self.unread) {
            if frame[3] == DATA { self.data(&frame, &mut out) } else { out.extend(frame) }
        }
        out
    }
}

fn take_frame(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let [a, b, c] = *bytes.first_chunk::<3>()?;
    let length = HEAD_BYTES + u32::from_be_bytes([0, a, b, c]) as usize;
    (bytes.len() >= length).then(|| bytes.drain(..length).collect())
}

/// The first message, once all of it is there; none is compressed.
fn take_message(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let [_, length @ ..] = *bytes.first_chunk::<5>()?;
    let end = 5 + u32::from_be_bytes(length) as usize;
    (bytes.len() >= end).then(|| bytes.drain(..end).skip(5).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says some messages twice and others not at all.
    struct Times(fn(&[u8]) -> usize);

    impl Meddler for Times {
        fn message(&mut self, message: Vec<u8>) -> Vec<Vec<u8>> {
            let times = self.0(&message);
            vec![message; times]
        }
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn message(text: &[u8]) -> Vec<u8> {
        [&[0], &(text.len() as u32).to_be_bytes()[..], text].concat()
    }

    /// What the messages in the data of `wire` are.
    fn heard(mut wire: Vec<u8>) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (mut data, mut kinds) = (Vec::new(), Vec::new());
        while let Some(frame) = take_frame(&mut wire) {
            kinds.push(frame[3]);
            if frame[3] == DATA {
                data.extend(&frame[HEAD_BYTES..]);
            }
        }
        assert!(wire.is_empty());
        (std::iter::from_fn(|| take_message(&mut data)).collect(), kinds)
    }

    #[test]
    fn messages_are_heard_however_the_bytes_are_cut() {
        let data = [message(b"one"), message(&[7; 20_000]), message(b"three")].concat();
        let mut wire = vec![b'P'; PREFACE_BYTES];
        wire.extend([frame(4, 0, &[]), frame(DATA, 0, &data[..9_000]), frame(6, 0, &[0; 8])].concat());
        wire.extend(frame(DATA, END_STREAM, &data[9_000..]));
        for cut in [1, 7, 100, 30_000] {
            let mut grpc = Grpc::new(PREFACE_BYTES, Times(|message| if message == b"one" { 2 } else { 1 }));
            let out: Vec<u8> = wire.chunks(cut).flat_map(|part| grpc.pass(part.to_vec())).collect();
            let (messages, kinds) = heard(out[PREFACE_BYTES..].to_vec());
            assert_eq!(messages, [&b"one"[..], b"one", &[7; 20_000], b"three"], "cut by {cut}");
            assert_eq!(kinds.iter().filter(|kind| **kind != DATA).collect::<Vec<_>>(), [&4, &6]);
        }
    }

    #[test]
    fn a_stream_ends_even_if_its_last_message_is_lost() {
        let mut grpc = Grpc::new(0, Times(|_| 0));
        assert_eq!(grpc.pass(frame(DATA, END_STREAM, &message(b"x"))), frame(DATA, END_STREAM, &[]));
    }
}
