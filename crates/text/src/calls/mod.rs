//! Finds the calls of functions in a model's answer, whatever way the text was cut.
//!
//! Every character is taken for itself, so the parts of all pieces joined are those of the whole text. A call is told as soon as its name
//! is known and its arguments begin; until then, whatever does not go on as a call is content, so no text is lost. White space around
//! calls is the format's and is dropped.

mod json;
mod parser;
mod parts;
mod reader;
#[cfg(test)]
mod tests;

pub use parser::ToolParser;
pub use parts::Part;

/// How a family of models writes calls. Names are those of vLLM's `--tool-call-parser`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, anywhere and any number (Hermes, Qwen2.5, Qwen3).
    Hermes,
    /// `{"name": ..., "parameters": {...}}` as the whole answer or after `<|python_tag|>`; several with `;` between (Llama 3.x).
    Llama3Json,
    /// `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, or `[TOOL_CALLS]name{...}` for each in newer ones (Mistral).
    Mistral,
}

impl ToolFormat {
    /// The format that a chat template teaches.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        let has = |mark: &str| source.contains(mark);
        match () {
            () if has("<tool_call>") => Some(Self::Hermes),
            () if has("[TOOL_CALLS]") => Some(Self::Mistral),
            () if has("<|python_tag|>") || has("<|start_header_id|>") => Some(Self::Llama3Json),
            () => None,
        }
    }

    /// Tokens that mark calls: where they are special, they must be left in the text nevertheless.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
        }
    }

    fn frame(self) -> Frame {
        match self {
            Self::Hermes => Frame { open: "<tool_call>", close: "</tool_call>", ..Frame::NONE },
            Self::Llama3Json => Frame { open: "<|python_tag|>", bare: Some('{'), separator: Some(';'), ..Frame::NONE },
            Self::Mistral => Frame { open: "[TOOL_CALLS]", list: true, plain_names: true, ..Frame::NONE },
        }
    }
}

/// What stands around the objects of calls.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Begins a call, or a list of them. Its first character does not come again in it.
    open: &'static str,
    /// Begins one as well when nothing stands in front.
    bare: Option<char>,
    /// Ends a call outside of a list.
    close: &'static str,
    /// Between calls outside of a list.
    separator: Option<char>,
    /// `[` and `]` may stand around calls, with `,` between them.
    list: bool,
    /// A name may stand for itself in front of its arguments.
    plain_names: bool,
}

impl Frame {
    const NONE: Self = Self { open: "", bare: None, close: "", separator: None, list: false, plain_names: false };
    /// A JSON list of calls and nothing else.
    const LIST: Self = Self { bare: Some('['), list: true, ..Self::NONE };
}
