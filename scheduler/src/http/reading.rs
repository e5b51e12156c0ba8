//! Reads a chat answer for its client: what of the text is thought, content, a call. A whole answer and a stream are read by the same code.

use std::sync::Arc;

use openai::{ApiError, ChatPart, Finish, ToolChoice, Tools};
use text::{ChatTemplate, Part, ReasoningFormat, ReasoningParser, Tokenizer, ToolFormat, ToolParser};
use types::TokenId;

use crate::answer::Piece;
use crate::args::{ReasoningFlag, ToolFlag};

/// How this server's model writes thoughts and calls.
#[derive(Clone, Debug)]
pub(crate) struct Dialect {
    tools: Option<ToolFormat>,
    reasoning: Option<ReasoningFormat>,
}

impl Dialect {
    /// What the operator said, or else what the chat template shows.
    pub(crate) fn new(tools: ToolFlag, reasoning: ReasoningFlag, template: Option<&ChatTemplate>) -> Self {
        Self {
            tools: match tools {
                ToolFlag::Auto => template.and_then(ChatTemplate::tool_format),
                ToolFlag::None => None,
                ToolFlag::Hermes => Some(ToolFormat::Hermes),
                ToolFlag::Llama3Json => Some(ToolFormat::Llama3Json),
                ToolFlag::Mistral => Some(ToolFormat::Mistral),
            },
            reasoning: match reasoning {
                ReasoningFlag::Auto => template.and_then(ChatTemplate::reasoning_format),
                ReasoningFlag::None => None,
                ReasoningFlag::Qwen3 => Some(ReasoningFormat::Qwen3),
                ReasoningFlag::DeepseekR1 => Some(ReasoningFormat::DeepseekR1),
            },
        }
    }

    /// What parts the thoughts of the answer to a prompt from the rest.
    pub(super) fn thoughts(&self, prompt: &str) -> Option<ReasoningParser> {
        self.reasoning.map(|format| ReasoningParser::new(format, prompt))
    }

    /// Marks of thoughts, and of calls if some may come, that the tokenizer would leave out of the text.
    pub(super) fn marks(&self, tokenizer: &Tokenizer, calls: bool) -> Arc<[TokenId]> {
        let of_thoughts = self.reasoning.map_or(&[][..], ReasoningFormat::marks);
        let of_calls = self.tools.filter(|_| calls).map_or(&[][..], ToolFormat::marks);
        let ids = of_thoughts.iter().chain(of_calls).filter_map(|mark| tokenizer.id_of(mark));
        ids.filter(|id| tokenizer.is_special(*id)).collect()
    }
}

/// One choice's answer on its way to the client. Clone it for every choice.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    include_reasoning: bool,
    /// A token that has not become a character yet is told as empty text: not where it may be the beginning of something else.
    tells_empty: bool,
    calls: Option<Calls>,
}

#[derive(Clone, Debug)]
struct Calls {
    parser: ToolParser,
    /// Whether an answer that calls says so in its finish reason. With a named function it does not, as in vLLM.
    finishes: bool,
    /// Mistral's templates take no other ids than nine letters or digits.
    short_ids: bool,
}

impl Reading {
    /// # Errors
    /// The model is free to call, but nobody knows how it writes that.
    pub(super) fn new(dialect: &Dialect, tools: Option<&Tools>, include_reasoning: bool) -> Result<Self, ApiError> {
        let calls = tools.map(|tools| Calls::new(dialect, tools)).transpose()?;
        Ok(Self { include_reasoning, tells_empty: dialect.reasoning.is_none(), calls })
    }

    /// What a piece says. With its last one, an answer that calls gets the finish reason for it.
    pub(super) fn read(&mut self, piece: &mut Piece) -> Vec<ChatPart> {
        let mut parts = Vec::new();
        let reasoning = std::mem::take(&mut piece.reasoning);
        if self.include_reasoning && !reasoning.is_empty() {
            parts.push(ChatPart::Reasoning(reasoning));
        }
        let text = std::mem::take(&mut piece.text);
        match &mut self.calls {
            Some(calls) => parts.extend(calls.read(&text, &mut piece.finish)),
            None if text.is_empty() && (piece.finish.is_some() || !self.tells_empty) => {}
            None => parts.push(ChatPart::Content(text)),
        }
        parts
    }
}

impl Calls {
    fn new(dialect: &Dialect, tools: &Tools) -> Result<Self, ApiError> {
        let names: Arc<[String]> = tools.functions.iter().map(|function| function.name.clone()).collect();
        let calls_max = if tools.parallel { u32::MAX } else { 1 };
        let parser = match (&tools.choice, dialect.tools) {
            (ToolChoice::Named(name), _) => ToolParser::named(name.clone()),
            (ToolChoice::Required, _) => ToolParser::list(names, calls_max),
            (ToolChoice::Auto, Some(format)) => ToolParser::new(format, names, calls_max),
            (ToolChoice::Auto, None) => {
                let message = "tools: this model's chat template does not tell how it writes calls; use tool_choice \"required\" or a \
                               function's name, or start the server with --tool-call-parser";
                return Err(ApiError::bad_field("tools", message));
            }
        };
        Ok(Self {
            parser,
            finishes: !matches!(tools.choice, ToolChoice::Named(_)),
            short_ids: dialect.tools == Some(ToolFormat::Mistral),
        })
    }

    fn read(&mut self, text: &str, finish: &mut Option<Finish>) -> Vec<ChatPart> {
        let mut parts = self.parser.push(text);
        if let Some(finish) = finish {
            parts.extend(self.parser.finish());
            if self.finishes && self.parser.has_called() && finish.reason() == "stop" {
                *finish = Finish::tool_calls();
            }
        }
        parts.into_iter().map(|part| self.shown(part)).collect()
    }

    fn shown(&self, part: Part) -> ChatPart {
        match part {
            Part::Content(text) => ChatPart::Content(text),
            Part::Call { index, name } => ChatPart::Call { index, id: self.new_id(), name },
            Part::Arguments { index, text } => ChatPart::Arguments { index, text },
        }
    }

    fn new_id(&self) -> String {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        if self.short_ids { unique.chars().take(9).collect() } else { format!("call_{unique}") }
    }
}
