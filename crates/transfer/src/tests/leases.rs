//! A landing's lease against a plain model: whatever comes in whatever order, pieces are taken until 10 s after the last sign of
//! life, never later, and no block stays held.

use std::time::Duration;

use kv::{KvSpan, Phase};
use proptest::prelude::*;
use proto::kv::{Piece, kv_frame::Body as Frame, kv_reply::Body as Reply};
use tokio::time::{Instant, sleep};

use super::harness::{Pair, key, layout};
use super::raw::Raw;
use crate::{TransferError, TransportKind};

const LEASE: Duration = Duration::from_secs(10);
/// No sum of these is a lease, so that an event never falls on the very end of one.
const TICK: Duration = Duration::from_millis(700);

#[derive(Clone, Copy, Debug)]
enum Event {
    Wait(u32),
    Renew,
    NextPiece,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![(1..12_u32).prop_map(Event::Wait), Just(Event::Renew), Just(Event::NextPiece)];
    prop::collection::vec(event, 0..24)
}

/// Every piece of the landing but the last, so that it never completes: each layer in two halves of its heads.
fn spans(layers: u32) -> Vec<KvSpan> {
    let halves = |layer| [0..2, 2..4].map(|heads| KvSpan { layer, heads, tokens: 0..64 });
    let mut spans: Vec<_> = (0..layers).flat_map(halves).collect();
    spans.pop();
    spans
}

/// Whether D took the piece. That a landing is over may be told on the way.
async fn taken(raw: &mut Raw, piece: Piece, payload: &[u8]) -> bool {
    let mut answer = raw.ask(Frame::Piece(piece), payload).await;
    loop {
        match answer {
            Some(Reply::Ack(_)) => return true,
            Some(Reply::Nack(_)) => return false,
            Some(Reply::Refused(_)) => answer = raw.answer().await,
            other => panic!("no answer to a piece: {other:?}"),
        }
    }
}

async fn check(events: Vec<Event>) {
    let pair = Pair::new(TransportKind::Inproc, layout(16), layout(16)).await;
    let blocks = pair.d.blocks(&key("r", 0), 64, Phase::Landing);
    let landing = pair.open(&key("r", 0), 0..64, &blocks);
    let mut raw = Raw::welcome(&pair, TransportKind::Inproc).await;
    let mut spans = spans(layout(16).layers).into_iter().enumerate();
    let (mut deadline, mut begun) = (Instant::now() + LEASE, false);
    for event in events {
        let alive = Instant::now() < deadline;
        match event {
            Event::Wait(ticks) => sleep(TICK * ticks).await,
            Event::Renew => {
                landing.renew();
                if alive && !begun {
                    deadline = Instant::now() + LEASE;
                }
            }
            Event::NextPiece => {
                let Some((number, span)) = spans.next() else { continue };
                let (piece, payload) = raw.piece(&landing, number as u64, span);
                assert_eq!(taken(&mut raw, piece, &payload).await, alive, "piece {number}");
                if alive {
                    (deadline, begun) = (Instant::now() + LEASE, true);
                }
            }
        }
    }
    let ends = deadline.max(Instant::now());
    assert_eq!(landing.landed().await, Err(TransferError::Lease { key: key("r", 0), lease: LEASE }));
    assert!(Instant::now() - ends < TICK, "ended {:?} late", Instant::now() - ends);
    drop((landing, blocks));
    assert_eq!(pair.d.pool.stats().leased, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn pieces_are_taken_exactly_while_the_lease_lasts(events in events()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(check(events));
    }
}
