//! Ports for processes that are yet to start: free, and not among those that the system lends to outgoing connections, one of which
//! could take a port between now and then, or while its process is started again.

use std::fs;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::ops::RangeInclusive;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Below are ports of known services.
const FIRST: u16 = 10_240;
/// Processes that begin this far apart seldom meet: most need fewer.
const OF_ONE: usize = 64;
const LENT: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Where the system does not say; wider than Linux' own default.
const LENT_DEFAULT: RangeInclusive<u16> = 32_768..=u16::MAX;

/// A listener on a port that this process has not been given before, unless it has been given all of them.
///
/// # Errors
/// Nothing may listen on `ip`, or every port is taken.
pub fn hold_port(ip: IpAddr) -> io::Result<TcpListener> {
    static PORTS: LazyLock<Vec<u16>> = LazyLock::new(|| candidates(&lent(), std::process::id()));
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    for _ in 0..PORTS.len() {
        let port = PORTS[NEXT.fetch_add(1, Ordering::Relaxed) % PORTS.len()];
        match TcpListener::bind((ip, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    TcpListener::bind((ip, 0))
}

fn lent() -> RangeInclusive<u16> {
    fs::read_to_string(LENT).ok().and_then(|text| parse(&text)).unwrap_or(LENT_DEFAULT)
}

fn parse(text: &str) -> Option<RangeInclusive<u16>> {
    let mut ends = text.split_whitespace().map(str::parse);
    Some(ends.next()?.ok()?..=ends.next()?.ok()?)
}

/// All that may be given, those first that processes with other numbers begin elsewhere than.
fn candidates(lent: &RangeInclusive<u16>, process: u32) -> Vec<u16> {
    let mut ports: Vec<u16> = (FIRST..=u16::MAX).filter(|port| !lent.contains(port)).collect();
    let first = (process as usize).wrapping_mul(OF_ONE).checked_rem(ports.len()).unwrap_or(0);
    ports.rotate_left(first);
    ports
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn ports_are_not_lent_and_not_given_twice() {
        if candidates(&lent(), 0).len() < 100 {
            eprintln!("SKIPPED: this machine lends nearly every port ({LENT})");
            return;
        }
        let held: Vec<_> = (0..20).map(|_| hold_port(Ipv4Addr::LOCALHOST.into()).unwrap()).collect();
        let mut ports: Vec<u16> = held.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(held);
        ports.push(hold_port(Ipv4Addr::LOCALHOST.into()).unwrap().local_addr().unwrap().port());
        let (lent, count) = (lent(), ports.len());
        assert!(ports.iter().all(|port| !lent.contains(port) && *port >= FIRST), "{ports:?} of {lent:?}");
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), count);
    }

    #[test]
    fn processes_begin_apart_and_every_port_has_its_turn() {
        let range = parse("32768\t60999\n").unwrap();
        let (one, other) = (candidates(&range, 7), candidates(&range, 8));
        assert_eq!((one.len(), other.len()), (32_768 - 10_240 + 65_535 - 60_999, one.len()));
        assert_eq!(one[OF_ONE], other[0]);
        assert!(!one.contains(&40_000) && one.contains(&61_000) && one.contains(&10_240));
        assert_eq!(candidates(&(1..=u16::MAX), 7), [] as [u16; 0]);
        assert_eq!((parse(""), parse("1 x"), parse("70000 1")), (None, None, None));
    }

    #[test]
    fn an_address_of_another_machine_is_an_error() {
        assert!(hold_port([192, 0, 2, 1].into()).is_err());
    }
}
