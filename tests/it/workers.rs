use decode_worker::DecodePlanner;
use prefill_worker::PrefillPlanner;
use proto::control::{FailCode, Reserve, scheduler_message as order, worker_message::Body};
use tests::workers::{CancelAt, Pair, wire_key};
use transfer::TransportKind;
use types::{GenerateSpec, Role};
use worker::fake::{self, Size, oracle, spec};

const SIZE: Size = Size { blocks: 64, block_size: 16, max_num_seqs: 16, max_num_batched_tokens: 64 };

/// P and D on pretended engines.
async fn pair(transports: &[TransportKind], prefill: Size, decode: Size) -> Pair {
    let config = fake::config(Role::Prefill, "prefill-0", transports);
    let prefill = fake::loaded(config, prefill, Box::new(PrefillPlanner)).unwrap();
    let config = fake::config(Role::Decode, "decode-0", transports);
    let decode = fake::loaded(config, decode, Box::new(DecodePlanner::default())).unwrap();
    Pair::connect(prefill_worker::serve(prefill).await.unwrap(), decode_worker::serve(decode).await.unwrap()).await
}

async fn check(pair: &mut Pair, name: &str, spec: &GenerateSpec) -> tests::workers::Outcome {
    let outcome = pair.run(name, spec).await;
    assert_eq!(outcome.failed, [], "{name}");
    assert_eq!(outcome.tokens, oracle(spec).concat(), "{name}");
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transport_and_block_size_gives_the_text_of_one_process() {
    // A fake's memory cannot be mapped; shared memory is tested with real engines (`parity.rs`).
    for transport in [TransportKind::Inproc, TransportKind::Tcp, TransportKind::Grpc] {
        for (on_prefill, on_decode) in [(16, 16), (8, 16), (32, 8)] {
            let size = |block_size| Size { block_size, ..SIZE };
            let mut pair = pair(&[transport], size(on_prefill), size(on_decode)).await;
            for (prompt, choices, max_tokens) in [(1, 1, 8), (16, 1, 8), (33, 3, 20), (80, 2, 1), (64, 4, 12)] {
                let name = format!("{transport} {on_prefill} to {on_decode}: prompt {prompt}, n {choices}");
                let wanted = spec(prompt, prompt as usize, choices, max_tokens, 7);
                let outcome = check(&mut pair, &name, &wanted).await;
                if let Some(shipped) = outcome.shipped {
                    assert_eq!(shipped.transport, transport.as_str(), "{name}");
                    // 2 layers, 2 heads, K and V of 8 bytes each.
                    assert_eq!(shipped.bytes, u64::from(prompt) * 64, "{name}");
                }
            }
            pair.settled().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_token_budget_ships_in_chunks() {
    let mut pair = pair(&[TransportKind::Tcp], Size { max_num_batched_tokens: 16, ..SIZE }, SIZE).await;
    check(&mut pair, "chunks", &spec(0, 90, 1, 6, 3)).await;
    pair.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_decode_lacks_is_shipped() {
    let mut pair = pair(&[TransportKind::Inproc], SIZE, SIZE).await;
    let first = check(&mut pair, "cold", &spec(0, 70, 1, 6, 3)).await;
    assert_eq!(first.cached_on_decode, 0);
    let second = check(&mut pair, "warm", &spec(0, 90, 3, 6, 4)).await;
    assert_eq!(second.cached_on_decode, 64);
    assert_eq!(second.prefill.unwrap().cached_tokens, 64);
    assert_eq!(second.shipped.unwrap().bytes, (90 - 64) * 64);
    // The whole prompt is there: nothing to ship, and still P draws the first tokens.
    let third = check(&mut pair, "hot", &spec(0, 64, 2, 6, 5)).await;
    assert_eq!((third.cached_on_decode, third.shipped.unwrap().bytes), (64, 0));
    pair.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_prefill_has_cached_is_shipped_when_decode_lacks_it() {
    let mut pair = pair(&[TransportKind::Tcp], SIZE, Size { blocks: 6, ..SIZE }).await;
    check(&mut pair, "first", &spec(0, 90, 1, 2, 3)).await;
    // Drives the first prompt out of D's small pool.
    check(&mut pair, "other", &spec(1, 90, 1, 2, 3)).await;
    let again = check(&mut pair, "again", &spec(0, 90, 1, 2, 4)).await;
    assert_eq!((again.cached_on_decode, again.prefill.unwrap().cached_tokens), (0, 80));
    assert_eq!(again.shipped.unwrap().bytes, 90 * 64);
    pair.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn decode_computes_the_prompt_itself_when_asked() {
    let mut pair = pair(&[TransportKind::Inproc], SIZE, SIZE).await;
    let wanted = spec(0, 70, 3, 12, 3);
    assert_eq!(pair.aggregated("local", &wanted).await.tokens, oracle(&wanted).concat());
    pair.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_request_goes_on_where_it_stopped() {
    let mut pair = pair(&[TransportKind::Inproc], SIZE, SIZE).await;
    let whole = GenerateSpec { choices: 1..2, ..spec(0, 40, 1, 30, 12) };
    let expected = oracle(&whole).remove(0);
    assert!(expected.len() > 6, "the case is meant to be long");
    let output = expected[..5].iter().map(|token| token.id).collect();
    let outcome = check(&mut pair, "resumed", &GenerateSpec { output, ..whole }).await;
    assert_eq!(outcome.tokens, expected[5..]);
    pair.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_on_small_pools_all_end_right() {
    let small = |blocks| Size { blocks, block_size: 8, max_num_seqs: 8, max_num_batched_tokens: 32 };
    let mut pair = pair(&[], small(40), small(64)).await;
    let specs: Vec<_> = (0..24).map(|i| spec(i % 5, 8 + (i as usize * 7) % 60, 1 + i % 3, 1 + i, i.into())).collect();
    let requests = specs.iter().enumerate().map(|(i, spec)| (i.to_string(), spec.clone(), None)).collect();
    let outcomes = pair.run_all(requests).await;
    let mut served = 0;
    for (i, spec) in specs.iter().enumerate() {
        let outcome = &outcomes[&i.to_string()];
        // A full D says so and holds nothing; whoever was taken in gets the right text.
        match outcome.failed.first() {
            Some(failed) => assert_eq!(failed.code(), FailCode::FailNoBlocks, "{i}: {}", failed.message),
            None => {
                assert_eq!(outcome.tokens, oracle(spec).concat(), "{i}");
                served += 1;
            }
        }
    }
    assert!(served > 0);
    pair.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_at_any_moment_gives_all_blocks_back() {
    let moments = [
        CancelAt::ReserveSent,
        CancelAt::Reserved,
        CancelAt::PrefillSent,
        CancelAt::FirstTokens,
        CancelAt::GenerateSent,
        CancelAt::SecondToken,
    ];
    for transport in [TransportKind::Inproc, TransportKind::Tcp] {
        let mut pair = pair(&[transport], Size { max_num_batched_tokens: 16, ..SIZE }, SIZE).await;
        for at in moments {
            let request = |i: u32| (format!("{at:?} {i}"), spec(i, 70, 2, 20, i.into()), (i != 0).then_some(at));
            let outcomes = pair.run_all((0..4).map(request).collect()).await;
            // Neighbours do not notice.
            let bystander = &outcomes[&format!("{at:?} 0")];
            assert_eq!(bystander.tokens, oracle(&spec(0, 70, 2, 20, 0)).concat(), "{at:?}");
            pair.settled().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefill_instance_that_dies_leaves_nothing_on_decode() {
    for transport in [TransportKind::Inproc, TransportKind::Tcp, TransportKind::Grpc] {
        let mut pair = pair(&[transport], SIZE, SIZE).await;
        check(&mut pair, "before", &spec(0, 40, 1, 4, 3)).await;
        let line = pair.decode_line();
        let reserve = Reserve { key: wire_key("orphan"), spec: Some((&spec(1, 40, 1, 4, 3)).into()) };
        line.send(order::Body::Reserve(reserve)).await;
        assert!(matches!(line.next().await, Some(Body::Reserved(_))));
        drop(pair.prefill.take());
        // D serves on; the orphan goes with its scheduler or its lease.
        let wanted = spec(2, 40, 2, 12, 3);
        assert_eq!(pair.aggregated("after", &wanted).await.tokens, oracle(&wanted).concat());
        let cancel = proto::control::Cancel { key: wire_key("orphan"), choices: vec![] };
        pair.decode_line().send(order::Body::Cancel(cancel)).await;
        pair.settled().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_fit_is_refused_with_both_numbers() {
    let mut pair = pair(&[TransportKind::Inproc], SIZE, Size { blocks: 4, ..SIZE }).await;
    let outcome = pair.run("large", &spec(0, 60, 1, 20, 3)).await;
    assert_eq!(outcome.failed[0].code(), FailCode::FailTooLong);
    assert_eq!(outcome.failed[0].message, "needs 5 KV blocks of 16 tokens, there are 4");
    let outcome = pair.run("long", &spec(0, 96, 1, 1, 3)).await;
    assert_eq!(outcome.failed[0].message, "96 tokens leave no room to answer in a context of 96");
    pair.settled().await;
}
