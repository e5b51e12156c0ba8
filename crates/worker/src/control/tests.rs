use std::time::Duration;

use kv::{BlockPool, Owner, Phase};
use net::TcpListener;
use proto::control::worker_client::WorkerClient;
use proto::control::{
    Cancel, FailCode, Generate, Load, Ping, Reserve, Tokens, scheduler_message as outbound, worker_message::Body,
};
use telemetry::WorkerMetrics;
use types::{GenerateSpec, RequestKey, SampledToken};

use super::*;
use crate::fake::{self, MAX_MODEL_LEN, Size, VOCAB, oracle, spec};
use crate::{Goal, Happening, Job, Loaded, Plan, Planner, QueueView, Runner, RunnerConfig, server};

/// Answers Generate with all tokens; holds three blocks on Reserve until it is cancelled.
pub(super) struct Simple(BlockPool, Counters);

impl RoleService for Simple {
    async fn serve(&self, mut attempt: Attempt) -> Result<(), Failure> {
        let key = attempt.key.clone();
        let spec = match attempt.order().await? {
            Order::Generate { spec, .. } => spec,
            other @ (Order::Prefill { .. } | Order::Embed { .. }) => {
                return Err(other.unexpected("Reserve or Generate"));
            }
            Order::Reserve(_) => {
                let _held = self.0.allocate(3, Owner { key, phase: Phase::Landing }).unwrap();
                return std::future::pending().await;
            }
        };
        let mut job = attempt.submit(Job { key: key.clone(), spec, goal: Goal::Complete, matcher: None })?;
        while let Happening::Sampled { tokens, prompt } = job.next().await? {
            let tokens = tokens.iter().map(Into::into).collect();
            attempt
                .reply(Body::Tokens(Tokens { key: Some((&key).into()), tokens, prefill: prompt.map(Into::into) }))
                .await?;
        }
        Ok(())
    }

    fn kv_counters(&self) -> &Counters {
        &self.1
    }
}

struct AllAtOnce;

impl Planner for AllAtOnce {
    fn plan(&mut self, view: &QueueView<'_>) -> Plan {
        let admit: Vec<_> = view.waiting.iter().map(|seq| seq.id).collect();
        let rows = view.running.iter().chain(view.waiting).map(|seq| (seq.id, seq.pending)).collect();
        Plan { preempt: Vec::new(), admit, rows }
    }
}

const SIZE: Size = Size { blocks: 64, block_size: 8, max_num_seqs: 16, max_num_batched_tokens: 64 };

/// A worker on a free port.
pub(super) struct Rig {
    pub(super) control: Control<Simple>,
    pool: BlockPool,
    pub(super) engine: EngineHandle,
    pub(super) address: String,
}

impl Rig {
    pub(super) async fn start() -> Self {
        Self::start_as(fake::config(Role::Decode, "decode-0", &[])).await
    }

    pub(super) async fn start_as(config: crate::Config) -> Self {
        let Loaded { config, engine, pool, model, limits, .. } =
            fake::loaded(config, SIZE, Box::new(AllAtOnce)).unwrap();
        let (instance, table_hash) = ("decode-0".into(), "table".into());
        let me = Introduction { role: Role::Decode, instance, table_hash, model, limits, incarnation: 1 };
        let role = Simple(pool.clone(), Counters::default());
        let control =
            Control::new(me, config.tables.clone(), role, engine.clone(), text::Grammars::of_model("no model".into()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let door = server::Door::new(&config, &control, &engine, None);
        tokio::spawn(server::serve(listener, door, CancellationToken::new()));
        Self { control, pool, engine, address }
    }

    pub(super) async fn connect(&self, hello: Hello) -> Scheduler {
        let (sender, receiver) = mpsc::channel(64);
        let mut scheduler = Scheduler { sender, messages: None };
        scheduler.send(outbound::Body::Hello(hello)).await;
        let mut client = WorkerClient::connect(self.address.clone()).await.unwrap();
        let messages = client.control(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        scheduler.messages = Some(messages);
        scheduler
    }

    /// Waits for all blocks to come back.
    async fn settled(&self) {
        while self.pool.stats().leased > 0 || self.control.0.attempts.borrow().ne(&0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// The other end of the stream.
pub(super) struct Scheduler {
    sender: mpsc::Sender<SchedulerMessage>,
    messages: Option<Streaming<WorkerMessage>>,
}

impl Scheduler {
    async fn send(&mut self, body: outbound::Body) {
        self.sender.send(SchedulerMessage { body: Some(body) }).await.unwrap();
    }

    /// The next message; None at the stream's end.
    pub(super) async fn any(&mut self) -> Option<Body> {
        let next = self.messages.as_mut().unwrap().message();
        let message =
            tokio::time::timeout(Duration::from_secs(20), next).await.expect("a message before the test gives up");
        message.ok().flatten().and_then(|message| message.body)
    }

    /// The next message that is no load report.
    pub(super) async fn next(&mut self) -> Option<Body> {
        loop {
            match self.any().await {
                Some(Body::Load(_)) => {}
                other => return other,
            }
        }
    }

    async fn load(&mut self, wanted: impl Fn(&Load) -> bool) {
        loop {
            match self.any().await {
                Some(Body::Load(load)) if wanted(&load) => return,
                Some(_) => {}
                None => panic!("the stream ended"),
            }
        }
    }

    async fn generate(&mut self, key: &RequestKey, spec: &GenerateSpec) {
        let (key, spec) = (Some(key.into()), Some(spec.into()));
        self.send(outbound::Body::Generate(Generate { key, spec, first: Vec::new() })).await;
    }

    async fn reserve(&mut self, key: &RequestKey) {
        let (key, spec) = (Some(key.into()), Some((&spec(0, 9, 1, 4, 0)).into()));
        self.send(outbound::Body::Reserve(Reserve { key, spec })).await;
    }

    /// Tokens of `count` finished choices.
    async fn tokens(&mut self, count: usize) -> Vec<SampledToken> {
        let mut tokens: Vec<SampledToken> = Vec::new();
        while tokens.iter().filter(|token| token.finish.is_some()).count() < count {
            match self.next().await {
                Some(Body::Tokens(message)) => tokens.extend(message.tokens.into_iter().map(Into::into)),
                other => panic!("{other:?}"),
            }
        }
        tokens.sort_by_key(|token| (token.choice, token.position));
        tokens
    }
}

pub(super) fn hello() -> Hello {
    Hello {
        protocol: proto::PROTOCOL,
        table_hash: "table".into(),
        instance: "decode-0".into(),
        scheduler_incarnation: 7,
    }
}

fn key(request: &str, epoch: u32) -> RequestKey {
    RequestKey { request: request.into(), epoch }
}

pub(super) fn refusal(body: Option<Body>) -> String {
    match body {
        Some(Body::Welcome(welcome)) => welcome.refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stranger_is_refused_with_field_and_both_values() {
    let rig = Rig::start().await;
    let cases = [
        (Hello { protocol: 0, ..hello() }, "protocol: ours is 1 (at least 1), theirs is 0"),
        (Hello { table_hash: "x".into(), ..hello() }, "table_hash: ours is table, theirs is x"),
        (Hello { instance: "decode-1".into(), ..hello() }, "instance: ours is decode-0, theirs is decode-1"),
    ];
    for (hello, expected) in cases {
        let mut scheduler = rig.connect(hello).await;
        let found = refusal(scheduler.next().await);
        assert!(found.starts_with(expected), "{found}");
        assert_eq!(scheduler.next().await, None);
    }
}

#[tokio::test]
async fn requests_share_a_stream_and_end_with_the_oracles_tokens() {
    let rig = Rig::start().await;
    let mut scheduler = rig.connect(hello()).await;
    assert_eq!(refusal(scheduler.next().await), "");
    for seed in 0..4 {
        let wanted = spec(seed, 20, 3, 12, u64::from(seed));
        scheduler.generate(&key("r", seed), &wanted).await;
        assert_eq!(scheduler.tokens(3).await, oracle(&wanted).concat());
    }
    scheduler.send(outbound::Body::Ping(Ping { nonce: 9, quiet: Vec::new() })).await;
    assert_eq!(scheduler.next().await, Some(Body::Pong(proto::control::Pong { nonce: 9 })));
    scheduler.load(|load| load.running == 0 && load.blocks_free + load.blocks_cached == 64).await;
    rig.settled().await;
}

#[tokio::test]
async fn asked_about_quiet_attempts_it_disowns_those_that_it_does_not_hold() {
    let rig = Rig::start().await;
    let mut scheduler = rig.connect(hello()).await;
    scheduler.next().await;
    scheduler.reserve(&key("held", 1)).await;
    let quiet = [key("held", 1), key("held", 0), key("lost", 3)].iter().map(Into::into).collect();
    scheduler.send(outbound::Body::Ping(Ping { nonce: 9, quiet })).await;
    for expected in [key("held", 0), key("lost", 3)] {
        match scheduler.next().await {
            Some(Body::Failed(failed)) => {
                assert_eq!((failed.key.clone(), failed.code()), (Some((&expected).into()), FailCode::FailStale));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(scheduler.next().await, Some(Body::Pong(proto::control::Pong { nonce: 9 })));
}

#[tokio::test]
async fn a_bad_order_fails_its_own_request_only() {
    let rig = Rig::start().await;
    let mut scheduler = rig.connect(hello()).await;
    scheduler.next().await;
    let foreign = GenerateSpec { prompt: vec![VOCAB].into(), ..spec(0, 1, 1, 1, 0) };
    scheduler.generate(&key("bad", 0), &foreign).await;
    match scheduler.next().await {
        Some(Body::Failed(failed)) => {
            assert_eq!(failed.code(), FailCode::FailBadRequest);
            assert_eq!(failed.message, "token 61 is outside the vocabulary of 61");
        }
        other => panic!("{other:?}"),
    }
    let wanted = spec(0, 20, 1, 12, 3);
    scheduler.generate(&key("good", 0), &wanted).await;
    assert_eq!(scheduler.tokens(1).await, oracle(&wanted).concat());
}

#[tokio::test]
async fn cancel_and_the_end_of_the_stream_give_blocks_back() {
    let rig = Rig::start().await;
    let held = |blocks: u32| move |load: &Load| load.blocks_free == 64 - blocks;
    let mut scheduler = rig.connect(hello()).await;
    scheduler.reserve(&key("a", 0)).await;
    scheduler.reserve(&key("b", 0)).await;
    scheduler.load(held(6)).await;
    let cancel = |key: RequestKey| outbound::Body::Cancel(Cancel { key: Some((&key).into()), choices: vec![] });
    scheduler.send(cancel(key("a", 0))).await;
    // Nobody knows these.
    scheduler.send(cancel(key("a", 0))).await;
    scheduler.send(cancel(key("c", 0))).await;
    scheduler.load(held(3)).await;
    drop(scheduler);
    rig.settled().await;
}

#[tokio::test]
async fn an_older_epoch_is_dropped_and_counted_a_newer_one_replaces() {
    let rig = Rig::start().await;
    let mut scheduler = rig.connect(hello()).await;
    scheduler.reserve(&key("a", 2)).await;
    scheduler.load(|load| load.blocks_free == 61).await;
    scheduler.reserve(&key("a", 1)).await;
    scheduler.load(|load| load.stale_dropped == 1 && load.blocks_free == 61).await;
    let wanted = spec(0, 20, 1, 12, 3);
    scheduler.generate(&key("a", 3), &wanted).await;
    assert_eq!(scheduler.tokens(1).await, oracle(&wanted).concat());
    rig.settled().await;
}

#[tokio::test]
async fn another_scheduler_ends_the_work_of_the_one_before() {
    let rig = Rig::start().await;
    let mut first = rig.connect(hello()).await;
    first.reserve(&key("a", 0)).await;
    first.load(|load| load.blocks_free == 61).await;
    let mut second = rig.connect(Hello { scheduler_incarnation: 8, ..hello() }).await;
    assert_eq!(refusal(second.next().await), "");
    while first.any().await.is_some() {}
    rig.settled().await;
    let wanted = spec(0, 20, 1, 12, 3);
    second.generate(&key("a", 0), &wanted).await;
    assert_eq!(second.tokens(1).await, oracle(&wanted).concat());
}

#[tokio::test]
async fn a_draining_worker_finishes_what_runs_and_refuses_the_rest() {
    let rig = Rig::start().await;
    let mut scheduler = rig.connect(hello()).await;
    scheduler.next().await;
    scheduler.reserve(&key("a", 0)).await;
    scheduler.load(|load| load.blocks_free == 61).await;
    rig.control.start_draining();
    scheduler.reserve(&key("b", 0)).await;
    match scheduler.next().await {
        Some(Body::Failed(failed)) => assert_eq!(failed.code(), FailCode::FailDraining),
        other => panic!("{other:?}"),
    }
    scheduler.load(|load| load.draining && load.blocks_free == 61).await;
    let cancel = Cancel { key: Some((&key("a", 0)).into()), choices: vec![] };
    scheduler.send(outbound::Body::Cancel(cancel)).await;
    rig.control.drained().await;
    rig.settled().await;
}

/// Computes nothing, ever.
struct Broken;

impl crate::Stepper for Broken {
    fn step(
        &mut self,
        _batch: &::engine::Batch<'_>,
        _observer: &dyn ::engine::StepObserver,
    ) -> Result<::engine::StepOutput, ::engine::Error> {
        panic!("a step that panics, as this test wants it")
    }

    fn copy_block(&mut self, _from: kv::BlockId, _to: kv::BlockId) {}
}

#[tokio::test]
async fn a_panic_ends_the_engine_and_its_jobs() {
    let pool = BlockPool::new(64, 8);
    let config = RunnerConfig {
        digest: "fake".into(),
        vocab_size: VOCAB,
        max_model_len: MAX_MODEL_LEN,
        eos_token_ids: vec![0],
        max_num_seqs: 16,
        max_num_batched_tokens: 64,
    };
    let runner = Runner::new(config, pool.clone(), Box::new(AllAtOnce));
    let metrics = WorkerMetrics::new(&"decode-0".into(), Role::Decode);
    let engine = EngineHandle::start(runner, Broken, pool.clone(), metrics).unwrap();
    let job = || Job { key: key("a", 0), spec: spec(0, 9, 1, 4, 0), goal: Goal::Complete, matcher: None };
    let mut running = engine.submit(job()).unwrap();
    assert_eq!(running.next().await, None);
    engine.ended().await;
    assert!(engine.submit(job()).is_err());
    assert_eq!(pool.stats().leased, 0);
}

#[tokio::test]
async fn a_dropped_job_is_cancelled() {
    let rig = Rig::start().await;
    for seed in 0..20 {
        let job = Job { key: key("a", seed), spec: spec(seed, 40, 3, 40, 0), goal: Goal::Complete, matcher: None };
        let mut running = rig.engine.submit(job).unwrap();
        if seed % 2 == 0 {
            assert!(running.next().await.is_some());
        }
        drop(running);
    }
    rig.settled().await;
    let mut changes = rig.engine.changes();
    while rig.engine.stats().queue.running > 0 {
        changes.changed().await.unwrap();
    }
}
