//! A worker without a model that speaks the real protocol: its next token is a pure function of the history.
//!
//! So any way through any fakes gives the same text, and [`continuation`] says which.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use proto::control::worker_server::{Worker, WorkerServer};
use proto::control::{
    self, FailCode, SchedulerMessage, Welcome, WorkerMessage, scheduler_message, worker_message::Body,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use types::{FinishReason, Limits, ModelIdentity, Role, SampledToken, TokenId, TokenScore};

use super::TABLE_HASH;

/// How a fake behaves.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) model: ModelIdentity,
    pub(crate) limits: Limits,
    /// Between two tokens of a choice.
    pub(crate) step: Duration,
    /// Dies after this many tokens of requests other than canaries.
    pub(crate) dies_after: Option<u32>,
    /// Falls silent, but stays connected, after this many tokens.
    pub(crate) freezes_after: Option<u32>,
    /// Answers the first message of every request, canaries excepted, with this.
    pub(crate) fails: Option<FailCode>,
    /// Hears this order, canaries excepted, and forgets the attempt: no answer ever comes.
    pub(crate) swallows: Option<&'static str>,
    /// Forgets the attempt that the token after this many belongs to.
    pub(crate) forgets_after: Option<u32>,
    /// Cannot hand over to the instance of this name, canaries excepted: the first token comes, the KV does not arrive.
    pub(crate) cut_off_from: Option<&'static str>,
    /// Reports what its steps cost.
    pub(crate) reports_costs: bool,
}

/// What a fake was told about requests, canaries excepted: message kind and request id with epoch.
pub(crate) type Seen = Vec<(&'static str, String)>;

pub(crate) struct FakeWorker {
    pub(crate) fake: Fake,
    pub(crate) address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    fake: Fake,
    dead: CancellationToken,
    frozen: AtomicBool,
    /// `fails` and `cut_off_from` are over.
    mended: AtomicBool,
    tokens: AtomicU32,
    seen: Mutex<Seen>,
    table_hash: Mutex<String>,
    /// Schedulers that said Hello.
    hellos: AtomicU32,
    /// Attempts that hold something here.
    held: Mutex<Vec<(control::Key, CancellationToken)>>,
}

impl Fake {
    pub(crate) fn new(role: Role, name: &str) -> Self {
        let model = ModelIdentity {
            digest: "digest".into(),
            architecture: "fake".into(),
            dtype: "f32".into(),
            kv_dtype: "f32".into(),
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            vocab_size: 257,
            rope: "none".into(),
            sliding_window: 0,
            max_model_len: 4096,
        };
        let limits = Limits {
            block_size: 16,
            blocks_total: 4096,
            tensor_parallel_size: 1,
            max_num_seqs: 256,
            max_num_batched_tokens: 4096,
            instructions: "none".into(),
        };
        let step = Duration::from_millis(1);
        Self {
            role,
            name: name.into(),
            model,
            limits,
            step,
            dies_after: None,
            freezes_after: None,
            fails: None,
            swallows: None,
            forgets_after: None,
            cut_off_from: None,
            reports_costs: false,
        }
    }
}

impl FakeWorker {
    pub(crate) async fn start(fake: Fake) -> Self {
        Self::start_at(fake, ([127, 0, 0, 1], 0).into()).await
    }

    pub(crate) async fn start_at(fake: Fake, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            fake: fake.clone(),
            dead: CancellationToken::new(),
            frozen: AtomicBool::new(false),
            mended: AtomicBool::new(false),
            tokens: AtomicU32::new(0),
            seen: Mutex::default(),
            table_hash: Mutex::new(TABLE_HASH.into()),
            hellos: AtomicU32::new(0),
            held: Mutex::default(),
        });
        tokio::spawn(accept(listener, inner.clone()));
        Self { fake, address, inner }
    }

    /// As SIGKILL: every stream ends, the port is closed.
    pub(crate) fn kill(&self) {
        self.inner.dead.cancel();
    }

    /// As SIGSTOP: connected and silent.
    pub(crate) fn freeze(&self) {
        self.inner.frozen.store(true, Ordering::Relaxed);
    }

    /// From now on it fails nothing.
    pub(crate) fn mend(&self) {
        self.inner.mended.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_down(&self) -> bool {
        self.inner.dead.is_cancelled() || self.inner.frozen.load(Ordering::Relaxed)
    }

    pub(crate) fn seen(&self) -> Seen {
        self.inner.seen.lock().clone()
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        self.inner.seen.lock().iter().filter(|(seen, _)| *seen == kind).count()
    }

    /// From now on it says that this is its table.
    pub(crate) fn has_read(&self, table_hash: &str) {
        *self.inner.table_hash.lock() = table_hash.to_owned();
    }

    /// Connections so far.
    pub(crate) fn hellos(&self) -> u32 {
        self.inner.hellos.load(Ordering::Relaxed)
    }

    /// Attempts that still hold something here.
    pub(crate) fn held(&self) -> usize {
        self.inner.held.lock().len()
    }
}

impl Drop for FakeWorker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a fake's ticket begins; its name follows.
const TICKET: &str = "ticket of ";

/// What every worker answers, over and over, to a prompt that begins with `é`: characters of one to four bytes, a token each byte.
pub(crate) const WIDE_TEXT: &str = "aé🎉 b€ — ü. Over! ";

/// What every worker answers to a prompt that holds `«text»`: that text and its end.
fn dictated(prompt: &[TokenId]) -> Option<Vec<TokenId>> {
    let bytes: Vec<u8> = prompt.iter().map(|&id| u8::try_from(id).unwrap_or_default()).collect();
    let (_, rest) = str::from_utf8(&bytes).ok()?.rsplit_once('«')?;
    let (text, _) = rest.split_once('»')?;
    Some(super::ids(text).into_iter().chain([super::EOS]).collect())
}

/// What every worker answers after `prompt` and `output`: a letter or a space, the next byte of [`WIDE_TEXT`], or what is dictated.
pub(crate) fn next_token(prompt: &[TokenId], output: &[TokenId], choice: u32) -> TokenId {
    if let Some(text) = dictated(prompt) {
        return text.get(output.len()).copied().unwrap_or(super::EOS);
    }
    if is_wide(prompt) {
        // The second choice begins elsewhere.
        let start = if choice == 0 { 0 } else { "aé🎉 b".len() };
        return TokenId::from(WIDE_TEXT.as_bytes()[(start + output.len()) % WIDE_TEXT.len()]);
    }
    let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ u64::from(choice);
    for &token in prompt.iter().chain(output) {
        hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
    }
    let letters = b"abcdefghijklmnopqrstuvwxyz ";
    TokenId::from(letters[(hash >> 33) as usize % letters.len()])
}

/// The text that a choice must get, whoever computes it.
pub(crate) fn continuation(prompt: &str, choice: u32, tokens: usize) -> String {
    let prompt = super::ids(prompt);
    let mut output = Vec::new();
    for _ in 0..tokens {
        output.push(next_token(&prompt, &output, choice));
    }
    output.iter().map(|&id| char::from(id as u8)).collect()
}

/// Serves until killed; then every connection is cut at once.
async fn accept(listener: TcpListener, inner: Arc<Inner>) {
    let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            () = inner.dead.cancelled() => return,
        };
        let service = TowerToHyperService::new(WorkerServer::new(Service(inner.clone())));
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        connections.spawn(async move {
            let _ = connection.await;
        });
    }
}

#[derive(Clone)]
struct Service(Arc<Inner>);

#[tonic::async_trait]
impl Worker for Service {
    type ControlStream = ReceiverStream<Result<WorkerMessage, Status>>;

    async fn control(
        &self,
        request: Request<Streaming<SchedulerMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let (sender, receiver) = mpsc::channel(1024);
        tokio::spawn(converse(self.0.clone(), request.into_inner(), Sender { sender, inner: self.0.clone() }));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[derive(Clone)]
struct Sender {
    sender: mpsc::Sender<Result<WorkerMessage, Status>>,
    inner: Arc<Inner>,
}

impl Sender {
    async fn send(&self, body: Body) {
        if !self.inner.frozen.load(Ordering::Relaxed) && !self.inner.dead.is_cancelled() {
            let _ = self.sender.send(Ok(WorkerMessage { body: Some(body) })).await;
        }
    }
}

async fn converse(inner: Arc<Inner>, mut stream: Streaming<SchedulerMessage>, sender: Sender) {
    let welcome = Welcome {
        protocol: proto::PROTOCOL,
        table_hash: inner.table_hash.lock().clone(),
        instance: inner.fake.name.clone(),
        role: inner.fake.role.to_string(),
        model: Some((&inner.fake.model).into()),
        limits: Some((&inner.fake.limits).into()),
        incarnation: 1,
        refusal: String::new(),
    };
    sender.send(Body::Welcome(welcome)).await;
    let mut heartbeat = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            () = inner.dead.cancelled() => break,
            _ = heartbeat.tick() => sender.send(Body::Load(load(&inner))).await,
            message = stream.message() => match message {
                Ok(Some(SchedulerMessage { body: Some(body) })) => inner.hear(body, &sender).await,
                _ => break,
            },
        }
    }
    for (_, held) in inner.held.lock().drain(..) {
        held.cancel();
    }
}

fn load(inner: &Inner) -> control::Load {
    let running = inner.held.lock().len() as u32;
    let blocks_total = inner.fake.limits.blocks_total;
    // Whatever the batch, a step takes as long.
    let micros = inner.fake.step.as_micros() as u64;
    let step = control::StepCost { decode_rows: running, micros, ..control::StepCost::default() };
    let costs = (running > 0 && inner.fake.reports_costs).then_some(step).into_iter().collect();
    control::Load { running, blocks_total, blocks_free: blocks_total, costs, ..control::Load::default() }
}

impl Inner {
    async fn hear(self: &Arc<Self>, body: scheduler_message::Body, sender: &Sender) {
        use scheduler_message::Body as Heard;
        let (kind, key) = match &body {
            Heard::Reserve(message) => ("reserve", message.key.clone()),
            Heard::Prefill(message) => ("prefill", message.key.clone()),
            Heard::Generate(message) => ("generate", message.key.clone()),
            Heard::Embed(message) => ("embed", message.key.clone()),
            Heard::Cancel(message) => ("cancel", message.key.clone()),
            Heard::Ping(ping) => return self.disown(&ping.quiet, sender).await,
            Heard::Hello(_) => {
                self.hellos.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        let key = key.unwrap();
        let is_canary = key.request_id.starts_with("canary-");
        if !is_canary {
            self.seen.lock().push((kind, format!("{}#{}", key.request_id, key.epoch)));
        }
        let fails = self.fake.fails.filter(|_| !self.mended.load(Ordering::Relaxed));
        if let (Some(code), false, true) = (fails, is_canary, kind != "cancel") {
            let failed = control::Failed { key: Some(key), code: code.into(), message: "as told".into() };
            return sender.send(Body::Failed(failed)).await;
        }
        if self.fake.swallows == Some(kind) && !is_canary {
            return self.release(&key);
        }
        match body {
            Heard::Reserve(_) => {
                self.hold(&key);
                let ticket = format!("{TICKET}{}", self.fake.name).into();
                let reserved = control::Reserved { key: Some(key), ticket, cached_tokens: 0, lease_ms: 10_000 };
                sender.send(Body::Reserved(reserved)).await;
            }
            Heard::Prefill(message) => self.prefill(key, message, sender).await,
            Heard::Embed(message) => {
                let spec = proto::generate_spec(message.spec).unwrap();
                let values = vec![3.0, 4.0 * spec.prompt.len() as f32];
                let embedding = control::Embedding { key: Some(key.clone()), values, stats: None };
                let cancelled = self.hold(&key);
                let (inner, sender) = (self.clone(), sender.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = cancelled.cancelled() => {}
                        () = tokio::time::sleep(inner.fake.step) => {
                            if !inner.spent(&key, 1) {
                                inner.release(&key);
                                sender.send(Body::Embedding(embedding)).await;
                            }
                        }
                    }
                });
            }
            Heard::Generate(message) => {
                let cancelled = self.hold(&key);
                let (inner, sender) = (self.clone(), sender.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = cancelled.cancelled() => {}
                        () = inner.generate(&key, message, &sender) => inner.release(&key),
                    }
                });
            }
            Heard::Cancel(message) if message.choices.is_empty() => self.release(&key),
            _ => {}
        }
    }

    /// As real workers do, it says which attempts it knows nothing of.
    async fn disown(&self, quiet: &[control::Key], sender: &Sender) {
        for key in quiet {
            if !self.held.lock().iter().any(|(held, _)| held == key) {
                let (code, message) = (FailCode::FailStale.into(), "nothing held".into());
                sender.send(Body::Failed(control::Failed { key: Some(key.clone()), code, message })).await;
            }
        }
    }

    /// As real workers do, it keeps only the newest attempt of a request.
    fn hold(&self, key: &control::Key) -> CancellationToken {
        let mut held = self.held.lock();
        held.retain(|(held, token)| {
            let older = held.request_id == key.request_id && held.epoch < key.epoch;
            if older {
                token.cancel();
            }
            !older
        });
        if let Some((_, token)) = held.iter().find(|(held, _)| held == key) {
            return token.clone();
        }
        let token = CancellationToken::new();
        held.push((key.clone(), token.clone()));
        token
    }

    fn release(&self, key: &control::Key) {
        self.held.lock().retain(|(held, token)| {
            if held == key {
                token.cancel();
            }
            held != key
        });
    }

    async fn prefill(&self, key: control::Key, message: control::Prefill, sender: &Sender) {
        let ticket = String::from_utf8(message.ticket.to_vec()).unwrap();
        let to = ticket.strip_prefix(TICKET).expect("the ticket is handed on untouched");
        let spec = proto::generate_spec(message.spec).unwrap();
        self.tell_scores(&key, &spec, sender).await;
        // A search has one token with its first candidates.
        let drawn = if spec.sampling.beam.is_some() {
            spec.choices.start..spec.choices.start + 1
        } else {
            spec.choices.clone()
        };
        let tokens = drawn.map(|choice| sample(&spec, &spec.output, choice));
        let tokens: Vec<control::Token> = tokens.map(|token| (&token).into()).collect();
        let stats = control::PrefillStats { prompt_tokens: spec.prompt.len() as u32, ..Default::default() };
        let first = control::FirstTokens { key: Some(key.clone()), tokens, stats: Some(stats) };
        if self.spent(&key, 1) {
            return;
        }
        sender.send(Body::FirstTokens(first)).await;
        let mended = self.mended.load(Ordering::Relaxed) || key.request_id.starts_with("canary-");
        if self.fake.cut_off_from == Some(to) && !mended {
            let (code, message) = (FailCode::FailTransfer.into(), "cut off".into());
            return sender.send(Body::Failed(control::Failed { key: Some(key), code, message })).await;
        }
        let stats = control::TransferStats { transport: "inproc".into(), ..Default::default() };
        sender.send(Body::Shipped(control::Shipped { key: Some(key), stats: Some(stats) })).await;
    }

    /// In two messages; a fake that is to die does so after the first.
    async fn tell_scores(&self, key: &control::Key, spec: &types::GenerateSpec, sender: &Sender) {
        let scores = scores(spec);
        let (early, late) = scores.split_at(scores.len() / 2);
        for (first, scores) in [(1, early), (1 + early.len() as u32, late)] {
            let scores: Vec<control::TokenScore> = scores.iter().map(Into::into).collect();
            if !scores.is_empty() && !self.dead.is_cancelled() {
                let message = control::PromptScores { key: Some(key.clone()), first, scores };
                sender.send(Body::PromptScores(message)).await;
                self.spent(key, 1);
            }
        }
    }

    async fn generate(&self, key: &control::Key, message: control::Generate, sender: &Sender) {
        let spec = proto::generate_spec(message.spec).unwrap();
        let local = message.first.is_empty();
        if local {
            self.tell_scores(key, &spec, sender).await;
        }
        let mut stats =
            local.then(|| control::PrefillStats { prompt_tokens: spec.prompt.len() as u32, ..Default::default() });
        // Pretended searches find what is drawn otherwise, and say so at their end.
        let search = spec.sampling.beam.is_some();
        let first = if search { &[] } else { &message.first[..] };
        let mut found = Vec::new();
        let choices: Vec<u32> = match local || search {
            true => spec.choices.clone().collect(),
            false => message.first.iter().map(|token| token.choice).collect(),
        };
        let mut outputs: Vec<(u32, Vec<TokenId>)> =
            choices.into_iter().map(|choice| (choice, spec.output.clone())).collect();
        for ((_, output), first) in outputs.iter_mut().zip(first) {
            assert_eq!(first.position as usize, output.len(), "the first token follows the spec's output");
            output.push(first.id);
        }
        while !outputs.is_empty() {
            tokio::time::sleep(self.fake.step).await;
            let mut tokens: Vec<control::Token> = Vec::new();
            outputs.retain_mut(|(choice, output)| {
                let token = sample(&spec, output, *choice);
                output.push(token.id);
                tokens.push((&token).into());
                token.finish.is_none()
            });
            if self.spent(key, tokens.len() as u32) {
                return std::future::pending().await;
            }
            if search {
                found.append(&mut tokens);
            }
            sender.send(Body::Tokens(control::Tokens { key: Some(key.clone()), tokens, prefill: stats.take() })).await;
        }
        // One by one, so that a death in between loses some of them.
        for token in found {
            if self.spent(key, 1) {
                return std::future::pending().await;
            }
            let tokens = control::Tokens { key: Some(key.clone()), tokens: vec![token], prefill: None };
            sender.send(Body::Tokens(tokens)).await;
        }
    }

    /// Counts tokens of real requests; true when this fake just ended by them.
    fn spent(&self, key: &control::Key, tokens: u32) -> bool {
        if key.request_id.starts_with("canary-") {
            return false;
        }
        let before = self.tokens.fetch_add(tokens, Ordering::Relaxed);
        let spent = before + tokens;
        if self.fake.dies_after.is_some_and(|limit| spent > limit) {
            self.dead.cancel();
        }
        if self.fake.freezes_after.is_some_and(|limit| spent > limit) {
            self.frozen.store(true, Ordering::Relaxed);
        }
        if self.fake.forgets_after.is_some_and(|limit| (before..spent).contains(&limit)) {
            self.release(key);
            return true;
        }
        self.dead.is_cancelled() || self.frozen.load(Ordering::Relaxed)
    }
}

/// What every worker finds of a prompt: the further back, the likelier.
fn scores(spec: &types::GenerateSpec) -> Vec<TokenScore> {
    let Some(top) = spec.sampling.prompt_logprobs else { return Vec::new() };
    let score = |at: usize| TokenScore {
        logprob: -(at as f32),
        rank: at as u32 + 1,
        top: (0..top).map(|place| (TokenId::from(b'A') + place, -0.25)).collect(),
    };
    (1..spec.prompt.len()).map(score).collect()
}

fn is_wide(prompt: &[TokenId]) -> bool {
    prompt.starts_with(&super::ids("é"))
}

/// Says everything that a sampler looks at: a resumed attempt that lost some of it gives other numbers.
fn telling_logprob(spec: &types::GenerateSpec, output: &[TokenId], choice: u32) -> f32 {
    let record = &spec.sampling;
    let penalties = (record.presence_penalty, record.frequency_penalty, record.repetition_penalty);
    let seen = format!("{:?}", (record.temperature, record.seed, penalties, record.logprobs, output, choice));
    let hash = seen.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31) ^ u32::from(byte));
    -((hash % 1000) as f32) / 100.0
}

fn sample(spec: &types::GenerateSpec, output: &[TokenId], choice: u32) -> SampledToken {
    let id = next_token(&spec.prompt, output, choice);
    let position = output.len() as u32;
    let finish = if spec.sampling.stop_token_ids.contains(&id) || id == super::EOS {
        Some(FinishReason::Stop)
    } else {
        (position + 1 >= spec.sampling.max_tokens).then_some(FinishReason::Length)
    };
    let logprob = if is_wide(&spec.prompt) { telling_logprob(spec, output, choice) } else { -0.5 };
    SampledToken { choice, id, position, logprob, top: vec![(id, logprob)], finish }
}
