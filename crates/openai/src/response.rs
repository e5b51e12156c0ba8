//! Answers that come in one body. Keys that vLLM writes as null are written as null.

use serde::Serialize;
use types::TokenId;

use crate::part::{Message, ToolCall};
use crate::{ChatLogprobs, ChatPart, CompletionLogprobs, PromptLogprobs};

/// What every body and chunk of one request repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// `cmpl-...` or `chatcmpl-...`
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The first served name, whatever alias the request used.
    pub model: String,
}

/// Tokens counted over all choices; each prompt counts once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub total_tokens: u64,
    pub completion_tokens: u64,
    pub prompt_tokens_details: PromptTokensDetails,
    /// `None` for a model that does not think.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
}

/// Part of [`Usage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct PromptTokensDetails {
    /// Prompt tokens whose KV was already there.
    pub cached_tokens: u64,
}

/// Part of [`Usage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct CompletionTokensDetails {
    /// Tokens of what the model thought before it answered.
    pub reasoning_tokens: u64,
}

/// Why a choice ended, in the words of the interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    reason: &'static str,
    stop: Option<StopReason>,
}

/// What stopped a choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    Text(String),
    Token(TokenId),
}

/// Body of `POST /v1/completions`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompletionResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<CompletionChoice>,
    usage: Usage,
}

/// One choice of a [`CompletionResponse`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompletionChoice {
    index: u32,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: &'static str,
    stop_reason: Option<StopReason>,
    prompt_logprobs: Option<PromptLogprobs>,
    token_ids: Option<Vec<TokenId>>,
    prompt_token_ids: Option<Vec<TokenId>>,
}

/// Body of `POST /v1/chat/completions`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    service_tier: Option<()>,
    system_fingerprint: Option<()>,
    usage: Usage,
    prompt_logprobs: Option<PromptLogprobs>,
    prompt_token_ids: Option<Vec<TokenId>>,
    kv_transfer_params: Option<()>,
}

/// One choice of a [`ChatResponse`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatChoice {
    index: u32,
    message: AnswerMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
    stop_reason: Option<StopReason>,
    token_ids: Option<Vec<TokenId>>,
}

/// The assistant's message.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct AnswerMessage {
    role: &'static str,
    /// `None` beside calls, or when the model thought to the end.
    content: Option<String>,
    refusal: Option<()>,
    reasoning: Option<String>,
    /// The same under its older name.
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

impl Usage {
    pub fn new(prompt_tokens: u64, completion_tokens: u64, cached_tokens: u64) -> Self {
        let total_tokens = prompt_tokens + completion_tokens;
        Self {
            prompt_tokens,
            total_tokens,
            completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            completion_tokens_details: None,
        }
    }

    /// For a model that thinks.
    pub fn with_reasoning(mut self, reasoning_tokens: u64) -> Self {
        self.completion_tokens_details = Some(CompletionTokensDetails { reasoning_tokens });
        self
    }
}

impl Finish {
    /// The model's own end.
    pub fn eos() -> Self {
        Self { reason: "stop", stop: None }
    }
    /// A token of `stop_token_ids`.
    pub fn stop_token(id: TokenId) -> Self {
        Self { reason: "stop", stop: Some(StopReason::Token(id)) }
    }
    /// A string of `stop`.
    pub fn stop_string(text: impl Into<String>) -> Self {
        Self { reason: "stop", stop: Some(StopReason::Text(text.into())) }
    }
    /// `max_tokens` or the context's end.
    pub fn length() -> Self {
        Self { reason: "length", stop: None }
    }
    /// The model's own end, after calls that the client is to make.
    pub fn tool_calls() -> Self {
        Self { reason: "tool_calls", stop: None }
    }
    /// Ended by us before its time.
    pub fn abort() -> Self {
        Self { reason: "abort", stop: None }
    }
    /// The word in `finish_reason`; also a metric label.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
    pub fn stop(&self) -> Option<&StopReason> {
        self.stop.as_ref()
    }
}

impl CompletionResponse {
    pub fn new(head: &Head, choices: Vec<CompletionChoice>, usage: Usage) -> Self {
        let Head { id, created, model } = head.clone();
        Self { id, object: "text_completion", created, model, choices, usage }
    }
}

impl CompletionChoice {
    pub fn new(index: u32, text: String, logprobs: Option<CompletionLogprobs>, finish: Finish) -> Self {
        Self {
            index,
            text,
            logprobs,
            finish_reason: finish.reason,
            stop_reason: finish.stop,
            prompt_logprobs: None,
            token_ids: None,
            prompt_token_ids: None,
        }
    }
    /// For `prompt_logprobs`.
    pub fn with_prompt_logprobs(mut self, logprobs: PromptLogprobs) -> Self {
        self.prompt_logprobs = Some(logprobs);
        self
    }
    /// For `return_token_ids`.
    pub fn with_token_ids(mut self, prompt: Vec<TokenId>, output: Vec<TokenId>) -> Self {
        self.prompt_token_ids = Some(prompt);
        self.token_ids = Some(output);
        self
    }
}

impl ChatResponse {
    pub fn new(head: &Head, choices: Vec<ChatChoice>, usage: Usage) -> Self {
        let Head { id, created, model } = head.clone();
        Self {
            id,
            object: "chat.completion",
            created,
            model,
            choices,
            service_tier: None,
            system_fingerprint: None,
            usage,
            prompt_logprobs: None,
            prompt_token_ids: None,
            kv_transfer_params: None,
        }
    }
    /// For `prompt_logprobs`.
    pub fn with_prompt_logprobs(mut self, logprobs: PromptLogprobs) -> Self {
        self.prompt_logprobs = Some(logprobs);
        self
    }
    /// For `return_token_ids`.
    pub fn with_prompt_token_ids(mut self, prompt: Vec<TokenId>) -> Self {
        self.prompt_token_ids = Some(prompt);
        self
    }
}

impl ChatChoice {
    pub fn new(index: u32, parts: Vec<ChatPart>, logprobs: Option<ChatLogprobs>, finish: Finish) -> Self {
        let Message { reasoning, content, calls } = parts.into_iter().collect();
        let thought = !reasoning.is_empty();
        let silent = content.is_empty() && (thought || !calls.is_empty());
        let message = AnswerMessage {
            role: "assistant",
            content: (!silent).then_some(content),
            refusal: None,
            reasoning: thought.then(|| reasoning.clone()),
            reasoning_content: thought.then_some(reasoning),
            tool_calls: calls,
        };
        Self { index, message, logprobs, finish_reason: finish.reason, stop_reason: finish.stop, token_ids: None }
    }
    /// For `return_token_ids`.
    pub fn with_token_ids(mut self, output: Vec<TokenId>) -> Self {
        self.token_ids = Some(output);
        self
    }
}
