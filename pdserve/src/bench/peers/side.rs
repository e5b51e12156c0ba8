//! Who is compared: programs, and the precision class of their weights.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use engine::Quantization;

/// Precision of the weights. A faster class is never quoted against a slower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Bits16,
    Int8,
    Int4,
}

impl Class {
    /// Of our own weights.
    pub(super) fn of(quantization: Option<Quantization>) -> Self {
        match quantization {
            None => Class::Bits16,
            Some(Quantization::Int8) => Class::Int8,
            Some(Quantization::Int4) => Class::Int4,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Bits16 => "16-bit",
            Class::Int8 => "int8",
            Class::Int4 => "int4",
        })
    }
}

impl FromStr for Class {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        [Class::Bits16, Class::Int8, Class::Int4]
            .into_iter()
            .find(|class| class.to_string() == text)
            .ok_or_else(|| anyhow::anyhow!("{text:?} is not a precision class; there are 16-bit, int8 and int4"))
    }
}

/// `CLASS=PATH` of the command line.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) class: Class,
    pub(super) path: PathBuf,
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (class, path) = text.split_once('=').ok_or_else(|| {
            anyhow::anyhow!("{text:?} does not say the precision of the peer's weights; write it as int8={text}")
        })?;
        Ok(Self { class: class.parse()?, path: path.into() })
    }
}

/// A peer that a driver exists for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Vllm,
    OpenVino,
    Llama,
}

impl Program {
    /// What its driver runs before the common loop: defines `start(setting)` and `step(engine, rows, before, new)`.
    pub(super) fn driver(self) -> &'static str {
        match self {
            Program::Vllm => include_str!("drivers/vllm.py"),
            Program::OpenVino => include_str!("drivers/openvino.py"),
            Program::Llama => include_str!("drivers/llama.py"),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Program::Vllm => "vLLM",
            Program::OpenVino => "OpenVINO",
            Program::Llama => "llama.cpp",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_named_with_their_class() {
        let peer: Peer = "int8=/models/a=b".parse().unwrap();
        assert_eq!((peer.class, peer.path), (Class::Int8, PathBuf::from("/models/a=b")));
        for (text, said) in [("/models/a", "int8=/models/a"), ("fp8=/models/a", "16-bit, int8 and int4")] {
            assert!(text.parse::<Peer>().unwrap_err().to_string().contains(said), "{text}");
        }
    }
}
