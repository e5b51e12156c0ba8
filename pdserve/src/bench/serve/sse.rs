//! Reads server-sent events of a completion, however the network cuts them.

use anyhow::ensure;
use serde::Deserialize;

/// No server sends one token in an event as large as this.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// Cuts a byte stream into the `data` of its events.
#[derive(Debug, Default)]
pub(super) struct Events {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were looked at already.
    seen: usize,
    data: Vec<u8>,
}

impl Events {
    /// Takes what arrived and hands each whole event's data to `event`. Comments and other fields are skipped.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        mut event: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer[self.seen..].iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..self.seen + end + 1).collect();
            self.seen = 0;
            self.line(line.trim_ascii_end(), &mut event)?;
        }
        self.seen = self.buffer.len();
        ensure!(self.seen + self.data.len() <= EVENT_BYTES_MAX, "an event is larger than {EVENT_BYTES_MAX} bytes");
        Ok(())
    }

    fn line(&mut self, line: &[u8], event: &mut impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return if data.is_empty() { Ok(()) } else { event(std::str::from_utf8(&data)?) };
        }
        if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data.trim_ascii_start());
        }
        Ok(())
    }
}

/// What an event says, as far as it is measured.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Chunk {
    #[serde(default)]
    pub(super) choices: Vec<ChunkChoice>,
    #[serde(default)]
    pub(super) usage: Option<Usage>,
    #[serde(default)]
    pub(super) error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ChunkChoice {
    #[serde(default)]
    pub(super) text: String,
    #[serde(default)]
    pub(super) finish_reason: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u32,
    pub(super) completion_tokens: u32,
    #[serde(default)]
    pub(super) prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub(super) struct PromptDetails {
    #[serde(default)]
    pub(super) cached_tokens: Option<u32>,
}

impl Chunk {
    /// Output tokens there are after this chunk, when `before` were there.
    ///
    /// A server that sends running usage says it itself. Others send one token per chunk, and a last one that repeats the finish
    /// without text.
    pub(super) fn tokens_after(&self, before: u32) -> u32 {
        let Some(choice) = self.choices.first() else { return before };
        match self.usage {
            Some(usage) => usage.completion_tokens.max(before),
            None if !choice.text.is_empty() || choice.finish_reason.is_none() => before + 1,
            None => before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[&str], expected: &[&str]) {
        let mut events = Events::default();
        let mut found = Vec::new();
        for piece in pieces {
            let keep = |data: &str| {
                found.push(data.to_owned());
                Ok(())
            };
            events.push(piece.as_bytes(), keep).unwrap();
        }
        assert_eq!(found, expected, "{pieces:?}");
    }

    #[test]
    fn events_are_found_however_they_are_cut() {
        check(&["data: {\"a\":1}\n\ndata: [DONE]\n\n"], &["{\"a\":1}", "[DONE]"]);
        check(&["da", "ta: x", "\n", "\nda", "ta:y\n\n"], &["x", "y"]);
        check(&["data: x\r\n\r\n: ping\r\n\r\nevent: e\r\ndata: y\r\n\r\n"], &["x", "y"]);
        check(&["data: a\ndata: b\n\n"], &["a\nb"]);
        check(&["data: not ended\n"], &[]);
        check(&["\n\n\n"], &[]);
        let whole = "data: hälf\n\n";
        let split = whole.len() - 5;
        let mut events = Events::default();
        let mut found = String::new();
        for piece in [&whole.as_bytes()[..split], &whole.as_bytes()[split..]] {
            let keep = |data: &str| {
                found.push_str(data);
                Ok(())
            };
            events.push(piece, keep).unwrap();
        }
        assert_eq!(found, "hälf");
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut events = Events::default();
        let block = vec![b'x'; 1 << 20];
        assert!((0..5).any(|_| events.push(&block, |_| Ok(())).is_err()));
    }

    #[test]
    fn tokens_are_counted_by_usage_or_by_chunk() {
        for (chunk, before, expected) in [
            (r#"{"choices":[{"text":"a","finish_reason":null}]}"#, 3, 4),
            (r#"{"choices":[{"text":"","finish_reason":null}]}"#, 3, 4),
            (r#"{"choices":[{"text":"","finish_reason":"length"}]}"#, 3, 3),
            (r#"{"choices":[{"text":"a","finish_reason":"length"}]}"#, 3, 4),
            (r#"{"choices":[{"text":"abc"}],"usage":{"prompt_tokens":1,"completion_tokens":6}}"#, 3, 6),
            (r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":64}}"#, 64, 64),
            (r#"{"choices":[{"text":"a"}],"usage":null}"#, 0, 1),
        ] {
            let chunk: Chunk = serde_json::from_str(chunk).unwrap();
            assert_eq!(chunk.tokens_after(before), expected, "{chunk:?}");
        }
    }
}
