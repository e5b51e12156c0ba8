//! What a chat answer is made of, in the order in which it comes. The same parts make a whole message and a stream of deltas, so both say the
//! same.

use serde::Serialize;

/// A stretch of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatPart {
    /// What the model thinks before it answers.
    Reasoning(String),
    Content(String),
    /// A call of a function begins. Calls of a choice are numbered from 0.
    Call {
        index: u32,
        id: String,
        name: String,
    },
    /// More JSON text of a call's arguments.
    Arguments {
        index: u32,
        text: String,
    },
}

/// A whole call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    pub(crate) r#type: &'static str,
    pub(crate) function: CalledFunction,
}

/// Part of [`ToolCall`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CalledFunction {
    pub(crate) name: String,
    /// JSON text.
    pub(crate) arguments: String,
}

/// All parts of an answer put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) reasoning: String,
    pub(crate) content: String,
    pub(crate) calls: Vec<ToolCall>,
}

impl FromIterator<ChatPart> for Message {
    fn from_iter<I: IntoIterator<Item = ChatPart>>(parts: I) -> Self {
        let mut message = Self::default();
        parts.into_iter().for_each(|part| message.add(part));
        message
    }
}

impl Message {
    pub(crate) fn add(&mut self, part: ChatPart) {
        match part {
            ChatPart::Reasoning(text) => self.reasoning.push_str(&text),
            ChatPart::Content(text) => self.content.push_str(&text),
            ChatPart::Call { id, name, .. } => {
                let function = CalledFunction { name, arguments: String::new() };
                self.calls.push(ToolCall { id, r#type: "function", function });
            }
            ChatPart::Arguments { index, text } => {
                if let Some(call) = self.calls.get_mut(index as usize) {
                    call.function.arguments.push_str(&text);
                }
            }
        }
    }
}
