//! Every way in which a model directory's text files or a conversation can be wrong.

use std::path::PathBuf;

/// Errors of this room. `Render` is the client's affair (400), everything else the operator's, seen at start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: larger than the {limit} bytes that are read at most; is this the right file?", path.display())]
    TooBig { path: PathBuf, limit: u64 },
    #[error("{}: {reason}", path.display())]
    Parse { path: PathBuf, reason: String },
    /// The detokeniser must know how a decoder treats neighbours, so an unknown one is refused at start.
    #[error(
        "decoder {found} is not supported; supported are ByteLevel, ByteFallback, Fuse, Metaspace, Replace, Strip, WordPiece and sequences of them"
    )]
    Decoder { found: String },
    #[error("text cannot be tokenised: {0}")]
    Encode(String),
    /// `place` is `file:line`, without directories: the text goes to the client.
    #[error("chat template {place}: {reason}")]
    Render { place: String, reason: String },
}
