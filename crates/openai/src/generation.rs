//! What both endpoints have in common: sampling, limits, stop strings, streaming.

use serde_json::Value;
use types::{BeamParams, EarlyStopping, SamplingParams, TokenId};

use crate::check::{Fields, at_most, check_text, token_id, wrong};
use crate::error::Shown;
use crate::structured::{self, Structured};
use crate::{ApiError, Bounds};

/// Temperatures between 0 and this are raised to it, since smaller ones overflow the scaled logits.
const TEMPERATURE_MIN: f64 = 0.01;
/// Entries of logit_bias are clamped to this, as OpenAI does.
const LOGIT_BIAS_MAX: f64 = 100.0;

/// What validation needs to know of the model, once it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    pub vocab_size: u32,
    pub max_model_len: u32,
}

/// A validated request without its prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The name the client used; `None` = whatever is served.
    pub model: Option<String>,
    /// Becomes part of the answer's `id`.
    pub request_id: Option<String>,
    pub cache_salt: Option<String>,
    /// Choices per prompt in the answer, at least 1.
    pub n: u32,
    /// Choices per prompt to generate, at least `n`; those with the highest summed logprob are the answer.
    pub best_of: u32,
    /// Texts, none empty, that the answer must not contain.
    pub bad_words: Vec<String>,
    /// `None` = one answer at the end.
    pub stream: Option<StreamOptions>,
    pub stop: Vec<String>,
    pub include_stop_str_in_output: bool,
    pub skip_special_tokens: bool,
    pub return_token_ids: bool,
    /// Logprobs name tokens by their ids.
    pub return_tokens_as_token_ids: bool,
    /// Report the prompt's tokens with so many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// `None` = the prompt as it is.
    pub(crate) truncation: Option<Truncation>,
    /// `None` = the client left it open.
    pub seed: Option<u64>,
    /// `None` = rest of the context. 0 only with echo.
    pub max_tokens: Option<u32>,
    /// What the text is held to.
    pub structured: Option<Structured>,
    /// Everything but `seed`, `max_tokens` and `grammar`, which [`Generation::sampling`] fills in, and `bad_words`, which need a
    /// tokenizer.
    pub(crate) template: SamplingParams,
}

/// Which part of a prompt is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Truncation {
    /// `None` = what the context has room for.
    keep: Option<u32>,
    drop_first: bool,
}

/// What a stream carries beside text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StreamOptions {
    pub include_usage: bool,
    pub continuous_usage_stats: bool,
}

impl Generation {
    pub(crate) fn read(fields: &Fields<'_>, bounds: &Bounds) -> Result<Self, ApiError> {
        let n = fields.count("n").unwrap_or(1);
        let best_of = fields.count("best_of").unwrap_or(n);
        let mut template = read_sampling(fields, bounds)?;
        template.beam = read_beam(fields, best_of)?;
        check_choices(n, best_of, &template)?;
        let generation = Self {
            model: fields.text("model").map(str::to_owned),
            request_id: read_request_id(fields, bounds)?,
            cache_salt: read_cache_salt(fields, bounds)?,
            n,
            // A search generates no more than it answers with.
            best_of: if template.beam.is_some() { n } else { best_of },
            stream: read_stream(fields)?,
            bad_words: read_bad_words(fields, bounds)?,
            stop: read_stop(fields, bounds)?,
            include_stop_str_in_output: fields.bool("include_stop_str_in_output").unwrap_or(false),
            skip_special_tokens: fields.bool("skip_special_tokens").unwrap_or(true),
            return_token_ids: fields.bool("return_token_ids").unwrap_or(false),
            return_tokens_as_token_ids: fields.bool("return_tokens_as_token_ids").unwrap_or(false),
            prompt_logprobs: fields.count("prompt_logprobs"),
            truncation: read_truncation(fields)?,
            seed: fields.integer("seed").filter(|seed| *seed != -1).map(|seed| seed as u64),
            max_tokens: fields.count("max_completion_tokens").or(fields.count("max_tokens")),
            structured: structured::read(fields, bounds)?,
            template,
        };
        generation.check_together()?;
        Ok(generation)
    }

    fn check_together(&self) -> Result<(), ApiError> {
        if let (Some(_), Some(structured)) = (self.template.beam, &self.structured) {
            let message = format!("use_beam_search cannot be combined with {}", structured.field);
            return Err(ApiError::bad_field("use_beam_search", message));
        }
        if self.stream.is_some() && self.prompt_logprobs > Some(0) {
            let message = "prompt_logprobs above 0 cannot be streamed; send stream false";
            return Err(ApiError::bad_field("prompt_logprobs", message));
        }
        Ok(())
    }

    /// Whether a prompt may be longer than what is read of it.
    pub fn truncates(&self) -> bool {
        self.truncation.is_some()
    }

    /// The part of a prompt that the client wants to be read.
    ///
    /// # Errors
    /// It wants to keep more tokens than the context has.
    pub fn truncate(&self, prompt: &mut Vec<TokenId>, model: &ModelFacts) -> Result<(), ApiError> {
        let Some(Truncation { keep, drop_first }) = self.truncation else { return Ok(()) };
        if let Some(keep) = keep.filter(|&keep| keep > model.max_model_len) {
            let max = model.max_model_len;
            let message = format!("truncate_prompt_tokens must be at most the context's {max} tokens, got {keep}");
            return Err(ApiError::bad_field("truncate_prompt_tokens", message));
        }
        let room = model.max_model_len.saturating_sub(self.max_tokens.unwrap_or(1)).max(1);
        let keep = keep.unwrap_or(room) as usize;
        match drop_first {
            true => drop(prompt.drain(..prompt.len().saturating_sub(keep))),
            false => prompt.truncate(keep),
        }
        Ok(())
    }

    /// The parameters of one prompt's sequences. `fresh_seed` is used when the client sent no seed.
    ///
    /// # Errors
    /// The prompt does not fit the context, `min_tokens` exceeds the output's limit, or an unknown token is named.
    pub fn sampling(
        &self,
        prompt_tokens: usize,
        model: &ModelFacts,
        fresh_seed: u64,
    ) -> Result<SamplingParams, ApiError> {
        let left = (model.max_model_len as usize).saturating_sub(prompt_tokens) as u32;
        // Even a request for no output needs the prompt itself to fit; one for the rest, or for the prompt's scores, needs room for a token.
        let scored = u32::from(self.template.prompt_logprobs.is_some());
        let asked = self.max_tokens.map_or(1, |asked| asked.max(scored));
        if prompt_tokens > model.max_model_len as usize || asked > left {
            return Err(ApiError::context_length(model.max_model_len, prompt_tokens, self.max_tokens.unwrap_or(0)));
        }
        let max_tokens = self.max_tokens.map_or(left, |_| asked);
        let min_tokens = self.template.min_tokens;
        if min_tokens > max_tokens {
            let message = format!(
                "min_tokens must be at most max_tokens, got min_tokens {min_tokens} with {max_tokens} tokens of output at most"
            );
            return Err(ApiError::bad_field("min_tokens", message));
        }
        if let Some((id, _)) = self.template.logit_bias.iter().find(|(id, _)| *id >= model.vocab_size) {
            return Err(outside_vocabulary("logit_bias", *id, model));
        }
        if let Some(id) = self.template.allowed_token_ids.iter().find(|id| **id >= model.vocab_size) {
            return Err(outside_vocabulary("allowed_token_ids", *id, model));
        }
        let grammar = self.structured.as_ref().map(|structured| structured.grammar.clone());
        Ok(SamplingParams { seed: self.seed.unwrap_or(fresh_seed), max_tokens, grammar, ..self.template.clone() })
    }

    /// Whether the whole output is held to a grammar.
    pub fn is_constrained(&self) -> bool {
        self.structured.is_some()
    }

    /// Refuses to report more of the prompts, which have so many tokens together, than the bound allows.
    pub fn check_scores(&self, prompt_tokens: usize, bounds: &Bounds) -> Result<(), ApiError> {
        let Some(top) = self.template.prompt_logprobs else { return Ok(()) };
        let entries = prompt_tokens.saturating_mul(top as usize + 1).saturating_mul(self.n as usize);
        at_most("prompt_logprobs", "entries (prompt tokens x (alternatives + 1) x n)", entries, bounds.prompt_logprobs)
    }

    /// Alternatives of an echoed prompt's tokens; `None` = they are not reported.
    pub fn echoed_logprobs(&self, echo: bool) -> Option<u32> {
        self.template.logprobs.filter(|_| echo)
    }

    /// Whether nothing is to be generated, only the prompt given back.
    pub fn prompt_only(&self) -> bool {
        self.max_tokens == Some(0)
    }

    /// Whether tokens' logprobs go into the answer.
    pub fn wants_logprobs(&self) -> bool {
        self.template.logprobs.is_some()
    }
}

pub(crate) fn outside_vocabulary(param: &str, id: TokenId, model: &ModelFacts) -> ApiError {
    ApiError::bad_field(
        param,
        format!("{param}: token id {id} is outside the vocabulary of {} tokens", model.vocab_size),
    )
}

/// The search that is asked for, of this width.
fn read_beam(fields: &Fields<'_>, width: u32) -> Result<Option<BeamParams>, ApiError> {
    let length_penalty = fields.number("length_penalty").unwrap_or(1.0) as f32;
    let early_stopping = match fields.get("early_stopping") {
        None | Some(Value::Bool(false)) => EarlyStopping::No,
        Some(Value::Bool(true)) => EarlyStopping::Yes,
        Some(value) if value == "never" => EarlyStopping::Never,
        Some(value) => return Err(wrong("early_stopping", "true, false or \"never\"", value)),
    };
    if fields.bool("use_beam_search").unwrap_or(false) {
        return Ok(Some(BeamParams { width, length_penalty, early_stopping }));
    }
    let needs = |name: &str| Err(ApiError::bad_field(name, format!("{name} needs use_beam_search to be true")));
    match (length_penalty == 1.0, early_stopping) {
        (false, _) => needs("length_penalty"),
        (true, EarlyStopping::Yes | EarlyStopping::Never) => needs("early_stopping"),
        (true, EarlyStopping::No) => Ok(None),
    }
}

/// Rules between the number of choices and the way they are found.
fn check_choices(n: u32, best_of: u32, template: &SamplingParams) -> Result<(), ApiError> {
    let refuse = |name: &str, message: String| Err(ApiError::bad_field(name, message));
    if best_of < n {
        return refuse("best_of", format!("best_of must be at least n, got best_of {best_of} with n {n}"));
    }
    let greedy = template.temperature == 0.0;
    if template.beam.is_none() && greedy && best_of > 1 {
        let name = if n > 1 { "n" } else { "best_of" };
        return refuse(name, format!("{name} must be 1 with greedy sampling (temperature 0), got {}", n.max(best_of)));
    }
    if template.beam.is_none() {
        return Ok(());
    }
    if best_of < 2 {
        return refuse("use_beam_search", format!("use_beam_search needs best_of (or n) of at least 2, got {best_of}"));
    }
    if !greedy {
        let found = template.temperature;
        return refuse("temperature", format!("temperature must be 0 with use_beam_search, got {found}"));
    }
    if template.top_p < 1.0 {
        return refuse("top_p", format!("top_p must be 1 with use_beam_search, got {}", template.top_p));
    }
    match template.top_k {
        0 => Ok(()),
        top_k => refuse("top_k", format!("top_k must be off (-1 or 0) with use_beam_search, got {top_k}")),
    }
}

fn read_sampling(fields: &Fields<'_>, bounds: &Bounds) -> Result<SamplingParams, ApiError> {
    let number = |name, default: f64| fields.number(name).unwrap_or(default);
    let temperature = number("temperature", 1.0);
    let temperature = if temperature > 0.0 { temperature.max(TEMPERATURE_MIN) } else { 0.0 };
    Ok(SamplingParams {
        temperature: temperature as f32,
        top_p: (number("top_p", 1.0) as f32).max(f32::MIN_POSITIVE),
        top_k: fields.count("top_k").unwrap_or(0),
        min_p: number("min_p", 0.0) as f32,
        presence_penalty: number("presence_penalty", 0.0) as f32,
        frequency_penalty: number("frequency_penalty", 0.0) as f32,
        repetition_penalty: number("repetition_penalty", 1.0) as f32,
        logit_bias: read_logit_bias(fields, bounds)?,
        allowed_token_ids: read_allowed_token_ids(fields, bounds)?,
        bad_words: Vec::new(),
        beam: None,
        stop_token_ids: read_stop_token_ids(fields, bounds)?,
        ignore_eos: fields.bool("ignore_eos").unwrap_or(false),
        min_tokens: fields.count("min_tokens").unwrap_or(0),
        priority: fields.integer("priority").and_then(|priority| i32::try_from(priority).ok()).unwrap_or(0),
        logprobs: None,
        grammar: None,
        prompt_logprobs: fields.count("prompt_logprobs"),
        seed: 0,
        max_tokens: 0,
    })
}

fn read_logit_bias(fields: &Fields<'_>, bounds: &Bounds) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(value) = fields.get("logit_bias") else { return Ok(Vec::new()) };
    let Value::Object(entries) = value else {
        return Err(wrong("logit_bias", "an object from token id to number", value));
    };
    at_most("logit_bias", "entries", entries.len(), bounds.logit_bias)?;
    entries.iter().map(|(key, bias)| read_bias(key, bias)).collect()
}

fn read_bias(key: &str, bias: &Value) -> Result<(TokenId, f32), ApiError> {
    let id = key.parse().map_err(|_| {
        ApiError::bad_field(
            "logit_bias",
            format!("logit_bias: keys must be token ids written as strings, got {:?}", Shown::text(key)),
        )
    })?;
    let bias = bias.as_f64().ok_or_else(|| {
        ApiError::bad_field("logit_bias", format!("logit_bias[\"{id}\"] must be a number, got {}", Shown(bias)))
    })?;
    Ok((id, bias.clamp(-LOGIT_BIAS_MAX, LOGIT_BIAS_MAX) as f32))
}

fn read_stop_token_ids(fields: &Fields<'_>, bounds: &Bounds) -> Result<Vec<TokenId>, ApiError> {
    let items = fields.list("stop_token_ids", bounds.stop_token_ids)?.unwrap_or_default();
    items.iter().map(|item| token_id("stop_token_ids", item)).collect()
}

fn read_allowed_token_ids(fields: &Fields<'_>, bounds: &Bounds) -> Result<Vec<TokenId>, ApiError> {
    const NAME: &str = "allowed_token_ids";
    let Some(items) = fields.list(NAME, bounds.allowed_token_ids)? else { return Ok(Vec::new()) };
    if items.is_empty() {
        return Err(ApiError::bad_field(
            NAME,
            "allowed_token_ids must not be empty; leave it out to allow every token",
        ));
    }
    items.iter().map(|item| token_id(NAME, item)).collect()
}

fn read_bad_words(fields: &Fields<'_>, bounds: &Bounds) -> Result<Vec<String>, ApiError> {
    const NAME: &str = "bad_words";
    let items = fields.list(NAME, bounds.bad_words)?.unwrap_or_default();
    let word = |item: &Value| {
        let Value::String(word) = item else { return Err(wrong(NAME, "a list of strings", item)) };
        if word.trim().is_empty() {
            return Err(ApiError::bad_field(NAME, "bad_words must not hold an empty string"));
        }
        at_most(NAME, "bytes in one string", word.len(), bounds.bad_word_bytes)?;
        Ok(word.clone())
    };
    items.iter().map(word).collect()
}

fn read_stop(fields: &Fields<'_>, bounds: &Bounds) -> Result<Vec<String>, ApiError> {
    let one;
    let items: &[Value] = match fields.get("stop") {
        None => &[],
        Some(Value::Array(items)) => items,
        Some(value @ Value::String(_)) => {
            one = [value.clone()];
            &one
        }
        Some(value) => return Err(wrong("stop", "a string or a list of strings", value)),
    };
    at_most("stop", "entries", items.len(), bounds.stop)?;
    items.iter().map(|item| read_stop_string(item, bounds)).collect()
}

fn read_stop_string(item: &Value, bounds: &Bounds) -> Result<String, ApiError> {
    let Value::String(text) = item else { return Err(wrong("stop", "a string or a list of strings", item)) };
    if text.is_empty() {
        return Err(ApiError::bad_field("stop", "stop must not hold an empty string"));
    }
    at_most("stop", "bytes in one string", text.len(), bounds.stop_bytes)?;
    Ok(text.clone())
}

fn read_stream(fields: &Fields<'_>) -> Result<Option<StreamOptions>, ApiError> {
    let stream = fields.bool("stream").unwrap_or(false);
    let Some(options) = fields.get("stream_options") else { return Ok(stream.then(StreamOptions::default)) };
    let Value::Object(entries) = options else { return Err(wrong("stream_options", "an object", options)) };
    if !stream {
        return Err(ApiError::bad_field("stream_options", "stream_options needs stream to be true"));
    }
    let flag = |name: &str| match entries.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(value) => Err(wrong(&format!("stream_options.{name}"), "true or false", value)),
    };
    Ok(Some(StreamOptions {
        include_usage: flag("include_usage")?,
        continuous_usage_stats: flag("continuous_usage_stats")?,
    }))
}

fn read_truncation(fields: &Fields<'_>) -> Result<Option<Truncation>, ApiError> {
    let drop_first = match fields.get("truncation_side").map(|side| (side, side.as_str())) {
        None | Some((_, Some("left"))) => true,
        Some((_, Some("right"))) => false,
        Some((side, _)) => return Err(wrong("truncation_side", "left or right", side)),
    };
    match fields.integer("truncate_prompt_tokens") {
        Some(0) => {
            Err(ApiError::bad_field("truncate_prompt_tokens", "truncate_prompt_tokens must be -1 or at least 1"))
        }
        Some(keep) => Ok(Some(Truncation { keep: u32::try_from(keep).ok(), drop_first })),
        None => Ok(None),
    }
}

fn read_cache_salt(fields: &Fields<'_>, bounds: &Bounds) -> Result<Option<String>, ApiError> {
    let Some(value) = fields.get("cache_salt") else { return Ok(None) };
    let salt = check_text("cache_salt", value, bounds.cache_salt_chars)?;
    if salt.is_empty() || salt.contains(['@', '/', '\\', '\0']) {
        return Err(ApiError::bad_field(
            "cache_salt",
            "cache_salt must not be empty and must not contain '@', '/', '\\' or NUL",
        ));
    }
    Ok(Some(salt.to_owned()))
}

fn read_request_id(fields: &Fields<'_>, bounds: &Bounds) -> Result<Option<String>, ApiError> {
    let Some(value) = fields.get("request_id") else { return Ok(None) };
    let id = check_text("request_id", value, bounds.name_chars)?;
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ApiError::bad_field(
            "request_id",
            "request_id must not be empty and must be printable ASCII without spaces",
        ));
    }
    Ok(Some(id.to_owned()))
}
