//! What other processes send: proofs, control messages, tickets, KV frames and memory.

use std::sync::{Arc, LazyLock};

use kv::{KvDtype, KvLayout, KvStore};
use prost::Message;
use proto::control::{Cancel, Generate, Key, Prefill, Reserve, SchedulerMessage, Tokens, WorkerMessage};
use proto::control::{scheduler_message as down, worker_message as up};
use tokio::runtime::{Builder, Runtime};
use types::{GenerateSpec, SampledToken};
use worker::fake::{FakeEngine, spec};

/// What waits is over at once: all input is there.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime without sockets"));

/// Memory that a peer of the host may map, as engines have it.
static MEMORY: LazyLock<Arc<dyn KvStore>> = LazyLock::new(|| {
    let layout = KvLayout { layers: 2, kv_heads: 2, head_dim: 2, dtype: KvDtype::F32, block_size: 4, blocks: 8 };
    engine::kv_memory(layout).expect("a few kilobytes of memory")
});

/// The exchange before anything else is read on a control or KV port with a cluster secret.
pub(crate) fn secret(bytes: &[u8]) -> bool {
    RUNTIME.block_on(edge::fuzz::exchange(bytes)).expect("the secret is long enough")
}

pub(crate) fn secret_examples() -> Vec<Vec<u8>> {
    vec![edge::fuzz::exchange_example()]
}

/// The memory that a peer hands over, what its hello says of it, and a piece that lies there.
pub(crate) fn shared_memory(bytes: &[u8]) -> bool {
    let _entered = RUNTIME.enter();
    transfer::fuzz::shared_memory(bytes, MEMORY.clone())
}

pub(crate) fn shared_memory_examples() -> Vec<Vec<u8>> {
    vec![transfer::fuzz::shared_memory_example(&**MEMORY)]
}

/// The same bytes as a message of either direction, and what is made of it.
pub(crate) fn control(bytes: &[u8]) -> bool {
    use down::Body;
    let checked = |key: Option<Key>, spec| proto::request_key(key).and_then(|_| proto::generate_spec(spec)).is_ok();
    let from_scheduler = SchedulerMessage::decode(bytes).ok().and_then(|message| message.body);
    let taken = match from_scheduler {
        Some(Body::Reserve(order)) => checked(order.key, order.spec),
        Some(Body::Prefill(order)) => checked(order.key, order.spec),
        Some(Body::Generate(order)) => {
            order.first.into_iter().map(SampledToken::from).for_each(drop);
            checked(order.key, order.spec)
        }
        Some(Body::Embed(order)) => proto::request_key(order.key).is_ok(),
        Some(Body::Cancel(order)) => proto::request_key(order.key).is_ok(),
        Some(Body::Hello(_) | Body::Ping(_)) => true,
        None => false,
    };
    let from_worker = WorkerMessage::decode(bytes).ok().and_then(|message| message.body);
    let told = match from_worker {
        Some(up::Body::Tokens(tokens)) => {
            tokens.tokens.into_iter().map(SampledToken::from).for_each(drop);
            proto::request_key(tokens.key).is_ok()
        }
        _ => false,
    };
    taken || told
}

pub(crate) fn control_examples() -> Vec<Vec<u8>> {
    let spec: GenerateSpec = spec(1, 20, 2, 5, 7);
    let key = || Some(Key { request_id: "r".into(), epoch: 1 });
    let first = || vec![proto::control::Token { id: 5, position: 0, logprob: -0.5, ..Default::default() }];
    let down = |body| SchedulerMessage { body: Some(body) }.encode_to_vec();
    let up = |body| WorkerMessage { body: Some(body) }.encode_to_vec();
    vec![
        down(down::Body::Reserve(Reserve { key: key(), spec: Some((&spec).into()) })),
        down(down::Body::Prefill(Prefill { key: key(), spec: Some((&spec).into()), ticket: vec![1, 2].into() })),
        down(down::Body::Generate(Generate { key: key(), spec: Some((&spec).into()), first: first() })),
        down(down::Body::Cancel(Cancel { key: key(), choices: vec![0, 1] })),
        up(up::Body::Tokens(Tokens { key: key(), tokens: first(), prefill: None })),
        up(up::Body::Tokens(Tokens { key: key(), tokens: Vec::new(), prefill: Some(Default::default()) })),
    ]
}

pub(crate) fn ticket(bytes: &[u8]) -> bool {
    transfer::fuzz::ticket(bytes)
}

pub(crate) fn ticket_examples() -> Vec<Vec<u8>> {
    vec![transfer::fuzz::ticket_example()]
}

/// Everything that a peer says on a KV connection, from its hello on.
pub(crate) fn kv_connection(bytes: &[u8]) -> bool {
    RUNTIME.block_on(transfer::fuzz::connection(bytes, FakeEngine::new(8, 4).store()))
}

pub(crate) fn kv_examples() -> Vec<Vec<u8>> {
    vec![transfer::fuzz::connection_example(&*FakeEngine::new(8, 4).store())]
}
