//! The start of a connection: what both sides run, compared field by field before any piece.

use std::fmt::Display;
use std::fs::File;
use std::sync::Arc;

use kv::{KvError, KvLayout, SharedKv};
use proto::kv::{KvHello, KvMismatch, KvShape, KvShared, KvWelcome};
use types::InstanceId;

use crate::{TransferConfig, TransferError};

/// P's first frame, without an offer of shared memory.
pub(crate) fn hello(config: &TransferConfig, layout: &KvLayout) -> KvHello {
    KvHello {
        protocol: proto::PROTOCOL,
        instance: config.instance.to_string(),
        incarnation: config.incarnation,
        digest: config.digest.clone(),
        shape: Some(KvShape {
            layers: layout.layers,
            kv_heads: layout.kv_heads,
            head_dim: layout.head_dim,
            dtype: layout.dtype.to_string(),
        }),
        shared: None,
    }
}

/// What a sender says of memory that may be mapped; `socket` hands its file over.
pub(crate) fn describe(memory: &SharedKv, socket: String) -> KvShared {
    let KvLayout { block_size, blocks, .. } = memory.layout;
    KvShared { socket, block_size, blocks, ranks: memory.ranks }
}

/// The memory that a hello offers, whose file is here. Nothing of it is checked but its dtype.
pub(crate) fn offered(hello: &KvHello, shared: &KvShared, file: Arc<File>) -> Result<SharedKv, String> {
    let shape = hello.shape.clone().unwrap_or_default();
    let layout = KvLayout {
        layers: shape.layers,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        dtype: shape.dtype.parse().map_err(|error: KvError| error.to_string())?,
        block_size: shared.block_size,
        blocks: shared.blocks,
    };
    Ok(SharedKv { file, layout, ranks: shared.ranks })
}

/// D's answer. `shm_refusal` is why offered memory cannot be used, empty if it can or none was offered.
pub(crate) fn welcome(config: &TransferConfig, layout: &KvLayout, hello: &KvHello, shm_refusal: String) -> KvWelcome {
    KvWelcome {
        protocol: proto::PROTOCOL.min(hello.protocol),
        incarnation: config.incarnation,
        credit_bytes: config.bounds.credit_bytes as u64,
        mismatch: mismatch(config, layout, hello),
        shm_refusal,
    }
}

/// What P makes of D's answer: the credit, or why this connection is of no use.
pub(crate) fn accept(welcome: &KvWelcome, peer: &Peer, address: &str) -> Result<u64, TransferError> {
    if let Some(found) = &welcome.mismatch {
        return Err(TransferError::Mismatch {
            peer: peer.instance.clone(),
            field: found.field.clone(),
            ours: found.theirs.clone(),
            theirs: found.ours.clone(),
        });
    }
    if welcome.incarnation != peer.incarnation {
        return Err(peer.gone(address, "another process took its place; its tickets are void"));
    }
    Ok(welcome.credit_bytes)
}

/// The process that a ticket speaks of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Peer {
    pub(crate) instance: InstanceId,
    pub(crate) incarnation: u64,
}

impl Peer {
    pub(crate) fn gone(&self, address: &str, reason: impl Display) -> TransferError {
        TransferError::PeerGone { peer: self.instance.clone(), address: address.to_owned(), reason: reason.to_string() }
    }
}

/// The first field on which D (`config`, `layout`) and P (`hello`) differ.
fn mismatch(config: &TransferConfig, layout: &KvLayout, hello: &KvHello) -> Option<KvMismatch> {
    let shape = hello.shape.clone().unwrap_or_default();
    let differ = |field: &str, ours: &dyn Display, theirs: &dyn Display| {
        let (ours, theirs) = (ours.to_string(), theirs.to_string());
        (ours != theirs).then(|| KvMismatch { field: field.to_owned(), ours, theirs })
    };
    if hello.protocol < proto::PROTOCOL_MIN {
        return differ("protocol", &proto::PROTOCOL, &hello.protocol);
    }
    differ("layers", &layout.layers, &shape.layers)
        .or_else(|| differ("kv_heads", &layout.kv_heads, &shape.kv_heads))
        .or_else(|| differ("head_dim", &layout.head_dim, &shape.head_dim))
        .or_else(|| differ("kv_dtype", &layout.dtype, &shape.dtype))
        .or_else(|| differ("digest", &config.digest, &hello.digest))
}

#[cfg(test)]
mod tests {
    use kv::KvDtype;

    use super::*;

    const LAYOUT: KvLayout =
        KvLayout { layers: 2, kv_heads: 4, head_dim: 8, dtype: KvDtype::Bf16, block_size: 4, blocks: 10 };

    fn config(digest: &str) -> TransferConfig {
        TransferConfig::new("decode-0".into(), 5, digest)
    }

    fn peer(incarnation: u64) -> Peer {
        Peer { instance: "decode-0".into(), incarnation }
    }

    fn meet(theirs: &TransferConfig, layout: &KvLayout, protocol: u32) -> Result<u64, String> {
        let hello = KvHello { protocol, ..hello(theirs, layout) };
        let welcome = welcome(&config("m"), &LAYOUT, &hello, String::new());
        accept(&welcome, &peer(5), "here:1").map_err(|error| error.to_string())
    }

    #[test]
    fn equal_models_meet_whatever_their_blocks_are() {
        let layout = KvLayout { block_size: 16, blocks: 3, ..LAYOUT };
        assert_eq!(meet(&config("m"), &layout, proto::PROTOCOL), Ok(config("m").bounds.credit_bytes as u64));
        // A newer peer steps down to our version.
        assert!(meet(&config("m"), &layout, proto::PROTOCOL + 1).is_ok());
    }

    #[test]
    fn f11_a_refusal_names_the_field_and_both_values_as_p_sees_them() {
        let cases = [
            (meet(&config("n"), &LAYOUT, 1), "digest: ours is n, theirs is m"),
            (meet(&config("m"), &KvLayout { layers: 3, ..LAYOUT }, 1), "layers: ours is 3, theirs is 2"),
            (meet(&config("m"), &KvLayout { kv_heads: 2, ..LAYOUT }, 1), "kv_heads: ours is 2, theirs is 4"),
            (meet(&config("m"), &KvLayout { head_dim: 16, ..LAYOUT }, 1), "head_dim: ours is 16, theirs is 8"),
            (
                meet(&config("m"), &KvLayout { dtype: KvDtype::F32, ..LAYOUT }, 1),
                "kv_dtype: ours is f32, theirs is bf16",
            ),
            (meet(&config("m"), &LAYOUT, 0), "protocol: ours is 0, theirs is 1"),
        ];
        for (met, reason) in cases {
            assert_eq!(met, Err(format!("peer decode-0 does not fit: {reason}")));
        }
    }

    #[test]
    fn a_process_that_took_the_place_of_the_tickets_one_is_refused() {
        let welcome = welcome(&config("m"), &LAYOUT, &hello(&config("m"), &LAYOUT), String::new());
        let error = accept(&welcome, &peer(4), "here:1").unwrap_err().to_string();
        assert_eq!(error, "peer decode-0 at here:1 is gone: another process took its place; its tickets are void");
    }
}
