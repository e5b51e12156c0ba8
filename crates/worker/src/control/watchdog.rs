//! Looks after the engine: an instance whose step stands still says that it is not ready, and its work goes on elsewhere.
//!
//! Heartbeats cannot show this, for they come from other threads. Blocks of the step come back when it ends, or with the process.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::{Control, RoleService};

/// How often it looks.
const LOOK: Duration = Duration::from_millis(500);

/// Watches for ever. `limit` is the longest time in which a step must get through a layer.
pub(crate) async fn watch<R: RoleService>(control: Control<R>, limit: Duration) {
    loop {
        tokio::time::sleep(LOOK.min(limit)).await;
        let stuck = control.0.engine.silence() >= limit;
        if control.0.stuck.swap(stuck, Relaxed) == stuck {
            continue;
        }
        if stuck {
            let seconds = limit.as_secs_f64();
            tracing::error!(seconds, "the engine's step stands still: not ready, its requests go on elsewhere");
            control.close();
        } else {
            tracing::info!("the engine's step goes on: ready again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::{Arc, mpsc};

    use kv::BlockRef;
    use parking_lot::Mutex;

    use super::super::tests::{Rig, hello, refusal};
    use super::*;
    use crate::fake::spec;
    use crate::{Failure, Goal, Happening, Job, KvWatcher};

    const LIMIT: Duration = Duration::from_millis(30);

    /// Holds the engine's thread in its first layer until the other end is dropped.
    struct Gate(Mutex<mpsc::Receiver<()>>);

    impl KvWatcher for Gate {
        fn admitted(&self, _: &[BlockRef], _: u32) -> Result<(), Failure> {
            Ok(())
        }

        fn layer_done(&self, _: u32, _: Range<u32>, _: Range<u32>) {
            let _ = self.0.lock().recv();
        }

        fn computed(&self) {}
    }

    /// What a new scheduler is told.
    async fn told(rig: &Rig) -> String {
        refusal(rig.connect(hello()).await.next().await)
    }

    #[tokio::test]
    async fn an_engine_that_stands_still_is_not_ready_until_it_goes_on() {
        let rig = Rig::start().await;
        tokio::spawn(watch(rig.control.clone(), LIMIT));
        let mut scheduler = rig.connect(hello()).await;
        assert_eq!(refusal(scheduler.next().await), "");

        let (shut, gate) = mpsc::channel();
        let goal = Goal::FirstTokens { watcher: Arc::new(Gate(Mutex::new(gate))) };
        let key = types::RequestKey { request: "stuck".into(), epoch: 0 };
        let mut job = rig.engine.submit(Job { key, spec: spec(0, 20, 1, 1, 0), goal, matcher: None }).unwrap();

        while scheduler.any().await.is_some() {}
        assert_eq!(rig.control.not_ready(), Some("stuck: the engine's step stands still"));
        let refused = told(&rig).await;
        assert!(refused.starts_with("engine: "), "{refused}");

        drop(shut);
        assert!(matches!(job.next().await, Some(Happening::Sampled { .. })));
        while !told(&rig).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(rig.control.not_ready(), None);
    }

    #[tokio::test]
    async fn an_engine_without_work_is_never_stuck() {
        let rig = Rig::start().await;
        tokio::spawn(watch(rig.control.clone(), LIMIT));
        tokio::time::sleep(4 * LIMIT).await;
        assert_eq!(rig.control.not_ready(), None);
    }
}
