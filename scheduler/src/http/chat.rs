//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use hyper::{Request, Response};
use openai::{
    ApiError, ChatChoice, ChatLogprobs, ChatMessage, ChatPart, ChatRequest, ChatResponse, Conversation, Finish,
    PromptLogprobs, ValidChat,
};
use text::{ChatTemplate, Message, ReasoningParser, RenderOptions};
use tokio::time::Instant;
use types::TokenId;

use super::generate::{Generating, Order, answer, check_length, off_loop};
use super::reading::Reading;
use super::sse::{self, Shape};
use super::{Api, Caller, json, unix_seconds};

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Response<Body> {
    let started = start(&api, caller, request).await;
    answer(&api, started, stream, whole).await
}

/// What the answer needs beside the running request.
struct Answering {
    /// The text to repeat in front of every choice; empty without `echo`.
    echo: String,
    /// Of a choice that has not begun.
    reading: Reading,
}

/// A conversation's prompt.
pub(super) struct Prompt {
    pub(super) tokens: Vec<TokenId>,
    /// Parts the thoughts of an answer from the rest, if the model has any.
    pub(super) thoughts: Option<ReasoningParser>,
}

async fn start(api: &Arc<Api>, caller: Caller, request: Request<Body>) -> Result<(Generating, Answering), ApiError> {
    let arrived = Instant::now();
    let body = api.body(request).await?;
    let chat = ChatRequest::parse(&body, &api.bounds.request)?.validate(&api.bounds.request)?;
    api.check_model(chat.generation.model.as_deref())?;
    let ValidChat { generation, conversation, echo, tools, include_reasoning } = chat;
    let reading = Reading::new(&api.dialect, tools.as_ref(), include_reasoning)?;
    let last = conversation.messages.last().filter(|last| echo && last.role == "assistant");
    let echo = last.and_then(|last| last.content.clone()).unwrap_or_default();
    let Prompt { tokens, thoughts } = prompt(api, body.len(), conversation, !generation.truncates()).await?;
    let order = Order {
        caller,
        kind: "chatcmpl-",
        // What is held to a grammar from its first token on has no room for thoughts.
        reasoning: thoughts.filter(|_| !generation.is_constrained()),
        shown: api.dialect.marks(&api.tokenizer, tools.is_some()),
        generation,
        prompts: vec![tokens],
        after_prompt: false,
        embed: None,
        arrived,
    };
    Ok((api.launch(order).await?, Answering { echo, reading }))
}

/// The conversation in the words of a chat template, tokenised; `whole`: refused if it cannot fit into the context.
pub(super) async fn prompt(api: &Api, bytes: usize, chat: Conversation, whole: bool) -> Result<Prompt, ApiError> {
    let template = template(api, chat.chat_template.as_deref())?;
    let (tokenizer, dialect) = (api.tokenizer.clone(), api.dialect.clone());
    let options = RenderOptions {
        add_generation_prompt: chat.add_generation_prompt,
        continue_final_message: chat.continue_final_message,
        tools: chat.tools,
        documents: chat.documents,
        variables: chat.chat_template_kwargs,
        now_unix: unix_seconds(),
    };
    let messages: Vec<Message> = chat.messages.into_iter().map(message).collect();
    let refused = |error: text::Error| ApiError::bad_request(error.to_string());
    let context = api.max_model_len().filter(|_| whole);
    let prompt = off_loop(bytes, move || {
        let text = template.render(&messages, &options).map_err(refused)?;
        check_length(&tokenizer, "messages", text.len(), context)?;
        let tokens = tokenizer.encode(&text, chat.add_special_tokens).map_err(refused)?;
        Ok(Prompt { tokens, thoughts: dialect.thoughts(&text) })
    });
    let prompt = prompt.await?;
    if prompt.tokens.is_empty() {
        return Err(ApiError::bad_field("messages", "the conversation renders to an empty prompt"));
    }
    Ok(prompt)
}

/// The model's own template, or the request's where the operator lets it bring one.
fn template(api: &Api, sent: Option<&str>) -> Result<ChatTemplate, ApiError> {
    let Some(source) = sent else {
        let message = "this model has no chat template; use /v1/completions";
        return api.template.clone().ok_or_else(|| ApiError::bad_field("messages", message));
    };
    if !api.trust_request_chat_template {
        let message = "chat_template: this server uses the model's own; started with --trust-request-chat-template it would take yours";
        return Err(ApiError::bad_field("chat_template", message));
    }
    ChatTemplate::of_request(source, api.template.as_ref())
        .map_err(|error| ApiError::bad_field("chat_template", error.to_string()))
}

fn message(message: ChatMessage) -> Message {
    Message { role: message.role, content: message.content, extra: message.extra }
}

async fn stream(generating: Generating, answering: Answering) -> Result<Response<Body>, ApiError> {
    let Answering { echo, reading } = answering;
    let readings = vec![reading; generating.n as usize];
    sse::chunks(generating, Shape::Chat { echo, readings }).await
}

/// The answer in one body.
async fn whole(mut generating: Generating, answering: Answering) -> Result<Response<Body>, ApiError> {
    let Answering { echo, reading } = answering;
    let choices = generating.collect().await?.into_iter().map(|mut piece| {
        let logprobs = generating.logprobs.then(|| ChatLogprobs::new(&piece.logprobs));
        let mut parts = vec![ChatPart::Content(echo.clone())];
        parts.extend(reading.clone().read(&mut piece));
        let choice = ChatChoice::new(piece.index, parts, logprobs, piece.finish.unwrap_or_else(Finish::abort));
        if generating.token_ids { choice.with_token_ids(piece.token_ids) } else { choice }
    });
    let mut response = ChatResponse::new(&generating.head, choices.collect(), generating.usage());
    if let Some(top) = generating.prompt_logprobs {
        response = response.with_prompt_logprobs(PromptLogprobs::new(&generating.prompt_tokens(0), top));
    }
    if generating.token_ids {
        response = response.with_prompt_token_ids(generating.prompt_of(0).to_vec());
    }
    Ok(json(&response))
}
