//! Workers that stay and are no good: they fail, are slow, cannot reach each other, or come and go. The scheduler learns whom to avoid.

use std::time::Duration;

use proto::control::FailCode;
use serde_json::json;

use crate::failover::{check_text, only};
use crate::support::Cluster;
use crate::support::client::{get, post, stream};
use crate::support::fake_worker::{Fake, FakeWorker, continuation};

/// Reservations that a decode worker was asked for.
fn asked(cluster: &Cluster, name: &str) -> usize {
    cluster.worker(name).count("reserve")
}

#[tokio::test]
async fn f13_a_pair_that_cannot_hand_over_is_avoided_afterwards() {
    let cut_off = only("prefill-0", |fake| fake.cut_off_from = Some("decode-0"));
    let cluster = Cluster::start(1, 2, cut_off).await;
    for _ in 0..20 {
        check_text(&cluster, 10, 2).await;
    }
    // Two failures open the pair's breaker; a probe may follow each second.
    let tried = asked(&cluster, "decode-0");
    assert!((1..=6).contains(&tried), "{tried} of 20 requests went to the instance that KV cannot reach");
    assert_eq!(cluster.instance("decode-0").await["load"]["breaker_open"], false, "the instance itself is not blamed");
}

/// A link that was cut comes back, and with one pair there is no other way: the attempt is made again, and then given up.
#[tokio::test]
async fn f13_the_only_pair_is_tried_again() {
    let cut_off = only("prefill-0", |fake| fake.cut_off_from = Some("decode-0"));
    let cluster = Cluster::start_unready(1, 1, cut_off, |_| {}).await;
    cluster.ready().await;
    let body = json!({"prompt": "hello", "max_tokens": 10});
    let answer = post(cluster.address(), "/v1/completions", body);
    let mend = async {
        cluster.until("tried", || async { cluster.worker("prefill-0").count("prefill") >= 2 }).await;
        cluster.worker("prefill-0").mend();
    };
    let (answer, ()) = tokio::join!(answer, mend);
    assert_eq!(answer.json()["choices"][0]["text"], continuation("hello", 0, 10), "{}", answer.text());
}

/// It lives and is heard, but nothing ever comes of the attempt: after `Timings::stall` it is asked, and another attempt follows.
#[tokio::test]
async fn what_a_living_worker_lost_is_done_elsewhere() {
    let lossy = |swallows, forgets_after| {
        move |fake: &mut Fake| {
            fake.swallows = swallows;
            fake.forgets_after = forgets_after;
        }
    };
    let cases = [
        ("decode-0", Some("reserve"), None),
        ("prefill-0", Some("prefill"), None),
        ("decode-0", Some("generate"), None),
        ("decode-0", None, Some(7)),
    ];
    for (name, swallows, forgets_after) in cases {
        let cluster = Cluster::start(2, 2, only(name, lossy(swallows, forgets_after))).await;
        let mut asked = 0;
        while cluster.worker(name).count(swallows.unwrap_or("generate")) == 0 {
            assert!(asked < 16, "{name} is never used");
            check_text(&cluster, 20, 1).await;
            asked += 1;
        }
        cluster.until("settled", || async { cluster.workers.iter().all(|worker| worker.held() == 0) }).await;
    }
}

/// Who only waits or computes for longer than `Timings::stall` is not taken for lost.
#[tokio::test]
async fn a_slow_token_is_waited_for() {
    let cluster = Cluster::start(1, 2, |fake| fake.step = Duration::from_millis(900)).await;
    check_text(&cluster, 2, 1).await;
    assert_eq!(asked(&cluster, "decode-0") + asked(&cluster, "decode-1"), 1, "one attempt");
}

#[tokio::test]
async fn f14_a_slow_worker_s_share_falls() {
    let slow = |fake: &mut Fake| {
        fake.reports_costs = true;
        fake.step = Duration::from_millis(if fake.name == "decode-0" { 30 } else { 3 });
    };
    let cluster = Cluster::start(1, 3, slow).await;
    let clients = async |requests: usize| {
        let client = async |number: usize| {
            for _ in 0..requests {
                let (prompt, tokens) = (format!("client {number}"), 20);
                let body = json!({"prompt": prompt, "max_tokens": tokens});
                let answer = post(cluster.address(), "/v1/completions", body).await.json();
                assert_eq!(answer["choices"][0]["text"], continuation(&prompt, 0, tokens));
            }
        };
        futures::future::join_all((0..16).map(client)).await;
    };
    // Nobody knows at first who is slow.
    clients(3).await;
    let before = asked(&cluster, "decode-0");
    clients(10).await;
    let share = asked(&cluster, "decode-0") - before;
    // An even share would be a third of the 160.
    assert!(share < 16, "{share} of 160 requests went to the slow worker");
}

#[tokio::test]
async fn f18_another_process_under_the_same_name_is_a_new_worker() {
    let mut cluster = Cluster::start(1, 1, |_| {}).await;
    check_text(&cluster, 5, 1).await;
    let old = cluster.workers.pop().unwrap();
    let (fake, address) = (old.fake.clone(), old.address);
    drop(old);
    cluster.until("absent", || async { cluster.instance("decode-0").await["state"] == "absent" }).await;
    assert_eq!(get(cluster.address(), "/ready").await.status, 503);
    cluster.workers.push(FakeWorker::start_at(fake, address).await);
    cluster.ready().await;
    check_text(&cluster, 5, 1).await;
    assert_eq!(asked(&cluster, "decode-0"), 1, "the new process was used");
}

#[tokio::test]
async fn f19_every_request_ends_while_workers_leave_and_join() {
    let mut cluster = Cluster::start(2, 2, |_| {}).await;
    let address = cluster.address();
    let client = move |number: usize| async move {
        let mut served = 0;
        for _ in 0..60 {
            let (prompt, tokens) = (format!("client {number}"), 20);
            let answer = post(address, "/v1/completions", json!({"prompt": prompt, "max_tokens": tokens})).await;
            match answer.status {
                200 => assert_eq!(answer.json()["choices"][0]["text"], continuation(&prompt, 0, tokens)),
                status => assert_eq!(status, 503, "{}", answer.text()),
            }
            served += usize::from(answer.status == 200);
        }
        served
    };
    let clients: Vec<_> = (0..16).map(|number| tokio::spawn(client(number))).collect();
    // In turn one of each role goes and comes back: a hundred joins and leaves.
    for turn in 0..50 {
        let old = cluster.workers.remove(turn % 2 * 2);
        let (fake, address) = (old.fake.clone(), old.address);
        drop(old);
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.workers.insert(turn % 2 * 2, FakeWorker::start_at(fake, address).await);
    }
    let served: usize = futures::future::join_all(clients).await.into_iter().map(Result::unwrap).sum();
    assert!(served > 480, "{served} of 960 were served; the others were refused");
    cluster.ready().await;
}

#[tokio::test]
async fn f23_without_prefill_workers_requests_are_refused_and_streams_go_on() {
    let cluster = Cluster::start(1, 1, |fake| fake.step = Duration::from_millis(10)).await;
    let body = json!({"prompt": "hello", "max_tokens": 100, "stream": true});
    let mut open = stream(cluster.address(), "/v1/completions", body).await;
    open.event().await.unwrap();
    cluster.worker("prefill-0").kill();
    cluster.until("absent", || async { cluster.instance("prefill-0").await["state"] == "absent" }).await;
    let answer = post(cluster.address(), "/v1/completions", json!({"prompt": "x"})).await;
    assert_eq!((answer.status, &answer.headers["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(answer.json()["error"]["message"], "no prefill instance is available; try again soon");
    assert_eq!(open.events().await.last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn f24_a_worker_that_fails_each_request_is_left_alone_and_probed() {
    let fails = only("decode-0", |fake| fake.fails = Some(FailCode::FailInternal));
    let cluster = Cluster::start(1, 2, fails).await;
    for _ in 0..20 {
        check_text(&cluster, 4, 1).await;
    }
    let tried = asked(&cluster, "decode-0");
    assert!((5..10).contains(&tried), "{tried}");
    assert_eq!(cluster.instance("decode-0").await["load"]["breaker_open"], true);
    // Half open: once it is well, the next probe closes the breaker.
    cluster.worker("decode-0").mend();
    let closed = async || {
        check_text(&cluster, 4, 1).await;
        cluster.instance("decode-0").await["load"]["breaker_open"] == false
    };
    cluster.until("used again", closed).await;
}

#[tokio::test]
async fn f24_retries_stay_within_their_budget_when_everybody_fails() {
    let fails = |fake: &mut Fake| fake.fails = (fake.name.starts_with("decode")).then_some(FailCode::FailInternal);
    let cluster = Cluster::start(1, 8, fails).await;
    let ask = async |_| post(cluster.address(), "/v1/completions", json!({"prompt": "x", "max_tokens": 4})).await;
    let answers = futures::future::join_all((0..200).map(ask)).await;
    for answer in answers {
        assert_eq!((answer.status, &answer.headers["retry-after"]), (503, &"1".parse().unwrap()), "{}", answer.text());
    }
    let attempts: usize = cluster.workers.iter().map(|worker| worker.count("reserve")).sum();
    // One attempt each, a fifth of a retry each, and the burst of 32 that is always allowed.
    assert!(attempts <= 200 + 40 + 32, "{attempts} attempts at 200 requests");
}

#[tokio::test]
async fn f24_what_a_worker_calls_a_bad_request_is_neither_retried_nor_held_against_it() {
    let cluster = Cluster::start(1, 2, |fake| fake.fails = Some(FailCode::FailBadRequest)).await;
    for _ in 0..10 {
        let answer = post(cluster.address(), "/v1/completions", json!({"prompt": "x"})).await;
        assert_eq!(answer.status, 400);
    }
    assert_eq!(asked(&cluster, "decode-0") + asked(&cluster, "decode-1"), 10);
    for name in ["decode-0", "decode-1"] {
        assert_eq!(cluster.instance(name).await["load"]["breaker_open"], false, "{name}");
    }
}
