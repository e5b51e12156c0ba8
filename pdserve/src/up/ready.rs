//! Waits until the scheduler says that a prompt went from P to D and back, and shows what it waits for meanwhile.

use std::time::Duration;

use bytes::Bytes;
use edge::PeerStream;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::plan::Plan;
use super::supervise::Cluster;

const POLL: Duration = Duration::from_millis(40);
/// How often the terminal hears what is missing.
const SAY_EVERY: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Returns when every instance is ready, or with an error as soon as a process ends.
pub(crate) async fn wait(plan: &Plan, cluster: &mut Cluster<'_>) -> anyhow::Result<()> {
    tokio::select! {
        error = cluster.first_exit() => Err(error),
        () = poll_until_ready(plan) => Ok(()),
    }
}

async fn poll_until_ready(plan: &Plan) {
    let mut say_at = Instant::now() + SAY_EVERY;
    loop {
        let waiting_for = match ask(plan).await {
            Ok(None) => return,
            Ok(Some(waiting_for)) => waiting_for,
            Err(_) => "the scheduler to listen".to_owned(),
        };
        if Instant::now() >= say_at {
            say!("  waiting for {waiting_for}");
            say_at = Instant::now() + SAY_EVERY;
        }
        sleep(POLL).await;
    }
}

/// `None` when all are ready, else what the scheduler says is missing.
async fn ask(plan: &Plan) -> anyhow::Result<Option<String>> {
    let address = plan.scheduler_address();
    let stream = match &plan.https {
        Some(pinned) => pinned.connect(address).await?,
        None => PeerStream::connect(address).await?,
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/ready").header("host", "scheduler").body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    connection.abort();
    let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
    Ok(missing(&serde_json::from_slice(&body)?))
}

/// Picks the instances that are not ready out of `/ready`'s JSON. The scheduler serves as soon as some are; `up` waits for all.
fn missing(report: &Value) -> Option<String> {
    let instances = report["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
    let missing = instances.iter().filter(|instance| instance["state"] != "ready").map(|instance| {
        let text = |key: &str| instance[key].as_str().unwrap_or("?").to_owned();
        format!("{} at {} ({})", text("instance"), text("address"), text("reason"))
    });
    let missing: Vec<_> = missing.collect();
    match missing.is_empty() {
        true if report["ready"] == true => None,
        true => Some("a first prompt to go through".to_owned()),
        false => Some(missing.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(report: Value, expected: Option<&str>) {
        assert_eq!(missing(&report).as_deref(), expected, "{report}");
    }

    #[test]
    fn every_instance_is_awaited_by_name_and_address() {
        let ready = json!({"instance": "prefill-0", "address": "127.0.0.1:1", "state": "ready"});
        let absent = json!({"instance": "decode-0", "address": "127.0.0.1:2", "state": "absent", "reason": "refused"});
        check(json!({"ready": true, "instances": [ready]}), None);
        check(json!({"ready": false, "instances": [ready]}), Some("a first prompt to go through"));
        check(json!({"ready": true, "instances": [ready, absent]}), Some("decode-0 at 127.0.0.1:2 (refused)"));
    }
}
