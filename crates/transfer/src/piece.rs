//! A piece: the KV of some tokens and heads of one layer, with a header that its checksum is bound to.

use kv::{BlockId, KvLayout, KvSpan};
use proto::kv::Piece;
use types::RequestKey;
use xxhash_rust::xxh3::Xxh3;
#[cfg(any(test, feature = "fuzz"))]
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::ticket::Capability;

/// Largest payload that a receiver takes.
pub(crate) const PAYLOAD_BYTES_MAX: u64 = 64 << 20;
/// Where we cut what is sent. Measured with 64 MiB over each transport: pieces of 1 MiB stay in the cache from reading to
/// checksum to sending, and cost a third less than pieces of 4 MiB; a frame's own cost does not show yet.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// Where we cut what is fetched: a layer of 2,048 tokens of a small model, which takes D half a millisecond. In smaller pieces D could copy
/// one while P sums the next; but on two cores pieces of 0.5 to 2 MiB left as much exposed.
const FETCHED_BYTES: usize = 4 << 20;
/// Blocks that a fetched piece may name: they fit into a message.
const FETCHED_BLOCKS: usize = 512;

/// How the bytes of pieces get to D.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Carriage {
    /// Behind their header.
    Sent,
    /// D copies them out of P's memory.
    Fetched,
}

impl Carriage {
    /// Most tokens of one piece; one at least.
    fn tokens(self, layout: &KvLayout, heads: u32) -> usize {
        let fit = |bytes: usize| bytes / layout.token_bytes(heads).max(1);
        let tokens = match self {
            Carriage::Sent => fit(PIECE_BYTES),
            // A piece that begins within a block touches one block more than it fills.
            Carriage::Fetched => fit(FETCHED_BYTES).min((FETCHED_BLOCKS - 1) * layout.block_size as usize),
        };
        tokens.clamp(1, u32::MAX as usize)
    }
}

/// Cuts a span into pieces, all of about one size.
pub(crate) fn cut(span: KvSpan, layout: &KvLayout, carriage: Carriage) -> impl Iterator<Item = KvSpan> + use<> {
    let tokens = span.tokens.end - span.tokens.start;
    let most = carriage.tokens(layout, span.heads.end - span.heads.start);
    let pieces = tokens.div_ceil(most as u32).max(1);
    let step = tokens.div_ceil(pieces).max(1);
    span.tokens.clone().step_by(step as usize).map(move |start| {
        let end = span.tokens.end.min(start.saturating_add(step));
        KvSpan { layer: span.layer, heads: span.heads.clone(), tokens: start..end }
    })
}

/// The header of a piece, without its checksum.
pub(crate) fn header(number: u64, key: &RequestKey, capability: &Capability, span: &KvSpan, bytes: usize) -> Piece {
    Piece {
        request_id: key.request.to_string(),
        epoch: key.epoch,
        capability: bytes::Bytes::copy_from_slice(capability),
        piece: number,
        layer: span.layer,
        head_start: span.heads.start,
        head_end: span.heads.end,
        token_start: span.tokens.start,
        token_end: span.tokens.end,
        payload_len: bytes as u64,
        checksum: 0,
        shm_blocks: Vec::new(),
    }
}

/// The header of a piece whose payload follows it, for peers that are made up.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn sealed(number: u64, key: &RequestKey, capability: &Capability, span: &KvSpan, payload: &[u8]) -> Piece {
    let mut piece = header(number, key, capability, span, payload.len());
    piece.checksum = checksum(&piece, payload);
    piece
}

/// Those of a sequence's blocks that hold a span's tokens.
pub(crate) fn blocks_of(span: &KvSpan, blocks: &[BlockId], block_size: u32) -> Vec<u32> {
    let size = block_size.max(1);
    let (first, end) = (span.tokens.start / size, span.tokens.end.div_ceil(size));
    blocks.iter().skip(first as usize).take((end - first) as usize).map(|block| block.0).collect()
}

/// The span that a header claims; not yet checked against anything.
pub(crate) fn span(piece: &Piece) -> KvSpan {
    KvSpan { layer: piece.layer, heads: piece.head_start..piece.head_end, tokens: piece.token_start..piece.token_end }
}

/// xxh3-64 of the payload, seeded with its header's [`seed`].
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn checksum(piece: &Piece, payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, seed(piece))
}

/// xxh3-64 of every header field but the checksum itself and the place in shared memory.
pub(crate) fn seed(piece: &Piece) -> u64 {
    let mut header = Xxh3::new();
    header.update(&(piece.request_id.len() as u64).to_le_bytes());
    header.update(piece.request_id.as_bytes());
    header.update(&(piece.capability.len() as u64).to_le_bytes());
    header.update(&piece.capability);
    let words = [piece.epoch, piece.layer, piece.head_start, piece.head_end, piece.token_start, piece.token_end];
    words.iter().for_each(|word| header.update(&word.to_le_bytes()));
    header.update(&piece.piece.to_le_bytes());
    header.update(&piece.payload_len.to_le_bytes());
    header.digest()
}

#[cfg(test)]
mod tests {
    use kv::KvDtype;

    use super::*;

    fn layout(head_dim: u32) -> KvLayout {
        KvLayout { layers: 1, kv_heads: 4, head_dim, dtype: KvDtype::F32, block_size: 16, blocks: 4 }
    }

    #[test]
    fn large_spans_are_cut_evenly_and_completely() {
        // A quarter of a piece per token and 4 heads.
        let layout = layout(8 << 10);
        for (tokens, expected) in
            [(0..1, &[(0, 1)][..]), (0..4, &[(0, 4)]), (3..8, &[(3, 6), (6, 8)]), (0..9, &[(0, 3), (3, 6), (6, 9)])]
        {
            let span = KvSpan { layer: 0, heads: 0..4, tokens: tokens.clone() };
            let cuts: Vec<_> =
                cut(span, &layout, Carriage::Sent).map(|piece| (piece.tokens.start, piece.tokens.end)).collect();
            assert_eq!(cuts, expected, "{tokens:?}");
        }
    }

    #[test]
    fn a_token_is_never_cut() {
        let span = KvSpan { layer: 0, heads: 0..4, tokens: 5..7 };
        let cuts: Vec<_> = cut(span, &layout(1 << 20), Carriage::Sent).map(|piece| piece.tokens).collect();
        assert_eq!(cuts, [5..6, 6..7]);
    }

    #[test]
    fn every_field_changes_the_checksum() {
        let key = RequestKey { request: "r".into(), epoch: 1 };
        let span = KvSpan { layer: 2, heads: 3..4, tokens: 5..6 };
        let piece = header(7, &key, &[8; 16], &span, 7);
        let changed = [
            Piece { request_id: "s".into(), ..piece.clone() },
            Piece { epoch: 0, ..piece.clone() },
            Piece { capability: vec![9; 16].into(), ..piece.clone() },
            Piece { piece: 6, ..piece.clone() },
            Piece { layer: 3, ..piece.clone() },
            Piece { head_start: 2, ..piece.clone() },
            Piece { head_end: 5, ..piece.clone() },
            Piece { token_start: 4, ..piece.clone() },
            Piece { token_end: 7, ..piece.clone() },
            Piece { payload_len: 8, ..piece.clone() },
        ];
        for changed in changed {
            assert_ne!(checksum(&changed, b"payload"), checksum(&piece, b"payload"), "{changed:?}");
        }
        assert_ne!(checksum(&piece, b"Payload"), checksum(&piece, b"payload"));
    }

    /// Pieces that are fetched may be larger, but their blocks must fit into a message.
    #[test]
    fn fetched_pieces_name_a_bounded_number_of_blocks() {
        let layout = layout(1);
        let span = KvSpan { layer: 0, heads: 0..4, tokens: 5..40_000 };
        let blocks: Vec<_> = (0..2500).map(BlockId).collect();
        let cuts: Vec<_> = cut(span, &layout, Carriage::Fetched).collect();
        let named: Vec<_> = cuts.iter().map(|piece| blocks_of(piece, &blocks, 16).len()).collect();
        assert_eq!(named.len(), 5);
        assert!(named.iter().all(|named| (400..=FETCHED_BLOCKS).contains(named)), "{named:?}");
        assert_eq!(blocks_of(&KvSpan { tokens: 31..33, ..cuts[0].clone() }, &blocks, 16), [1, 2]);
    }
}
