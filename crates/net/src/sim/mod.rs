//! A network inside the process: hosts are addresses, time is what [`Network::deliver`] was told, and every fault is asked for.
//!
//! It behaves like TCP between kernels. Bytes of a connection arrive in order, each write after a delay of its own; a window bounds
//! what is unread. A closed socket says so to its peer, a host that lost its power does not. A blocked link holds what is under way and
//! lets it go when it opens again, as retransmission does. Nothing here runs by itself: one thread drives network and hosts in turn,
//! so that a run depends on its seed only.

mod connection;
mod socket;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use connection::{Connection, Segment};
pub use socket::{Listener, ReadHalf, Stream, WriteHalf};

/// First port of those that nobody asked for by number.
const FREE_PORTS: u16 = 32768;
/// After which an unanswered dial knocks again.
const KNOCK_AGAIN: Duration = Duration::from_secs(1);
/// Stands for an end in what a dial's delays are drawn from.
const DIALS: u64 = 2;
const SOON: Range<Duration> = Duration::from_micros(100)..Duration::from_millis(2);

thread_local! {
    static CURRENT: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// The host whose code runs on this thread now.
pub(crate) fn current() -> Option<Host> {
    CURRENT.with_borrow(Clone::clone)
}

/// Changes the bytes of one direction of one connection on their way, as a bad network card would.
pub trait Tamper: Send {
    /// What goes on instead of `bytes`.
    fn pass(&mut self, bytes: Vec<u8>) -> Vec<u8>;
}

/// Chooses which directions (from, to) are tampered with.
pub type Tampering = Box<dyn FnMut(SocketAddr, SocketAddr) -> Option<Box<dyn Tamper>> + Send>;

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Network(Arc<Mutex<State>>);

/// One address of a network. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Host {
    network: Network,
    address: IpAddr,
}

/// Until it is dropped, sockets made on this thread are those of a host.
pub struct Entered(Option<Host>);

struct State {
    now: Duration,
    seed: u64,
    doors: BTreeMap<SocketAddr, Door>,
    dials: BTreeMap<u64, Dial>,
    connections: BTreeMap<u64, Connection>,
    numbers: u64,
    ports: u16,
    /// Directed links that carry nothing now.
    blocked: BTreeSet<(IpAddr, IpAddr)>,
    /// Directed links with a delay of their own.
    delays: BTreeMap<(IpAddr, IpAddr), Range<Duration>>,
    /// Hosts without power.
    dark: BTreeSet<IpAddr>,
    tampering: Option<Tampering>,
    fingerprint: u64,
}

/// A listening port.
#[derive(Default)]
struct Door {
    backlog: VecDeque<u64>,
    waker: Option<Waker>,
}

/// A connection that is being made.
struct Dial {
    from: SocketAddr,
    to: SocketAddr,
    /// When the knock is heard, or the answer.
    due: Duration,
    answer: Option<Result<u64, io::ErrorKind>>,
    waker: Option<Waker>,
}

impl Network {
    /// Delays are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        let state = State {
            now: Duration::ZERO,
            seed,
            doors: BTreeMap::new(),
            dials: BTreeMap::new(),
            connections: BTreeMap::new(),
            numbers: 0,
            ports: FREE_PORTS,
            blocked: BTreeSet::new(),
            delays: BTreeMap::new(),
            dark: BTreeSet::new(),
            tampering: None,
            fingerprint: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// What this thread does until the guard is dropped, `host` does.
    pub fn enter(&self, host: IpAddr) -> Entered {
        let host = Host { network: self.clone(), address: host };
        Entered(CURRENT.with_borrow_mut(|current| current.replace(host)))
    }

    /// Moves time on and hands over what is due.
    pub fn deliver(&self, now: Duration) {
        let mut state = self.0.lock();
        state.now = now;
        state.deliver_dials();
        state.deliver_segments();
    }

    /// From now on nothing goes from `from` to `to`; what does waits.
    pub fn block(&self, from: IpAddr, to: IpAddr) {
        self.0.lock().blocked.insert((from, to));
    }

    pub fn unblock(&self, from: IpAddr, to: IpAddr) {
        self.0.lock().blocked.remove(&(from, to));
    }

    /// Each write from `from` to `to` takes a time from this range; the usual one again if `None`.
    pub fn delay(&self, from: IpAddr, to: IpAddr, range: Option<Range<Duration>>) {
        let mut state = self.0.lock();
        match range {
            Some(range) => drop(state.delays.insert((from, to), range)),
            None => drop(state.delays.remove(&(from, to))),
        }
    }

    /// Resets every connection between two hosts; what is under way is lost.
    pub fn cut(&self, one: IpAddr, other: IpAddr) {
        let mut state = self.0.lock();
        state.connections.values_mut().filter(|connection| connection.joins(one, other)).for_each(Connection::cut);
    }

    /// Takes a host's power: its sockets are gone without a word. Drop its runtime after.
    pub fn darken(&self, host: IpAddr) {
        let mut state = self.0.lock();
        state.dark.insert(host);
        state.doors.retain(|address, _| address.ip() != host);
        state.connections.values_mut().for_each(|connection| connection.darken(host));
    }

    /// Gives a host its power back: what still arrives for the sockets of before is answered with a reset.
    pub fn light(&self, host: IpAddr) {
        self.0.lock().dark.remove(&host);
    }

    /// Asked for each direction of each new connection.
    pub fn tamper(&self, tampering: Option<Tampering>) {
        self.0.lock().tampering = tampering;
    }

    /// A digest of who wrote when: equal for equal runs.
    pub fn fingerprint(&self) -> u64 {
        self.0.lock().fingerprint
    }

    /// Sockets that are open, and dials.
    pub fn open(&self) -> usize {
        let state = self.0.lock();
        state.connections.values().map(Connection::open).sum::<usize>() + state.dials.len()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

impl Host {
    pub(crate) fn bind(&self, wanted: SocketAddr) -> io::Result<Listener> {
        let mut state = self.network.0.lock();
        let port = if wanted.port() == 0 { state.free_port() } else { wanted.port() };
        let address = SocketAddr::new(self.address, port);
        if state.doors.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        state.doors.insert(address, Door::default());
        Ok(Listener::new(self.network.clone(), address))
    }

    pub(crate) async fn connect(&self, to: SocketAddr) -> io::Result<Stream> {
        socket::Dialing::start(&self.network, self.address, to).await
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn free_port(&mut self) -> u16 {
        self.ports = self.ports.checked_add(1).unwrap_or(FREE_PORTS);
        self.ports
    }

    /// When something that leaves now arrives. Its delay depends on what it is and not on what else is sent: the order in which a
    /// runtime drops its tasks depends on runtimes before it.
    fn arrival(&self, from: IpAddr, to: IpAddr, what: [u64; 3]) -> Duration {
        let range = self.delays.get(&(from, to)).unwrap_or(&SOON).clone();
        self.now + SmallRng::seed_from_u64(what.into_iter().fold(self.seed, mix)).random_range(range)
    }

    fn is_open(&self, from: IpAddr, to: IpAddr) -> bool {
        !self.blocked.contains(&(from, to))
    }

    fn deliver_dials(&mut self) {
        let due: Vec<u64> =
            self.dials.iter().filter(|(_, dial)| dial.due <= self.now).map(|(number, _)| *number).collect();
        for number in due {
            let Some(dial) = self.dials.get(&number) else { continue };
            let (from, to) = (dial.from, dial.to);
            match dial.answer {
                None if self.is_open(from.ip(), to.ip()) && !self.dark.contains(&to.ip()) => {
                    self.knock(number, from, to)
                }
                None => self.knock_again(number),
                Some(_) if !self.is_open(to.ip(), from.ip()) => self.knock_again(number),
                // Answered already and not fetched yet, or answered now.
                Some(_) => self.answer(number),
            }
        }
    }

    fn knock(&mut self, number: u64, from: SocketAddr, to: SocketAddr) {
        let due = self.arrival(to.ip(), from.ip(), [number, DIALS, 1]);
        let answer = if self.doors.contains_key(&to) {
            let connection = self.connect(from, to);
            let door = self.doors.entry(to).or_default();
            door.backlog.push_back(connection);
            if let Some(waker) = door.waker.take() {
                waker.wake();
            }
            Ok(connection)
        } else {
            Err(io::ErrorKind::ConnectionRefused)
        };
        if let Some(dial) = self.dials.get_mut(&number) {
            (dial.answer, dial.due) = (Some(answer), due);
        }
    }

    fn answer(&mut self, number: u64) {
        if let Some(waker) = self.dials.get_mut(&number).and_then(|dial| dial.waker.take()) {
            waker.wake();
        }
    }

    fn knock_again(&mut self, number: u64) {
        let due = self.now + KNOCK_AGAIN;
        if let Some(dial) = self.dials.get_mut(&number) {
            dial.due = due;
        }
    }

    fn connect(&mut self, from: SocketAddr, to: SocketAddr) -> u64 {
        let number = self.number();
        let tampers = match &mut self.tampering {
            // The one that dialed sends to `to`, so the other end receives through that tamper.
            Some(tampering) => [tampering(to, from), tampering(from, to)],
            None => [None, None],
        };
        self.connections.insert(number, Connection::new([from, to], tampers));
        number
    }

    fn deliver_segments(&mut self) {
        let mut resets = Vec::new();
        for (number, connection) in &mut self.connections {
            for end in 0..2 {
                let (from, to) = (connection.host(1 - end), connection.host(end));
                if self.blocked.contains(&(from, to)) {
                    continue;
                }
                let reset = connection.receive(end, self.now, self.dark.contains(&to));
                resets.extend(reset.then_some((*number, 1 - end)));
            }
        }
        for (number, end) in resets {
            self.send(number, end, Segment::Reset);
        }
        self.connections.retain(|_, connection| !connection.is_over());
    }

    /// Sends a segment towards `end` of a connection.
    fn send(&mut self, number: u64, end: usize, segment: Segment) {
        let Some(connection) = self.connections.get(&number) else { return };
        let (from, to) = (connection.host(1 - end), connection.host(end));
        let what = [number, end as u64, connection.sent(end)];
        let due = self.arrival(from, to, what);
        self.fingerprint = self.fingerprint.wrapping_add(what.into_iter().fold(self.now.as_nanos() as u64, mix));
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.send(end, due, segment);
        }
    }
}

/// splitmix64 over both.
fn mix(state: u64, value: u64) -> u64 {
    let z = (state ^ value).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
