//! A tokenizer's decoder as a chain of stages that can work token by token.
//!
//! The `tokenizers` crate decodes whole sequences; cutting its text into pieces is only right if one knows how each decoder treats a
//! token's neighbours. A [`Chain`] knows, keeps what it needs in a [`ChainState`], and its pieces always join to the crate's text.

use serde_json::Value;
use tokenizers::Decoder as _;
use tokenizers::DecoderWrapper;

use crate::Error;

/// The stages of one tokenizer's decoder.
pub(crate) struct Chain(Vec<Stage>);

/// Where one text stands in a chain.
#[derive(Clone, Debug)]
pub(crate) struct ChainState(Vec<Memory>);

enum Stage {
    /// Turns each token into text by itself.
    Each(DecoderWrapper),
    /// As `Each`, but a text's first token is treated in another way (its leading space goes).
    FirstDiffers(DecoderWrapper),
    /// No decoder: tokens are words with spaces between.
    Words,
    /// Tokens `<0x00>`..`<0xFF>`: a run of them becomes characters if the whole run is valid, else one U+FFFD each.
    ByteRuns,
    /// Every character of a token stands for a byte; invalid bytes become U+FFFD.
    Bytes,
    /// Strips this character at the start of the whole text, at most `count` times.
    StripStart { content: char, count: usize },
}

/// What a stage remembers between tokens.
#[derive(Clone, Debug)]
enum Memory {
    Nothing,
    /// Whether the first token has passed.
    Started(bool),
    /// Bytes that are not text yet.
    Bytes(Vec<u8>),
    /// Characters that may still be stripped.
    Left(usize),
}

impl Chain {
    pub(crate) fn new(decoder: Option<&DecoderWrapper>) -> Result<Self, Error> {
        let Some(decoder) = decoder else { return Ok(Self(vec![Stage::Words])) };
        let mut builder = Builder { stages: Vec::new(), joined: false };
        builder.add(decoder)?;
        Ok(Self(builder.stages))
    }

    /// The state before the first token. `after_prompt`: the text goes on from another, so nothing is a first token.
    pub(crate) fn start(&self, after_prompt: bool) -> ChainState {
        let memories = self.0.iter().map(|stage| match stage {
            Stage::Each(_) => Memory::Nothing,
            Stage::FirstDiffers(_) | Stage::Words => Memory::Started(after_prompt),
            Stage::ByteRuns | Stage::Bytes => Memory::Bytes(Vec::new()),
            Stage::StripStart { count, .. } => Memory::Left(if after_prompt { 0 } else { *count }),
        });
        ChainState(memories.collect())
    }

    /// The text that a token makes certain.
    pub(crate) fn push(&self, state: &mut ChainState, token: &str) -> String {
        // Most tokenizers have just this stage.
        if let ([Stage::Bytes], [Memory::Bytes(tail)]) = (self.0.as_slice(), state.0.as_mut_slice()) {
            return push_bytes(tail, token);
        }
        self.pass(state, 0, vec![token.to_owned()])
    }

    /// The text that was held back; nothing follows.
    pub(crate) fn finish(&self, state: &mut ChainState) -> String {
        let mut text = String::new();
        for (at, stage) in self.0.iter().enumerate() {
            let held = stage.flush(&mut state.0[at]);
            text.push_str(&self.pass(state, at + 1, held));
        }
        text
    }

    fn pass(&self, state: &mut ChainState, from: usize, mut tokens: Vec<String>) -> String {
        for (stage, memory) in self.0.iter().zip(&mut state.0).skip(from) {
            tokens = tokens.into_iter().flat_map(|token| stage.push(memory, token)).collect();
        }
        tokens.concat()
    }

    /// The bytes that a token adds in the middle of a text.
    pub(crate) fn bytes_of(&self, mut token: String) -> Vec<u8> {
        for stage in &self.0 {
            token = match stage {
                Stage::Bytes => return mapped_bytes(&token),
                Stage::ByteRuns => match byte_token(&token) {
                    Some(byte) => return vec![byte],
                    None => token,
                },
                Stage::StripStart { .. } => token,
                _ => stage.push(&mut Memory::Started(true), token).concat(),
            };
        }
        token.into_bytes()
    }
}

impl Stage {
    fn push(&self, memory: &mut Memory, token: String) -> Vec<String> {
        match (self, memory) {
            (Self::Each(decoder), _) => decoded(decoder, vec![token]),
            (Self::FirstDiffers(decoder), Memory::Started(started)) => {
                // A neighbour in front makes this token not the first; its own text is dropped again.
                let in_front = if *started { vec![String::new()] } else { Vec::new() };
                let skip = in_front.len();
                *started = true;
                decoded(decoder, in_front.into_iter().chain([token]).collect()).split_off(skip)
            }
            (Self::Words, Memory::Started(started)) => {
                let space = if *started { " " } else { "" };
                *started = true;
                vec![format!("{space}{token}")]
            }
            (Self::ByteRuns, Memory::Bytes(run)) => match byte_token(&token) {
                Some(byte) => {
                    run.push(byte);
                    Vec::new()
                }
                None => {
                    let mut out = take_run(run);
                    out.push(token);
                    out
                }
            },
            (Self::Bytes, Memory::Bytes(tail)) => {
                vec![push_bytes(tail, &token)]
            }
            (Self::StripStart { content, .. }, Memory::Left(left)) => vec![strip_start(&token, *content, left)],
            _ => unreachable!("Chain::start gives every stage its own kind of memory"),
        }
    }

    fn flush(&self, memory: &mut Memory) -> Vec<String> {
        match (self, memory) {
            (Self::ByteRuns, Memory::Bytes(run)) => take_run(run),
            (Self::Bytes, Memory::Bytes(tail)) => vec![String::from_utf8_lossy(&std::mem::take(tail)).into_owned()],
            _ => Vec::new(),
        }
    }
}

/// Checks that every decoder's neighbourhood is known.
struct Builder {
    stages: Vec<Stage>,
    /// The tokens have become one text; what follows sees it in pieces.
    joined: bool,
}

impl Builder {
    fn add(&mut self, decoder: &DecoderWrapper) -> Result<(), Error> {
        let stage = match decoder {
            DecoderWrapper::Sequence(sequence) => {
                return sequence.get_decoders().iter().try_for_each(|inner| self.add(inner));
            }
            DecoderWrapper::Fuse(_) => {
                self.joined = true;
                return Ok(());
            }
            DecoderWrapper::Strip(strip) if self.joined && strip.stop == 0 => {
                Stage::StripStart { content: strip.content, count: strip.start }
            }
            DecoderWrapper::Replace(_) if !self.joined || replaces_one_character(decoder) => {
                Stage::Each(decoder.clone())
            }
            DecoderWrapper::Strip(_) if !self.joined => Stage::Each(decoder.clone()),
            DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_) if !self.joined => {
                Stage::FirstDiffers(decoder.clone())
            }
            DecoderWrapper::ByteFallback(_) if !self.joined => Stage::ByteRuns,
            DecoderWrapper::ByteLevel(_) if !self.joined => {
                self.joined = true;
                Stage::Bytes
            }
            _ => return Err(Error::Decoder { found: kind_of(decoder) }),
        };
        self.stages.push(stage);
        Ok(())
    }
}

fn as_json(decoder: &DecoderWrapper) -> Value {
    serde_json::to_value(decoder).unwrap_or_default()
}

fn kind_of(decoder: &DecoderWrapper) -> String {
    as_json(decoder).get("type").and_then(Value::as_str).unwrap_or("of an unknown type").to_owned()
}

/// Such a replacement gives the same text however the text is cut.
fn replaces_one_character(decoder: &DecoderWrapper) -> bool {
    as_json(decoder)
        .pointer("/pattern/String")
        .and_then(Value::as_str)
        .is_some_and(|pattern| pattern.chars().count() == 1)
}

/// A stateless decoder's output; it fails only on a regular expression that gives up, and then the token stays as it is.
fn decoded(decoder: &DecoderWrapper, tokens: Vec<String>) -> Vec<String> {
    decoder.decode_chain(tokens.clone()).unwrap_or(tokens)
}

/// The byte of a token `<0xE4>`, by the very rule of the `tokenizers` crate.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn take_run(run: &mut Vec<u8>) -> Vec<String> {
    match String::from_utf8(std::mem::take(run)) {
        Ok(text) if text.is_empty() => Vec::new(),
        Ok(text) => vec![text],
        Err(error) => vec!["\u{fffd}".to_owned(); error.as_bytes().len()],
    }
}

/// Takes whole characters from the front; invalid bytes become U+FFFD as in `String::from_utf8_lossy`. The start of a character that
/// may still be completed stays.
fn take_characters(tail: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = tail.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
            }
            Err(error) => {
                let (valid, broken) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                rest = broken;
                if let Some(len) = error.error_len() {
                    text.push('\u{fffd}');
                    rest = &broken[len..];
                    continue;
                }
            }
        }
        let kept = rest.len();
        tail.drain(..tail.len() - kept);
        return text;
    }
}

fn strip_start(piece: &str, content: char, left: &mut usize) -> String {
    let mut rest = piece;
    while *left > 0 && !rest.is_empty() {
        match rest.strip_prefix(content) {
            Some(stripped) => {
                rest = stripped;
                *left -= 1;
            }
            None => *left = 0,
        }
    }
    rest.to_owned()
}

/// The characters that a byte-level token makes certain.
fn push_bytes(tail: &mut Vec<u8>, token: &str) -> String {
    let before = tail.len();
    for character in token.chars() {
        match byte_of(character) {
            Some(byte) => tail.push(byte),
            None => {
                tail.truncate(before);
                tail.extend(token.as_bytes());
                break;
            }
        }
    }
    take_characters(tail)
}

/// Byte-level BPE writes each byte as a printable character; a token with any other character stands for its own UTF-8 bytes.
fn mapped_bytes(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2's table: printable Latin-1 stands for itself, the other 68 bytes follow from U+0100 on, in order.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The other way round.
pub(crate) fn byte_char(byte: u8) -> char {
    let code = u32::from(byte);
    let code = match code {
        0x00..=0x20 => 0x100 + code,
        0x7f..=0xa0 => 0x121 + code - 0x7f,
        0xad => 0x143,
        _ => code,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_table_is_that_of_byte_level_bpe() {
        let decoder = DecoderWrapper::ByteLevel(Default::default());
        let mut seen = Vec::new();
        for character in (0..0x400).filter_map(char::from_u32) {
            let Some(byte) = byte_of(character) else { continue };
            seen.push(byte);
            assert_eq!(byte_char(byte), character);
            let expected = decoded(&decoder, vec![character.to_string()]).concat();
            assert_eq!(String::from_utf8_lossy(&[byte]), expected, "{character:?}");
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn decoders_with_unknown_neighbourhoods_are_refused_by_name() {
        let check = |json: &str, expected: Option<&str>| {
            let decoder: DecoderWrapper = serde_json::from_str(json).unwrap();
            let found = Chain::new(Some(&decoder)).err().map(|error| error.to_string());
            match expected {
                None => assert_eq!(found, None, "{json}"),
                Some(kind) => {
                    assert!(found.is_some_and(|text| text.starts_with(&format!("decoder {kind} is not"))), "{json}")
                }
            }
        };
        let llama = r#"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
            {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}"#;
        check(llama, None);
        check(r#"{"type":"BPEDecoder","suffix":"</w>"}"#, Some("BPEDecoder"));
        check(r#"{"type":"CTC","pad_token":"<pad>","word_delimiter_token":"|","cleanup":true}"#, Some("CTC"));
        let strip_end =
            r#"{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Strip","content":" ","start":0,"stop":1}]}"#;
        check(strip_end, Some("Strip"));
        let late_bytes = r#"{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"ByteFallback"}]}"#;
        check(late_bytes, Some("ByteFallback"));
        let wide = r#"{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"Replace","pattern":{"String":"ab"},"content":"c"}]}"#;
        check(wide, Some("Replace"));
    }
}
