//! Proves every instance with a short prompt that really goes through it: P computes, D receives and decodes.
//!
//! `/ready` counts an instance only after its canary came back, so a cluster that cannot hand over never looks ready.

use std::sync::Arc;

use telemetry::SchedulerMetrics;
use tokio::time::Instant;
use tracing::{info, warn};
use types::{RequestId, Role, SamplingParams, TokenId};

use crate::admission::Admission;
use crate::answer::Style;
use crate::bounds::Bounds;
use crate::cluster::Cluster;
use crate::output;
use crate::pairing::{Route, Slot};
use crate::request::{Request, serve};

/// Runs until the scheduler ends.
pub(crate) async fn keep(cluster: Arc<Cluster>, style: Style) {
    let prompt: Arc<[TokenId]> = canary_prompt(&style).into();
    // Its own, so that canaries do not wait in line with clients nor count as their requests.
    let (admission, metrics) = (Admission::new(&Bounds::default()), SchedulerMetrics::new("canary"));
    let (mut ready, mut failed) = (false, Vec::new());
    loop {
        let mut changed = std::pin::pin!(cluster.changed());
        changed.as_mut().enable();
        let Some(route) = next_route(&cluster.unproven(), &cluster.live(), &mut failed) else {
            let (now_ready, _) = cluster.report();
            if now_ready && !ready {
                info!(instances = cluster.live().len(), "ready: a canary prompt came back through every instance");
            }
            ready = now_ready;
            changed.await;
            continue;
        };
        let request = canary(&prompt, &style, route);
        let proven = prove(&cluster, &admission, &metrics, &request).await;
        if !proven {
            failed.push(route);
            tokio::time::sleep(cluster.timings().canary).await;
        }
    }
}

/// Sends one canary and notes the outcome for everyone on its way.
async fn prove(cluster: &Arc<Cluster>, admission: &Admission, metrics: &SchedulerMetrics, request: &Request) -> bool {
    let Some(route) = request.via else { return false };
    let slots: Vec<Slot> = route.prefill().into_iter().chain([route.decode()]).collect();
    let processes: Vec<(Slot, Option<u64>)> = slots.iter().map(|&slot| (slot, cluster.generation(slot))).collect();
    let (writer, _reader) = output::channel(usize::MAX);
    let patience = 2 * cluster.timings().stall;
    let served = tokio::time::timeout(patience, serve(cluster, admission, metrics, request, &writer)).await;
    let outcome = match served {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("canary prompt failed: {error}")),
        Err(_) => Err(format!("canary prompt did not come back within {} s", patience.as_secs_f32())),
    };
    let names: Vec<String> = slots.iter().map(|&slot| cluster.target(slot).id.to_string()).collect();
    let way = names.join(" -> ");
    match &outcome {
        Ok(()) => info!(way, "canary came back"),
        Err(error) => warn!(way, %error, "canary failed"),
    }
    for (slot, generation) in processes {
        if let Some(generation) = generation {
            cluster.canary(slot, generation, outcome.clone());
        }
    }
    outcome.is_ok()
}

/// A way through an unproven instance, if possible with a proven one at the other end. Ways that failed come last, so that one pair
/// that cannot hand over does not keep others from being proven.
fn next_route(unproven: &[(Slot, Role)], live: &[(Slot, Role)], failed: &mut Vec<Route>) -> Option<Route> {
    let partners = |role: Role| {
        let of_role =
            |proven: bool| move |instance: &&(Slot, Role)| instance.1 == role && unproven.contains(instance) != proven;
        live.iter().filter(of_role(true)).chain(live.iter().filter(of_role(false))).map(|(slot, _)| *slot)
    };
    let through = |&(slot, role): &(Slot, Role)| -> Vec<Route> {
        match role {
            Role::Prefill => partners(Role::Decode).map(|decode| Route::Pair { prefill: slot, decode }).collect(),
            Role::Decode if live.iter().all(|(_, role)| *role != Role::Prefill) => vec![Route::Local { decode: slot }],
            Role::Decode => partners(Role::Prefill).map(|prefill| Route::Pair { prefill, decode: slot }).collect(),
            Role::Scheduler => Vec::new(),
        }
    };
    let routes: Vec<Route> = unproven.iter().flat_map(through).collect();
    if routes.iter().all(|route| failed.contains(route)) {
        failed.clear();
    }
    routes.into_iter().find(|route| !failed.contains(route))
}

fn canary_prompt(style: &Style) -> Vec<TokenId> {
    let mut prompt = style.tokenizer.encode("Are you ready?", false).unwrap_or_default();
    // Shorter than any block, so that no cache can answer for the hand-over.
    prompt.truncate(7);
    if prompt.is_empty() {
        prompt.push(0);
    }
    prompt
}

fn canary(prompt: &Arc<[TokenId]>, style: &Style, route: Route) -> Request {
    Request {
        id: RequestId::from(format!("canary-{:016x}", rand::random::<u64>())),
        prompt: prompt.clone(),
        choices: 1,
        first_index: 0,
        sampling: SamplingParams { max_tokens: 2, ignore_eos: true, ..SamplingParams::default() },
        cache_salt: Vec::new(),
        style: style.clone(),
        embed: None,
        arrived: Instant::now(),
        attempts: 1,
        via: Some(route),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P0: (Slot, Role) = (Slot(0), Role::Prefill);
    const P1: (Slot, Role) = (Slot(1), Role::Prefill);
    const D2: (Slot, Role) = (Slot(2), Role::Decode);
    const D3: (Slot, Role) = (Slot(3), Role::Decode);

    fn pair(prefill: (Slot, Role), decode: (Slot, Role)) -> Option<Route> {
        Some(Route::Pair { prefill: prefill.0, decode: decode.0 })
    }

    #[test]
    fn every_instance_gets_a_way() {
        let check = |unproven: &[_], live: &[_], expected| {
            assert_eq!(next_route(unproven, live, &mut Vec::new()), expected);
        };
        check(&[], &[P0, D2], None);
        check(&[P0], &[P0], None);
        check(&[P0, D2], &[P0, D2], pair(P0, D2));
        check(&[P1], &[P0, P1, D2, D3], pair(P1, D2));
        check(&[P1, D2], &[P0, P1, D2, D3], pair(P1, D3));
        check(&[D3], &[P0, P1, D2, D3], pair(P0, D3));
        check(&[D2], &[D2], Some(Route::Local { decode: Slot(2) }));
        check(&[P0, D2], &[P0, D2, D3], pair(P0, D3));
    }

    #[test]
    fn a_way_that_failed_is_tried_again_after_the_others() {
        let mut failed = Vec::new();
        let mut next = || {
            let route = next_route(&[P0, D2, D3], &[P0, D2, D3], &mut failed);
            failed.extend(route);
            route
        };
        assert_eq!([next(), next(), next()], [pair(P0, D2), pair(P0, D3), pair(P0, D2)]);
    }
}
