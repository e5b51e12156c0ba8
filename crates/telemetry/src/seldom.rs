//! Lets one log line per peer and minute through, so that nobody fills a disk by knocking.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(60);
/// Peers remembered; while so many knock at once, further ones are not logged.
const PEERS_MAX: usize = 1024;

/// When each peer was last logged.
#[derive(Debug, Default)]
pub struct Seldom(HashMap<IpAddr, Instant>);

impl Seldom {
    /// Whether a line about this peer is due; if so, it counts as written.
    pub fn due(&mut self, peer: IpAddr, now: Instant) -> bool {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < PAUSE;
        if self.0.get(&peer).is_some_and(recent) {
            return false;
        }
        self.0.retain(|_, at| recent(at));
        if self.0.len() >= PEERS_MAX {
            return false;
        }
        self.0.insert(peer, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn one_line_per_peer_and_minute_and_no_more_peers_than_the_bound() {
        let (start, mut seldom) = (Instant::now(), Seldom::default());
        let mut due = |peer: u32, second| seldom.due(Ipv4Addr::from(peer).into(), start + Duration::from_secs(second));
        for (peer, second, expected) in [(1, 0, true), (1, 59, false), (2, 59, true), (1, 60, true), (1, 61, false)] {
            assert_eq!(due(peer, second), expected, "{peer} at {second}");
        }
        let logged = (0..5000).filter(|peer| due(*peer, 200)).count();
        assert_eq!(logged, PEERS_MAX);
        assert!(due(9999, 260), "a minute later there is room");
    }
}
