//! Tells the scheduler how busy this instance is: after changes, and often enough that silence means frozen.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use proto::control::{Load, worker_message::Body};

use super::attempt::Replies;
use super::{Control, RoleService};

/// Longest silence that the scheduler sees; the protocol promises 500 ms.
const QUIET_MAX: Duration = Duration::from_millis(400);
/// Shortest time between two reports: often enough for pairing decisions, rare beside tokens.
const GAP: Duration = Duration::from_millis(20);

/// Reports until the connection is over.
pub(super) async fn report<R: RoleService>(control: Control<R>, replies: Replies) {
    let mut changes = control.0.engine.changes();
    while replies.send(Body::Load(load(&control))).await.is_ok() {
        tokio::time::sleep(GAP).await;
        // An error means that the engine has stopped; whoever watches it ends the process.
        if let Ok(Err(_)) = tokio::time::timeout(QUIET_MAX, changes.changed()).await {
            return;
        }
    }
}

fn load<R: RoleService>(control: &Control<R>) -> Load {
    let stats = control.0.engine.stats();
    Load {
        running: stats.queue.running,
        waiting: stats.queue.waiting,
        blocks_total: stats.pool.total,
        blocks_free: stats.pool.free,
        blocks_cached: stats.pool.cached,
        steps: stats.steps,
        preemptions: stats.queue.preemptions,
        draining: control.is_draining(),
        costs: control.0.engine.take_costs(),
        stale_dropped: control.0.stale.load(Relaxed),
        waiting_tokens: stats.queue.waiting_tokens,
    }
}
