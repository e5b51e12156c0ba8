//! The life of a request in seven words, used alike by logs, spans, metrics and `explain`.

use std::fmt;

/// Where a request stands. The numbers are those of ARCHITECTURE.md.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// 1: parsed, validated, permit taken.
    Admitted,
    /// 2: tokenised, a prefill and a decode instance chosen.
    Routed,
    /// 3: blocks set aside on the decode instance.
    Reserved,
    /// 4: the prompt is being computed.
    Prefilling,
    /// 5: first token known, KV still on its way.
    Transferring,
    /// 6: the decode instance streams tokens.
    Decoding,
    /// 7: ended as asked.
    Finished,
    /// 7: ended with an error that the client saw.
    Failed,
    /// 7: the client left.
    Cancelled,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Admitted => "admitted",
            Stage::Routed => "routed",
            Stage::Reserved => "reserved",
            Stage::Prefilling => "prefilling",
            Stage::Transferring => "transferring",
            Stage::Decoding => "decoding",
            Stage::Finished => "finished",
            Stage::Failed => "failed",
            Stage::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
