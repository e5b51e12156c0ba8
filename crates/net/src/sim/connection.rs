//! Both ends of one simulated TCP connection, and what is on its way to each.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::ReadBuf;

use super::Tamper;

/// Bytes that may be under way to a socket and unread there.
const WINDOW: usize = 64 << 10;

/// What travels.
pub(super) enum Segment {
    Bytes(Vec<u8>),
    /// Nothing more will be written.
    Fin,
    /// The peer has no such connection any more.
    Reset,
}

/// End 0 dialed, end 1 listened.
pub(super) struct Connection([End; 2]);

struct End {
    address: SocketAddr,
    /// Applied to what is sent to this end.
    tamper: Option<Box<dyn Tamper>>,
    /// Segments sent to this end so far.
    sent: u64,
    /// In order of arrival.
    under_way: VecDeque<(Duration, Segment)>,
    inbox: VecDeque<u8>,
    /// Bytes in both; what a tamper adds does not count.
    pending: usize,
    /// The peer writes no more.
    finished: bool,
    reset: bool,
    /// We write no more.
    shut: bool,
    life: Life,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// Its owner closed it.
    Closed,
    /// Its host lost power.
    Dark,
}

impl Connection {
    pub(super) fn new(
        [dialed, listened]: [SocketAddr; 2],
        [to_dialed, to_listened]: [Option<Box<dyn Tamper>>; 2],
    ) -> Self {
        let end = |address, tamper| End {
            address,
            tamper,
            sent: 0,
            under_way: VecDeque::new(),
            inbox: VecDeque::new(),
            pending: 0,
            finished: false,
            reset: false,
            shut: false,
            life: Life::Open,
            reader: None,
            writer: None,
        };
        Self([end(dialed, to_dialed), end(listened, to_listened)])
    }

    pub(super) fn address(&self, end: usize) -> SocketAddr {
        self.0[end].address
    }

    pub(super) fn sent(&self, end: usize) -> u64 {
        self.0[end].sent
    }

    pub(super) fn host(&self, end: usize) -> IpAddr {
        self.0[end].address.ip()
    }

    pub(super) fn joins(&self, one: IpAddr, other: IpAddr) -> bool {
        let hosts = [self.host(0), self.host(1)];
        hosts == [one, other] || hosts == [other, one]
    }

    pub(super) fn open(&self) -> usize {
        self.0.iter().filter(|end| end.life == Life::Open).count()
    }

    /// Nobody has a socket of it any more.
    pub(super) fn is_over(&self) -> bool {
        self.open() == 0
    }

    /// Puts a segment on its way to `end`.
    pub(super) fn send(&mut self, end: usize, due: Duration, segment: Segment) {
        let end = &mut self.0[end];
        end.sent += 1;
        let due = end.under_way.back().map_or(due, |(last, _)| due.max(*last));
        let segment = match (segment, &mut end.tamper) {
            (Segment::Bytes(bytes), Some(tamper)) => Segment::Bytes(tamper.pass(bytes)),
            (segment, _) => segment,
        };
        if let Segment::Bytes(bytes) = &segment {
            end.pending += bytes.len();
        }
        end.under_way.push_back((due, segment));
    }

    /// Takes what has arrived at `end` by `now`. True: the sender is to be told that there is no such connection.
    pub(super) fn receive(&mut self, end: usize, now: Duration, dark: bool) -> bool {
        let end = &mut self.0[end];
        let mut refused = false;
        while end.under_way.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, segment)) = end.under_way.pop_front() else { break };
            if end.life != Life::Open {
                refused |= !dark && !matches!(segment, Segment::Reset);
                continue;
            }
            match segment {
                Segment::Bytes(bytes) => end.inbox.extend(bytes),
                Segment::Fin => end.finished = true,
                Segment::Reset => end.reset = true,
            }
            end.wake();
        }
        refused
    }

    /// Both sides learn at once that the connection is gone.
    pub(super) fn cut(&mut self) {
        for end in &mut self.0 {
            (end.reset, end.pending) = (true, 0);
            end.under_way.clear();
            end.inbox.clear();
            end.wake();
        }
    }

    pub(super) fn darken(&mut self, host: IpAddr) {
        for end in self.0.iter_mut().filter(|end| end.address.ip() == host) {
            end.life = Life::Dark;
            end.under_way.clear();
        }
    }

    /// The owner of `end` closes it; what its peer is told, if anything.
    pub(super) fn close(&mut self, end: usize) -> Option<Segment> {
        let end = &mut self.0[end];
        if end.life != Life::Open {
            return None;
        }
        end.life = Life::Closed;
        match end.inbox.is_empty() {
            _ if end.reset => None,
            true if end.shut => None,
            true => Some(Segment::Fin),
            // As kernels do: a peer whose bytes nobody read is told.
            false => Some(Segment::Reset),
        }
    }

    /// True: the peer is to be told.
    pub(super) fn shut(&mut self, end: usize) -> bool {
        let end = &mut self.0[end];
        !std::mem::replace(&mut end.shut, true) && !end.reset && end.life == Life::Open
    }

    pub(super) fn poll_read(&mut self, at: usize, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let end = &mut self.0[at];
        if end.inbox.is_empty() {
            return end.poll_end(cx);
        }
        let count = buf.remaining().min(end.inbox.len());
        let (front, back) = end.inbox.as_slices();
        let from_front = count.min(front.len());
        buf.put_slice(&front[..from_front]);
        buf.put_slice(&back[..count - from_front]);
        end.inbox.drain(..count);
        end.pending = end.pending.saturating_sub(count);
        if let Some(writer) = self.0[1 - at].writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_peek(&mut self, at: usize, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let end = &mut self.0[at];
        if end.inbox.is_empty() {
            return end.poll_end(cx).map_ok(|()| 0);
        }
        let count = bytes.len().min(end.inbox.len());
        bytes.iter_mut().zip(&end.inbox).for_each(|(byte, seen)| *byte = *seen);
        Poll::Ready(Ok(count))
    }

    /// Takes bytes as far as the window allows.
    pub(super) fn poll_write(
        &mut self,
        at: usize,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<Vec<u8>>> {
        let room = WINDOW.saturating_sub(self.0[1 - at].pending);
        let end = &mut self.0[at];
        if end.reset || end.shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if room == 0 {
            end.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let all = bytes.iter().flat_map(|slice| slice.iter().copied());
        Poll::Ready(Ok(all.take(room).collect()))
    }
}

impl End {
    /// With nothing to read: waits, or says why there never will be.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}
