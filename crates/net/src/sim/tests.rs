//! The network by itself: what TCP promises, and each fault.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

use super::{IpAddr, Network, SocketAddr, Tamper};
use crate::{TcpListener, TcpStream};

const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
const STEP: Duration = Duration::from_millis(5);

/// Two hosts on one runtime: nothing waits for real time.
struct Rig {
    network: Network,
    runtime: Runtime,
    now: Duration,
}

impl Rig {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        Self { network: Network::new(1), runtime, now: Duration::ZERO }
    }

    /// Runs what a host does, while the network delivers.
    fn run<T>(&mut self, host: IpAddr, what: impl Future<Output = T>) -> T {
        self.finish(host, what, 2000).expect("done within 10 s")
    }

    /// None: still waiting after `steps` steps.
    fn finish<T>(&mut self, host: IpAddr, what: impl Future<Output = T>, steps: u32) -> Option<T> {
        let mut what = std::pin::pin!(what);
        for _ in 0..steps {
            self.now += STEP;
            self.network.deliver(self.now);
            let _entered = self.network.enter(host);
            let step = async { tokio::time::timeout(STEP, &mut what).await };
            if let Ok(done) = self.runtime.block_on(step) {
                return Some(done);
            }
        }
        None
    }

    /// A stream from A to B, both ends.
    fn pair(&mut self) -> (TcpStream, TcpStream) {
        let listener = self.run(B, TcpListener::bind("0.0.0.0:80")).unwrap();
        let near = self.run(A, TcpStream::connect(SocketAddr::new(B, 80))).unwrap();
        let (far, peer) = self.run(B, listener.accept()).unwrap();
        assert_eq!((near.peer_addr().unwrap(), peer.ip()), (SocketAddr::new(B, 80), A));
        (near, far)
    }

    fn read(&mut self, host: IpAddr, stream: &mut TcpStream, bytes: usize) -> Result<Vec<u8>, std::io::ErrorKind> {
        let mut found = vec![0; bytes];
        self.run(host, stream.read_exact(&mut found)).map(|_| found).map_err(|error| error.kind())
    }
}

#[test]
fn bytes_arrive_in_order_and_the_end_is_seen() {
    let mut rig = Rig::new();
    let (mut near, mut far) = rig.pair();
    for byte in 0..100 {
        rig.run(A, near.write_all(&[byte])).unwrap();
    }
    assert_eq!(rig.read(B, &mut far, 100), Ok((0..100).collect()));
    rig.run(A, near.shutdown()).unwrap();
    assert_eq!(rig.run(B, far.read_u8()).unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    rig.run(B, far.write_all(b"still")).unwrap();
    drop(far);
    assert_eq!(rig.read(A, &mut near, 5), Ok(b"still".to_vec()));
    drop(near);
    rig.finish(A, std::future::pending::<()>(), 3);
    assert_eq!(rig.network.open(), 0);
}

#[test]
fn an_unread_peer_blocks_and_an_unread_close_resets() {
    let mut rig = Rig::new();
    let (mut near, far) = rig.pair();
    assert!(rig.finish(A, near.write_all(&[7; 1 << 20]), 10).is_none());
    drop(far);
    assert!(rig.run(A, near.write_all(&[7; 1 << 20])).is_err());
}

#[test]
fn a_blocked_link_holds_and_lets_go() {
    let mut rig = Rig::new();
    let (mut near, mut far) = rig.pair();
    rig.network.block(A, B);
    rig.run(A, near.write_all(b"x")).unwrap();
    assert!(rig.finish(B, far.read_u8(), 100).is_none());
    assert!(rig.finish(A, TcpStream::connect(SocketAddr::new(B, 80)), 100).is_none());
    rig.network.unblock(A, B);
    assert_eq!(rig.read(B, &mut far, 1), Ok(b"x".to_vec()));
}

#[test]
fn cuts_darkness_and_closed_ports_are_told_apart() {
    let mut rig = Rig::new();
    let refused = rig.run(A, TcpStream::connect(SocketAddr::new(B, 81))).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let (mut near, far) = rig.pair();
    rig.network.cut(A, B);
    assert_eq!(rig.read(A, &mut near, 1), Err(std::io::ErrorKind::ConnectionReset));
    drop(far);
    let (mut near, far) = rig.pair();
    rig.network.darken(B);
    drop(far);
    assert!(rig.finish(A, near.read_u8(), 100).is_none(), "nobody says that the host is gone");
    rig.network.light(B);
    assert!(rig.finish(A, near.read_u8(), 100).is_none());
    rig.run(A, near.write_all(b"x")).unwrap();
    assert_eq!(rig.read(A, &mut near, 1), Err(std::io::ErrorKind::ConnectionReset));
}

#[test]
fn bytes_can_be_tampered_with() {
    struct Upper;
    impl Tamper for Upper {
        fn pass(&mut self, bytes: Vec<u8>) -> Vec<u8> {
            bytes.to_ascii_uppercase()
        }
    }
    let mut rig = Rig::new();
    rig.network.tamper(Some(Box::new(|from, _| (from.ip() == A).then(|| Box::new(Upper) as Box<dyn Tamper>))));
    let (mut near, mut far) = rig.pair();
    rig.run(A, near.write_all(b"up")).unwrap();
    rig.run(B, far.write_all(b"down")).unwrap();
    assert_eq!(rig.read(B, &mut far, 2), Ok(b"UP".to_vec()));
    assert_eq!(rig.read(A, &mut near, 4), Ok(b"down".to_vec()));
}
