//! Every metric of every process, in one place.
//!
//! The scheduler serves vLLM's names (prefix `vllm:`) where it truly measures the same thing, old and new name alike, and our own under
//! `pdserve_`. Label values come from closed lists or from the rank table, so that the number of series is bounded.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use types::{InstanceId, Role};

/// `Content-Type` of what `render` returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

// Buckets are vLLM's, so that existing dashboards keep their shape, with finer steps below where ours start.
const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0,
];
const PER_TOKEN_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
    20.0,
];
const REQUEST_SECONDS: &[f64] = &[
    0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0,
];
const HAND_OVER_SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0,
    100_000.0,
];
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// How a request ended, as its client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    /// 4xx: the client's doing.
    Refused,
    /// 429 or 503 before any work.
    Shed,
    Cancelled,
    Failed,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Refused => "refused",
            Self::Shed => "shed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// Which way KV travelled, seen from the instance that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Sent,
    Received,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
        }
    }
}

/// A finished hand-over.
#[derive(Clone, Copy, Debug)]
pub struct HandOver<'a> {
    pub transport: &'a str,
    pub bytes: u64,
    pub pieces: u64,
    pub retried_pieces: u64,
    /// From the end of the last prompt chunk's computation to the decode side's commit.
    pub exposed: Duration,
}

/// What a worker last reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WorkerLoad {
    pub running: u64,
    pub waiting: u64,
    pub blocks_total: u64,
    pub blocks_free: u64,
    pub blocks_cached: u64,
    /// Since the worker's start.
    pub preemptions: u64,
}

/// Counts one while it lives.
#[derive(Debug)]
pub struct GaugeGuard(IntGauge);

impl GaugeGuard {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Registers metrics under one set of constant labels.
struct Names {
    registry: Registry,
}

impl Names {
    fn new(labels: &[(&str, &str)]) -> Self {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { registry: Registry::new_custom(None, Some(labels)).expect("no prefix is a valid prefix") }
    }

    fn add<M: Collector + Clone + 'static>(&self, made: prometheus::Result<M>) -> M {
        let metric = made.expect("metric names are constants of this file, and valid");
        self.registry.register(Box::new(metric.clone())).expect("metric names are constants of this file, and unique");
        metric
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }
    fn fraction(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }
    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }

    fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).expect("gathered metrics are well formed")
    }
}

macro_rules! metrics {
    ($(#[$doc:meta])* $owner:ident { $( $field:ident: $type:ty = $make:ident($($argument:expr),+); )+ }) => {
        $(#[$doc])*
        struct $owner { $( $field: $type, )+ }
        impl $owner {
            fn register(names: &Names) -> Self {
                Self { $( $field: names.$make($($argument),+), )+ }
            }
        }
    };
}

metrics! {
    /// What the scheduler counts.
    SchedulerNames {
        running: IntGauge = gauge("vllm:num_requests_running", "Requests that a worker is computing.");
        waiting: IntGauge = gauge("vllm:num_requests_waiting", "Requests admitted and not yet computed.");
        kv_usage: Gauge = fraction("vllm:kv_cache_usage_perc", "Part of the decode instances' KV blocks in use, 0 to 1.");
        kv_usage_old: Gauge = fraction("vllm:gpu_cache_usage_perc", "As vllm:kv_cache_usage_perc, under its old name.");
        prompt_tokens: IntCounter = counter("vllm:prompt_tokens_total", "Prompt tokens processed.");
        generation_tokens: IntCounter = counter("vllm:generation_tokens_total", "Tokens generated.");
        success: IntCounterVec = counters("vllm:request_success_total", "Choices that ended well.", &["finished_reason"]);
        preemptions: IntCounter = counter("vllm:num_preemptions_total", "Sequences pushed out of a full KV cache and recomputed.");
        prefix_queries: IntCounter = counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in prefix caches.");
        prefix_hits: IntCounter = counter("vllm:prefix_cache_hits_total", "Prompt tokens found in prefix caches.");
        first_token: Histogram = histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN_SECONDS);
        inter_token: Histogram = histogram("vllm:inter_token_latency_seconds", "Between two tokens of a choice.", PER_TOKEN_SECONDS);
        inter_token_old: Histogram = histogram("vllm:time_per_output_token_seconds", "As vllm:inter_token_latency_seconds, under its old name.", PER_TOKEN_SECONDS);
        per_token: Histogram = histogram("vllm:request_time_per_output_token_seconds", "Mean time per token after the first, per request.", PER_TOKEN_SECONDS);
        end_to_end: Histogram = histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token.", REQUEST_SECONDS);
        request_prompt_tokens: Histogram = histogram("vllm:request_prompt_tokens", "Prompt tokens per request.", TOKENS);
        request_generation_tokens: Histogram = histogram("vllm:request_generation_tokens", "Generated tokens per request.", TOKENS);
        params_n: Histogram = histogram("vllm:request_params_n", "The parameter n.", CHOICES);
        queue: Histogram = histogram("vllm:request_queue_time_seconds", "From arrival to the start of computation.", REQUEST_SECONDS);
        prefill: Histogram = histogram("vllm:request_prefill_time_seconds", "Computing the prompt.", REQUEST_SECONDS);
        decode: Histogram = histogram("vllm:request_decode_time_seconds", "From the first token to the last.", REQUEST_SECONDS);
        requests: IntCounterVec = counters("pdserve_requests_total", "Requests by outcome: finished, refused, shed, cancelled, failed.", &["outcome"]);
        exposed: Histogram = histogram("pdserve_hand_over_exposed_seconds", "Hand-over time that computing did not hide.", HAND_OVER_SECONDS);
        hand_over_bytes: IntCounterVec = counters("pdserve_hand_over_bytes_total", "KV bytes handed over.", &["transport"]);
        hand_over_pieces: IntCounterVec = counters("pdserve_hand_over_pieces_total", "KV pieces handed over.", &["transport"]);
        hand_over_retried: IntCounterVec = counters("pdserve_hand_over_retried_pieces_total", "KV pieces sent again.", &["transport"]);
        retries: IntCounterVec = counters("pdserve_retries_total", "Attempts after the first, by the stage that failed.", &["stage"]);
        stale: IntCounter = counter("pdserve_stale_dropped_total", "Messages of an attempt that was over.");
        worker_up: IntGaugeVec = gauges("pdserve_worker_up", "1 while the scheduler may use the instance.", &["instance", "role"]);
        worker_running: IntGaugeVec = gauges("pdserve_worker_running", "Sequences that the instance computes.", &["instance", "role"]);
        worker_waiting: IntGaugeVec = gauges("pdserve_worker_waiting", "Sequences that wait on the instance.", &["instance", "role"]);
    }
}

/// The scheduler's metrics.
pub struct SchedulerMetrics {
    names: Names,
    all: SchedulerNames,
    workers: Mutex<BTreeMap<InstanceId, (Role, WorkerLoad)>>,
}

impl SchedulerMetrics {
    /// `model_name` labels every series, as dashboards for vLLM expect.
    pub fn new(model_name: &str) -> Self {
        let names = Names::new(&[("model_name", model_name)]);
        Self { all: SchedulerNames::register(&names), names, workers: Mutex::default() }
    }

    /// A request that waits to be computed, until the guard is dropped.
    pub fn waiting(&self) -> GaugeGuard {
        GaugeGuard::new(&self.all.waiting)
    }

    /// A request that is being computed, until the guard is dropped.
    pub fn running(&self) -> GaugeGuard {
        GaugeGuard::new(&self.all.running)
    }

    /// A valid request came in.
    pub fn admitted(&self, n: u32) {
        self.all.params_n.observe(f64::from(n));
    }

    /// A prompt was computed.
    pub fn prefilled(&self, prompt_tokens: u64, cached_tokens: u64, queued: Duration, computed: Duration) {
        self.all.prompt_tokens.inc_by(prompt_tokens);
        self.all.prefix_queries.inc_by(prompt_tokens);
        self.all.prefix_hits.inc_by(cached_tokens);
        self.all.request_prompt_tokens.observe(prompt_tokens as f64);
        self.all.queue.observe(queued.as_secs_f64());
        self.all.prefill.observe(computed.as_secs_f64());
    }

    pub fn first_token(&self, since_arrival: Duration) {
        self.all.generation_tokens.inc();
        self.all.first_token.observe(since_arrival.as_secs_f64());
    }

    /// A token after a choice's first, `gap` after the one before.
    pub fn next_token(&self, gap: Duration) {
        self.all.generation_tokens.inc();
        self.all.inter_token.observe(gap.as_secs_f64());
        self.all.inter_token_old.observe(gap.as_secs_f64());
    }

    /// A choice ended well; `reason` is the word in the answer.
    pub fn choice_finished(&self, reason: &'static str) {
        self.all.success.with_label_values(&[reason]).inc();
    }

    /// A request's last token: its length, and its times since arrival and since the first token.
    pub fn finished(&self, generation_tokens: u64, since_arrival: Duration, since_first_token: Duration) {
        self.all.request_generation_tokens.observe(generation_tokens as f64);
        self.all.end_to_end.observe(since_arrival.as_secs_f64());
        self.all.decode.observe(since_first_token.as_secs_f64());
        if generation_tokens > 1 {
            self.all.per_token.observe(since_first_token.as_secs_f64() / (generation_tokens - 1) as f64);
        }
    }

    /// Every request ends here once, whatever became of it.
    pub fn ended(&self, outcome: Outcome) {
        self.all.requests.with_label_values(&[outcome.as_str()]).inc();
    }

    pub fn handed_over(&self, done: &HandOver<'_>) {
        let transport = [known_transport(done.transport)];
        self.all.exposed.observe(done.exposed.as_secs_f64());
        self.all.hand_over_bytes.with_label_values(&transport).inc_by(done.bytes);
        self.all.hand_over_pieces.with_label_values(&transport).inc_by(done.pieces);
        self.all.hand_over_retried.with_label_values(&transport).inc_by(done.retried_pieces);
    }

    /// Another attempt begins because this stage failed.
    pub fn retried(&self, failed: types::Stage) {
        self.all.retries.with_label_values(&[failed.as_str()]).inc();
    }

    pub fn stale_dropped(&self, messages: u64) {
        self.all.stale.inc_by(messages);
    }

    /// An instance became usable.
    pub fn worker_up(&self, instance: &InstanceId, role: Role) {
        self.all.worker_up.with_label_values(&[instance.as_str(), role.as_str()]).set(1);
    }

    /// An instance went; what it reported no longer counts.
    pub fn worker_down(&self, instance: &InstanceId, role: Role) {
        let labels = [instance.as_str(), role.as_str()];
        self.all.worker_up.with_label_values(&labels).set(0);
        self.all.worker_running.with_label_values(&labels).set(0);
        self.all.worker_waiting.with_label_values(&labels).set(0);
        let mut workers = self.workers.lock();
        workers.remove(instance);
        self.set_usage(&workers);
    }

    /// What an instance reported last.
    pub fn worker_load(&self, instance: &InstanceId, role: Role, load: WorkerLoad) {
        let labels = [instance.as_str(), role.as_str()];
        self.all.worker_running.with_label_values(&labels).set(as_gauge(load.running));
        self.all.worker_waiting.with_label_values(&labels).set(as_gauge(load.waiting));
        let mut workers = self.workers.lock();
        let before = workers.insert(instance.clone(), (role, load)).map_or(0, |(_, load)| load.preemptions);
        // A smaller number means that the worker has restarted and counts from 0.
        self.all.preemptions.inc_by(load.preemptions.checked_sub(before).unwrap_or(load.preemptions));
        self.set_usage(&workers);
    }

    fn set_usage(&self, workers: &BTreeMap<InstanceId, (Role, WorkerLoad)>) {
        let decode = workers.values().filter(|(role, _)| *role == Role::Decode);
        let (used, total) = decode.fold((0, 0), |(used, total), (_, load)| {
            let reclaimable = load.blocks_free.saturating_add(load.blocks_cached);
            (used + load.blocks_total.saturating_sub(reclaimable), total + load.blocks_total)
        });
        let usage = if total == 0 { 0.0 } else { used as f64 / total as f64 };
        self.all.kv_usage.set(usage);
        self.all.kv_usage_old.set(usage);
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        self.names.render()
    }
}

metrics! {
    /// What a worker counts.
    WorkerNames {
        running: IntGauge = gauge("pdserve_running", "Sequences in the batch.");
        waiting: IntGauge = gauge("pdserve_waiting", "Sequences that wait.");
        blocks: IntGaugeVec = gauges("pdserve_blocks", "KV blocks by state: free, cached, leased, total.", &["state"]);
        block_references: IntGaugeVec = gauges("pdserve_block_references", "KV blocks held, by what for: computing, landing, decoding, hand_over.", &["phase"]);
        preemptions: IntCounter = counter("pdserve_preemptions_total", "Sequences pushed out of a full KV cache and recomputed.");
        steps: Histogram = histogram("pdserve_step_seconds", "Engine steps.", PER_TOKEN_SECONDS);
        step_tokens: IntCounter = counter("pdserve_step_tokens_total", "Tokens computed by engine steps.");
        transfer_bytes: IntCounterVec = counters("pdserve_transfer_bytes_total", "KV bytes by transport and direction.", &["transport", "direction"]);
        transfer_pieces: IntCounterVec = counters("pdserve_transfer_pieces_total", "KV pieces by transport and direction.", &["transport", "direction"]);
        refused: IntCounterVec = counters("pdserve_refused_pieces_total", "KV pieces refused, by reason.", &["reason"]);
        retried: IntCounter = counter("pdserve_retried_pieces_total", "KV pieces sent again because they arrived damaged.");
        duplicates: IntCounter = counter("pdserve_duplicate_pieces_total", "KV pieces that had already arrived.");
        connections_lost: IntCounter = counter("pdserve_kv_connections_lost_total", "KV connections that ended in an error.");
        unauthenticated: IntCounter = counter("pdserve_kv_unauthenticated_total", "KV connections refused because the peer did not prove the cluster secret.");
        stale: IntCounter = counter("pdserve_stale_dropped_total", "Messages of an attempt that was over.");
    }
}

/// What a worker's KV plane has counted since it started.
#[derive(Clone, Debug, Default)]
pub struct KvPlane {
    /// By reason, each one of the transfer room's constants.
    pub refused: Vec<(&'static str, u64)>,
    pub retried: u64,
    pub duplicates: u64,
    pub connections_lost: u64,
    pub unauthenticated: u64,
}

/// A worker's metrics.
pub struct WorkerMetrics {
    names: Names,
    all: WorkerNames,
    /// Held while counters catch up with the KV plane's, so that two scrapes do not both add the difference.
    catching_up: Mutex<()>,
}

impl WorkerMetrics {
    pub fn new(instance: &InstanceId, role: Role) -> Self {
        let names = Names::new(&[("instance", instance.as_str()), ("role", role.as_str())]);
        Self { all: WorkerNames::register(&names), names, catching_up: Mutex::default() }
    }

    pub fn set_sequences(&self, running: usize, waiting: usize) {
        self.all.running.set(as_gauge(running as u64));
        self.all.waiting.set(as_gauge(waiting as u64));
    }

    pub fn set_blocks(&self, free: u32, cached: u32, leased: u32, total: u32) {
        for (state, blocks) in [("free", free), ("cached", cached), ("leased", leased), ("total", total)] {
            self.all.blocks.with_label_values(&[state]).set(i64::from(blocks));
        }
    }

    /// References by what blocks are held for; a shared block counts once per holder.
    pub fn set_block_references(&self, phases: &[(&str, u32)]) {
        for (phase, references) in phases {
            self.all.block_references.with_label_values(&[*phase]).set(i64::from(*references));
        }
    }

    pub fn preempted(&self, sequences: u64) {
        self.all.preemptions.inc_by(sequences);
    }

    pub fn stepped(&self, tokens: u64, took: Duration) {
        self.all.step_tokens.inc_by(tokens);
        self.all.steps.observe(took.as_secs_f64());
    }

    pub fn transferred(&self, transport: &str, direction: Direction, pieces: u64, bytes: u64) {
        let labels = [known_transport(transport), direction.as_str()];
        self.all.transfer_pieces.with_label_values(&labels).inc_by(pieces);
        self.all.transfer_bytes.with_label_values(&labels).inc_by(bytes);
    }

    /// Takes over what the KV plane has counted.
    pub fn set_kv_plane(&self, counted: &KvPlane) {
        let _alone = self.catching_up.lock();
        let catch_up = |counter: &IntCounter, total: u64| counter.inc_by(total.saturating_sub(counter.get()));
        for (reason, total) in &counted.refused {
            catch_up(&self.all.refused.with_label_values(&[*reason]), *total);
        }
        catch_up(&self.all.retried, counted.retried);
        catch_up(&self.all.duplicates, counted.duplicates);
        catch_up(&self.all.connections_lost, counted.connections_lost);
        catch_up(&self.all.unauthenticated, counted.unauthenticated);
    }

    pub fn stale_dropped(&self, messages: u64) {
        self.all.stale.inc_by(messages);
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        self.names.render()
    }
}

/// A peer's word becomes a label only if it is one of ours.
fn known_transport(name: &str) -> &'static str {
    ["inproc", "shm", "tcp", "grpc"].into_iter().find(|known| *known == name).unwrap_or("other")
}

fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks for a sample; the order of its labels does not matter.
    fn check(rendered: &str, sample: &str) {
        assert!(rendered.lines().any(|line| parts(line) == parts(sample)), "{sample}\nnot in\n{rendered}");
    }

    fn parts(sample: &str) -> Vec<&str> {
        let mut parts: Vec<&str> = sample.split(['{', ',', '}']).collect();
        parts.sort_unstable();
        parts
    }

    #[test]
    fn scheduler_serves_old_and_new_names() {
        let metrics = SchedulerMetrics::new("demo");
        let running = metrics.running();
        metrics.admitted(2);
        metrics.prefilled(100, 32, Duration::from_millis(3), Duration::from_millis(20));
        metrics.first_token(Duration::from_millis(25));
        metrics.next_token(Duration::from_millis(7));
        metrics.choice_finished("stop");
        metrics.finished(2, Duration::from_millis(32), Duration::from_millis(7));
        metrics.ended(Outcome::Finished);
        metrics.retried(types::Stage::Decoding);
        let done = HandOver {
            transport: "evil\"label",
            bytes: 7,
            pieces: 1,
            retried_pieces: 0,
            exposed: Duration::from_micros(300),
        };
        metrics.handed_over(&done);
        let text = metrics.render();
        check(&text, "vllm:num_requests_running{model_name=\"demo\"} 1");
        check(&text, "vllm:num_requests_waiting{model_name=\"demo\"} 0");
        check(&text, "vllm:prompt_tokens_total{model_name=\"demo\"} 100");
        check(&text, "vllm:prefix_cache_hits_total{model_name=\"demo\"} 32");
        check(&text, "vllm:generation_tokens_total{model_name=\"demo\"} 2");
        check(&text, "vllm:request_success_total{finished_reason=\"stop\",model_name=\"demo\"} 1");
        check(&text, "vllm:time_to_first_token_seconds_count{model_name=\"demo\"} 1");
        check(&text, "vllm:inter_token_latency_seconds_count{model_name=\"demo\"} 1");
        check(&text, "vllm:time_per_output_token_seconds_count{model_name=\"demo\"} 1");
        check(&text, "pdserve_requests_total{model_name=\"demo\",outcome=\"finished\"} 1");
        check(&text, "pdserve_retries_total{model_name=\"demo\",stage=\"decoding\"} 1");
        check(&text, "pdserve_hand_over_bytes_total{model_name=\"demo\",transport=\"other\"} 7");
        drop(running);
        check(&metrics.render(), "vllm:num_requests_running{model_name=\"demo\"} 0");
    }

    #[test]
    fn kv_usage_and_preemptions_follow_the_workers() {
        let metrics = SchedulerMetrics::new("demo");
        let load = |free, preemptions| WorkerLoad {
            blocks_total: 100,
            blocks_free: free,
            blocks_cached: 10,
            preemptions,
            ..Default::default()
        };
        metrics.worker_up(&"decode-0".into(), Role::Decode);
        metrics.worker_load(&"decode-0".into(), Role::Decode, load(40, 5));
        metrics.worker_load(&"decode-1".into(), Role::Decode, load(90, 0));
        metrics.worker_load(&"prefill-0".into(), Role::Prefill, load(0, 0));
        let text = metrics.render();
        check(&text, "vllm:kv_cache_usage_perc{model_name=\"demo\"} 0.25");
        check(&text, "vllm:gpu_cache_usage_perc{model_name=\"demo\"} 0.25");
        check(&text, "pdserve_worker_up{instance=\"decode-0\",model_name=\"demo\",role=\"decode\"} 1");
        metrics.worker_load(&"decode-0".into(), Role::Decode, load(40, 7));
        metrics.worker_load(&"decode-0".into(), Role::Decode, load(40, 1));
        metrics.worker_down(&"decode-0".into(), Role::Decode);
        let text = metrics.render();
        check(&text, "vllm:num_preemptions_total{model_name=\"demo\"} 8");
        check(&text, "vllm:kv_cache_usage_perc{model_name=\"demo\"} 0");
        check(&text, "pdserve_worker_up{instance=\"decode-0\",model_name=\"demo\",role=\"decode\"} 0");
    }

    #[test]
    fn worker_metrics() {
        let metrics = WorkerMetrics::new(&"decode-0".into(), Role::Decode);
        metrics.set_sequences(3, 1);
        metrics.set_blocks(5, 2, 1, 8);
        metrics.set_block_references(&[("landing", 1)]);
        metrics.stepped(16, Duration::from_millis(2));
        metrics.transferred("shm", Direction::Received, 4, 4096);
        let counted = KvPlane { refused: vec![("checksum", 2)], connections_lost: 1, ..KvPlane::default() };
        metrics.set_kv_plane(&counted);
        metrics.set_kv_plane(&counted);
        let text = metrics.render();
        check(&text, "pdserve_running{instance=\"decode-0\",role=\"decode\"} 3");
        check(&text, "pdserve_blocks{instance=\"decode-0\",role=\"decode\",state=\"free\"} 5");
        check(&text, "pdserve_block_references{instance=\"decode-0\",phase=\"landing\",role=\"decode\"} 1");
        check(&text, "pdserve_step_seconds_count{instance=\"decode-0\",role=\"decode\"} 1");
        check(
            &text,
            "pdserve_transfer_bytes_total{direction=\"received\",instance=\"decode-0\",role=\"decode\",transport=\"shm\"} 4096",
        );
        check(&text, "pdserve_refused_pieces_total{instance=\"decode-0\",reason=\"checksum\",role=\"decode\"} 2");
        check(&text, "pdserve_kv_connections_lost_total{instance=\"decode-0\",role=\"decode\"} 1");
    }
}
