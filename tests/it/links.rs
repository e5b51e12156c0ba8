//! Links that are cut, slow or lie: real workers and a scheduler in this process, a fault proxy on every link between them.

use std::time::Duration;

use pdserve::Fault;
use serde_json::{Value, json};
use tests::{Oracle, demo_model};
use types::SamplingParams;

use crate::local_cluster::LocalCluster;

const CHAT: &str = "/v1/chat/completions";
/// Room for everything that a test asks for at once.
const PLENTY: u64 = 64 << 20;

/// Runs for `tokens` tokens whatever the model says.
fn body(question: &str, tokens: u32) -> Value {
    json!({
        "model": "model", "temperature": 0, "max_tokens": tokens, "ignore_eos": true,
        "messages": [{"role": "user", "content": question}],
    })
}

/// What one process answers.
fn expected(oracle: &mut Oracle, question: &str, tokens: u32) -> String {
    let sampling = SamplingParams { max_tokens: tokens, ignore_eos: true, ..SamplingParams::default() };
    let prompt = oracle.chat_prompt(question);
    let choices = oracle.generate(prompt, &sampling, 1);
    oracle.text(&choices[0])
}

/// Asks all questions at once, does something meanwhile, and compares every text.
async fn ask_during<T>(cluster: &LocalCluster, questions: &[String], tokens: u32, meanwhile: impl Future<Output = T>) {
    let asked = questions
        .iter()
        .map(|question| async { cluster.client.stream(CHAT, &body(question, tokens)).await.text(0).await });
    let (texts, _) = tokio::join!(futures::future::join_all(asked), meanwhile);
    let mut oracle = Oracle::load(&demo_model());
    for (question, text) in questions.iter().zip(texts) {
        assert_eq!(text, expected(&mut oracle, question, tokens), "{question}");
    }
}

fn questions(round: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{round} {number}: {}", "How are blocks handed over? ".repeat(8))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn f9_flipped_bits_and_cut_connections_change_no_text_and_are_counted() {
    let cluster = LocalCluster::start(1, 1, PLENTY).await;
    let decode = cluster.worker("decode-0");
    decode.kv.set(Fault::FlipEvery(1_000_000));
    ask_during(&cluster, &questions("flip", 6), 8, async {}).await;
    let flipped = decode.kv.damaged();
    let refused = decode.count("pdserve_refused_pieces_total").await;
    let noticed = refused + decode.count("pdserve_kv_connections_lost_total").await;
    assert!(flipped > 0 && noticed >= flipped as f64, "{noticed} of {flipped} were noticed");
    let retried = cluster.worker("prefill-0").count("pdserve_retried_pieces_total").await;
    assert!(retried > 0.0 && retried <= refused, "{retried} pieces were sent again, {refused} refused");
    // Once: what was on its way is sent again from the start, and would never arrive through a link that is cut again and again.
    decode.kv.set(Fault::CutEvery(300_000));
    let once = async {
        cluster.until("cut", || async { decode.kv.damaged() > flipped }).await;
        decode.kv.set(Fault::None);
    };
    ask_during(&cluster, &questions("cut", 6), 8, once).await;
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f12_a_partition_between_scheduler_and_decode_changes_no_text() {
    let cluster = LocalCluster::start(1, 2, PLENTY).await;
    let partition = async {
        let busy = || cluster.workers[1..].iter().all(|worker| worker.running.pool().stats().leased > 0);
        cluster.until("busy", || async { busy() }).await;
        cluster.worker("decode-0").control.set(Fault::Hold);
        cluster.until("taken for dead", || async { cluster.states().await[1] == "absent" }).await;
    };
    ask_during(&cluster, &questions("partition", 8), 150, partition).await;
    // Healed: what the cut-off worker still said is heard by nobody, and what it held comes back.
    cluster.worker("decode-0").control.set(Fault::None);
    cluster.until("back", || async { cluster.states().await[1] == "ready" }).await;
    cluster.settled().await;
    ask_during(&cluster, &questions("healed", 4), 8, async {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f13_a_partition_between_prefill_and_decode_moves_requests_and_the_pair_is_avoided() {
    let cluster = LocalCluster::start(1, 2, PLENTY).await;
    cluster.worker("decode-0").kv.set(Fault::Hold);
    let failures = async || cluster.count("pdserve_retries_total", "transferring").await;
    // The second opens the pair's breaker.
    while failures().await < 2.0 {
        ask_during(&cluster, &questions("partition", 6), 8, async {}).await;
    }
    let failed = failures().await;
    ask_during(&cluster, &questions("afterwards", 6), 8, async {}).await;
    let again = failures().await - failed;
    // A single probe may find out that it is still so.
    assert!(again <= 1.0, "{again} of 6 requests went to the pair again");
    cluster.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f14_slow_links_change_no_text() {
    let cluster = LocalCluster::start(1, 2, PLENTY).await;
    let slow = cluster.worker("decode-0");
    slow.control.set(Fault::Delay(Duration::from_millis(50)));
    slow.kv.set(Fault::Delay(Duration::from_millis(50)));
    ask_during(&cluster, &questions("slow", 8), 30, async {}).await;
    cluster.settled().await;
}

/// The pools hold a few of the requests at a time, and those grow until they do not fit any more.
#[tokio::test(flavor = "multi_thread")]
async fn f20_an_exhausted_pool_delays_and_preempts_and_changes_no_text() {
    // 60 blocks of 16 tokens of 3 KiB each.
    let cluster = LocalCluster::start(1, 1, 60 * 16 * 3072).await;
    ask_during(&cluster, &questions("full", 24), 120, async {}).await;
    let preempted = cluster.worker("decode-0").count("pdserve_preemptions_total").await;
    assert!(preempted > 0.0, "the pool was never exhausted");
    cluster.settled().await;
}
