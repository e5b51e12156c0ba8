//! A prefill and a decode instance in this process, and a scheduler of a hundred lines that drives them over their real ports.

use std::collections::HashMap;
use std::time::Duration;

use proto::control;
use proto::control::worker_client::WorkerClient;
use proto::control::{
    Cancel, Failed, FirstTokens, Generate, Hello, Prefill, PrefillStats, PromptScores, Reserve, Reserved,
    SchedulerMessage, TransferStats, WorkerMessage, scheduler_message as order, worker_message::Body,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use types::{FinishReason, GenerateSpec, Pooling, RequestKey, SampledToken, TokenScore};
use worker::Running;

/// Longest silence that a test accepts.
const SILENCE: Duration = Duration::from_secs(30);

/// The scheduler's stream to one worker.
pub struct Line {
    sender: mpsc::Sender<SchedulerMessage>,
    messages: Streaming<WorkerMessage>,
}

impl Line {
    /// Says hello and takes the welcome.
    pub async fn connect(worker: &Running, instance: &str) -> Self {
        let (sender, receiver) = mpsc::channel(1024);
        let hello = Hello {
            protocol: proto::PROTOCOL,
            table_hash: "table".into(),
            instance: instance.into(),
            scheduler_incarnation: 1,
        };
        let body = Some(order::Body::Hello(hello));
        sender.send(SchedulerMessage { body }).await.expect("the channel is new");
        let mut client =
            WorkerClient::connect(format!("http://{}", worker.address())).await.expect("the worker listens");
        let messages = client.control(ReceiverStream::new(receiver)).await.expect("the stream opens").into_inner();
        let mut line = Self { sender, messages };
        match line.next().await {
            Some(Body::Welcome(welcome)) => assert_eq!(welcome.refusal, ""),
            other => panic!("expected a welcome, found {other:?}"),
        }
        line
    }

    pub async fn send(&self, body: order::Body) {
        // A worker that is gone shows at the other end of the stream.
        let _ = self.sender.send(SchedulerMessage { body: Some(body) }).await;
    }

    /// The next message that is no load report; None when the stream has ended.
    pub async fn next(&mut self) -> Option<Body> {
        loop {
            let message =
                tokio::time::timeout(SILENCE, self.messages.message()).await.expect("workers report their load");
            match message.ok().flatten()?.body? {
                Body::Load(_) => {}
                body => return Some(body),
            }
        }
    }
}

/// When a request is cancelled on both sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CancelAt {
    ReserveSent,
    Reserved,
    PrefillSent,
    FirstTokens,
    GenerateSent,
    SecondToken,
}

/// What became of one request.
#[derive(Default, Debug)]
pub struct Outcome {
    /// In order of choice and position.
    pub tokens: Vec<SampledToken>,
    /// Of the prompt's tokens from the second on.
    pub scores: Vec<TokenScore>,
    pub failed: Vec<Failed>,
    pub cached_on_decode: u32,
    pub prefill: Option<PrefillStats>,
    pub shipped: Option<TransferStats>,
}

impl Outcome {
    fn score(&mut self, message: PromptScores) {
        assert_eq!(message.first as usize, self.scores.len() + 1, "scores come in order");
        self.scores.extend(message.scores.into_iter().map(TokenScore::from));
    }
}

/// P, D and the streams to both.
pub struct Pair {
    pub prefill: Option<Running>,
    pub decode: Running,
    to_prefill: Line,
    to_decode: Line,
}

struct Request {
    spec: GenerateSpec,
    cancel: Option<CancelAt>,
    outcome: Outcome,
    /// Nothing more is expected from P and from D.
    prefill_over: bool,
    decode_over: bool,
}

impl Pair {
    pub async fn connect(prefill: Running, decode: Running) -> Self {
        let to_prefill = Line::connect(&prefill, "prefill-0").await;
        let to_decode = Line::connect(&decode, "decode-0").await;
        Self { prefill: Some(prefill), decode, to_prefill, to_decode }
    }

    /// One request from reserve to its last token.
    pub async fn run(&mut self, name: &str, spec: &GenerateSpec) -> Outcome {
        let outcomes = self.run_all(vec![(name.to_owned(), spec.clone(), None)]).await;
        outcomes.into_values().next().expect("one request, one outcome")
    }

    /// All requests at once.
    pub async fn run_all(
        &mut self,
        requests: Vec<(String, GenerateSpec, Option<CancelAt>)>,
    ) -> HashMap<String, Outcome> {
        let mut live: HashMap<String, Request> = HashMap::new();
        for (name, spec, cancel) in requests {
            let reserve = Reserve { key: wire_key(&name), spec: Some((&spec).into()) };
            self.to_decode.send(order::Body::Reserve(reserve)).await;
            let mut request =
                Request { spec, cancel, outcome: Outcome::default(), prefill_over: false, decode_over: false };
            self.cancel_if(&name, &mut request, CancelAt::ReserveSent).await;
            live.insert(name, request);
        }
        while !live.values().all(|request| request.prefill_over && request.decode_over) {
            let body = tokio::select! {
                body = self.to_prefill.next(), if self.prefill.is_some() => body,
                body = self.to_decode.next() => body,
            };
            let body = body.expect("both workers stay");
            let Some(name) = name_of(&body) else { continue };
            // A cancelled request's last messages may still arrive.
            if let Some(request) = live.get_mut(&name).filter(|request| !(request.prefill_over && request.decode_over))
            {
                self.on(&name, request, body).await;
            }
        }
        let finish = |mut outcome: Outcome| {
            outcome.tokens.sort_by_key(|token| (token.choice, token.position));
            outcome
        };
        live.into_iter().map(|(name, request)| (name, finish(request.outcome))).collect()
    }

    async fn on(&mut self, name: &str, request: &mut Request, body: Body) {
        match body {
            Body::Reserved(reserved) => self.reserved(name, request, reserved).await,
            Body::FirstTokens(first) => self.first_tokens(name, request, first).await,
            Body::Shipped(shipped) => {
                request.outcome.shipped = shipped.stats;
                request.prefill_over = true;
            }
            Body::Tokens(tokens) => {
                request.outcome.prefill = tokens.prefill.or(request.outcome.prefill);
                request.outcome.tokens.extend(tokens.tokens.into_iter().map(Into::into));
                self.cancel_if(name, request, CancelAt::SecondToken).await;
            }
            Body::PromptScores(message) => request.outcome.score(message),
            Body::Failed(failed) => {
                request.outcome.failed.push(failed);
                self.cancel(name, request).await;
            }
            Body::Embedding(_) | Body::Welcome(_) | Body::Load(_) | Body::Pong(_) => {}
        }
        request.decode_over |= finished(&request.outcome.tokens) == request.spec.choices.len();
    }

    async fn reserved(&mut self, name: &str, request: &mut Request, reserved: Reserved) {
        request.outcome.cached_on_decode = reserved.cached_tokens;
        self.cancel_if(name, request, CancelAt::Reserved).await;
        if request.prefill_over {
            return;
        }
        let spec = Some((&request.spec).into());
        let prefill = Prefill { key: wire_key(name), spec, ticket: reserved.ticket };
        self.to_prefill.send(order::Body::Prefill(prefill)).await;
        self.cancel_if(name, request, CancelAt::PrefillSent).await;
    }

    async fn first_tokens(&mut self, name: &str, request: &mut Request, first: FirstTokens) {
        request.outcome.prefill = first.stats;
        // Those of a search are candidates.
        if request.spec.sampling.beam.is_none() {
            request.outcome.tokens.extend(first.tokens.iter().cloned().map(SampledToken::from));
        }
        self.cancel_if(name, request, CancelAt::FirstTokens).await;
        if request.decode_over {
            return;
        }
        if finished(&request.outcome.tokens) == request.spec.choices.len() {
            // Nothing to decode: neither side needs the KV any more.
            return self.cancel(name, request).await;
        }
        let generate = Generate { key: wire_key(name), spec: Some((&request.spec).into()), first: first.tokens };
        self.to_decode.send(order::Body::Generate(generate)).await;
        self.cancel_if(name, request, CancelAt::GenerateSent).await;
    }

    async fn cancel_if(&self, name: &str, request: &mut Request, at: CancelAt) {
        if request.cancel == Some(at) {
            self.cancel(name, request).await;
        }
    }

    async fn cancel(&self, name: &str, request: &mut Request) {
        let cancel = || order::Body::Cancel(Cancel { key: wire_key(name), choices: Vec::new() });
        self.to_prefill.send(cancel()).await;
        self.to_decode.send(cancel()).await;
        (request.prefill_over, request.decode_over) = (true, true);
    }

    /// The prompt is computed on D, without P.
    pub async fn aggregated(&mut self, name: &str, spec: &GenerateSpec) -> Outcome {
        let generate = Generate { key: wire_key(name), spec: Some(spec.into()), first: Vec::new() };
        self.to_decode.send(order::Body::Generate(generate)).await;
        let mut outcome = Outcome::default();
        while finished(&outcome.tokens) < spec.choices.len() {
            match self.to_decode.next().await {
                Some(Body::PromptScores(message)) => outcome.score(message),
                Some(Body::Tokens(tokens)) => outcome.tokens.extend(tokens.tokens.into_iter().map(Into::into)),
                other => panic!("expected tokens, found {other:?}"),
            }
        }
        outcome.tokens.sort_by_key(|token| (token.choice, token.position));
        outcome
    }

    /// The vectors of a prompt as P and as D compute them.
    pub async fn embed(&mut self, name: &str, spec: &GenerateSpec, pooling: Pooling) -> Vec<Vec<f32>> {
        let mut vectors = Vec::new();
        for line in [&mut self.to_prefill, &mut self.to_decode] {
            let pooling = control::Pooling::from(pooling).into();
            line.send(order::Body::Embed(control::Embed { key: wire_key(name), spec: Some(spec.into()), pooling }))
                .await;
            match line.next().await {
                Some(Body::Embedding(found)) => vectors.push(found.values),
                other => panic!("expected a vector, found {other:?}"),
            }
        }
        vectors
    }

    /// The stream to D, for tests that speak for themselves.
    pub fn decode_line(&mut self) -> &mut Line {
        &mut self.to_decode
    }

    /// Waits until neither side holds a block.
    pub async fn settled(&self) {
        let pools = self.prefill.iter().chain([&self.decode]).map(Running::pool);
        for pool in pools {
            let patience = tokio::time::Instant::now() + SILENCE;
            while pool.stats().leased > 0 {
                assert!(tokio::time::Instant::now() < patience, "blocks never came back: {:?}", pool.ledger());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
}

/// The key that the harness gives a request.
pub fn wire_key(name: &str) -> Option<proto::control::Key> {
    Some((&RequestKey { request: name.into(), epoch: 0 }).into())
}

fn finished(tokens: &[SampledToken]) -> usize {
    tokens.iter().filter(|token| matches!(token.finish, Some(FinishReason::Stop | FinishReason::Length))).count()
}

fn name_of(body: &Body) -> Option<String> {
    let key = match body {
        Body::Reserved(message) => &message.key,
        Body::FirstTokens(message) => &message.key,
        Body::Shipped(message) => &message.key,
        Body::PromptScores(message) => &message.key,
        Body::Embedding(message) => &message.key,
        Body::Tokens(message) => &message.key,
        Body::Failed(message) => &message.key,
        Body::Welcome(_) | Body::Load(_) | Body::Pong(_) => return None,
    };
    key.as_ref().map(|key| key.request_id.clone())
}
