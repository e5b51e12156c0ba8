//! Lets one log line per source and minute through, so that no peer fills a disk by knocking, and nothing that fails again and again.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(60);
/// Sources remembered; while so many knock at once, further ones are not logged.
const SOURCES_MAX: usize = 1024;

/// When each source, by default a peer, was last logged.
#[derive(Debug)]
pub struct Seldom<Source = IpAddr>(HashMap<Source, Instant>);

impl<Source> Default for Seldom<Source> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<Source: Eq + Hash> Seldom<Source> {
    /// Whether a line about this source is due; if so, it counts as written.
    pub fn due(&mut self, source: Source, now: Instant) -> bool {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < PAUSE;
        if self.0.get(&source).is_some_and(recent) {
            return false;
        }
        self.0.retain(|_, at| recent(at));
        if self.0.len() >= SOURCES_MAX {
            return false;
        }
        self.0.insert(source, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn one_line_per_peer_and_minute_and_no_more_peers_than_the_bound() {
        let (start, mut seldom) = (Instant::now(), Seldom::<IpAddr>::default());
        let mut due = |peer: u32, second| seldom.due(Ipv4Addr::from(peer).into(), start + Duration::from_secs(second));
        for (peer, second, expected) in [(1, 0, true), (1, 59, false), (2, 59, true), (1, 60, true), (1, 61, false)] {
            assert_eq!(due(peer, second), expected, "{peer} at {second}");
        }
        let logged = (0..5000).filter(|peer| due(*peer, 200)).count();
        assert_eq!(logged, SOURCES_MAX);
        assert!(due(9999, 260), "a minute later there is room");
    }
}
