//! The events of a streamed completion, as far as they are measured.

use serde::Deserialize;

/// One event.
#[derive(Debug, Default, Deserialize)]
pub(in crate::bench) struct Chunk {
    #[serde(default)]
    pub(super) choices: Vec<ChunkChoice>,
    #[serde(default)]
    pub(super) usage: Option<Usage>,
    #[serde(default)]
    pub(in crate::bench) error: Option<serde_json::Value>,
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
    /// The text of each choice.
    pub(in crate::bench) fn text(&self) -> impl Iterator<Item = &str> {
        self.choices.iter().map(|choice| choice.text.as_str())
    }

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
