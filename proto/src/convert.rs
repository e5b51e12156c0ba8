//! Wire <-> types. What comes from the wire is bounded here; inner code never sees a wire type of the control plane's nouns.

use std::sync::Arc;

use bytes::Bytes;
use types::{
    BeamParams, EarlyStopping, FinishReason, GenerateSpec, Grammar, Limits, ModelIdentity, Pooling, RequestId,
    RequestKey, SampledToken, SamplingParams, TokenId, TokenScore,
};

use crate::control as wire;
use crate::control::grammar::Kind;

/// A message that a peer of our own version cannot have sent.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum WireError {
    #[error("message lacks {0}")]
    Missing(&'static str),
    #[error("{field} is {found}, expected {expected}")]
    OutOfRange { field: &'static str, found: String, expected: &'static str },
}

impl From<&RequestKey> for wire::Key {
    fn from(key: &RequestKey) -> Self {
        wire::Key { request_id: key.request.to_string(), epoch: key.epoch }
    }
}

/// The attempt a message speaks of.
pub fn request_key(key: Option<wire::Key>) -> Result<RequestKey, WireError> {
    let key = key.ok_or(WireError::Missing("key"))?;
    Ok(RequestKey { request: RequestId::from(key.request_id), epoch: key.epoch })
}

impl From<&SamplingParams> for wire::Sampling {
    fn from(p: &SamplingParams) -> Self {
        wire::Sampling {
            temperature: p.temperature,
            top_p: p.top_p,
            top_k: p.top_k,
            min_p: p.min_p,
            seed: p.seed,
            presence_penalty: p.presence_penalty,
            frequency_penalty: p.frequency_penalty,
            repetition_penalty: p.repetition_penalty,
            logit_bias: p.logit_bias.iter().map(|&(token, bias)| wire::LogitBias { token, bias }).collect(),
            stop_token_ids: p.stop_token_ids.clone(),
            ignore_eos: p.ignore_eos,
            min_tokens: p.min_tokens,
            max_tokens: p.max_tokens,
            logprobs: p.logprobs,
            grammar: p.grammar.as_ref().map(Into::into),
            allowed_token_ids: p.allowed_token_ids.clone(),
            bad_words: p.bad_words.iter().map(|tokens| wire::TokenSequence { tokens: tokens.clone() }).collect(),
            priority: p.priority,
            prompt_logprobs: p.prompt_logprobs,
            beam: p.beam.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<wire::Sampling> for SamplingParams {
    type Error = WireError;

    fn try_from(p: wire::Sampling) -> Result<Self, WireError> {
        Ok(SamplingParams {
            temperature: p.temperature,
            top_p: p.top_p,
            top_k: p.top_k,
            min_p: p.min_p,
            seed: p.seed,
            presence_penalty: p.presence_penalty,
            frequency_penalty: p.frequency_penalty,
            repetition_penalty: p.repetition_penalty,
            logit_bias: p.logit_bias.iter().map(|b| (b.token, b.bias)).collect(),
            stop_token_ids: p.stop_token_ids,
            ignore_eos: p.ignore_eos,
            min_tokens: p.min_tokens,
            max_tokens: p.max_tokens,
            logprobs: p.logprobs,
            grammar: p.grammar.map(Grammar::try_from).transpose()?,
            allowed_token_ids: p.allowed_token_ids,
            bad_words: p.bad_words.into_iter().map(|word| word.tokens).filter(|tokens| !tokens.is_empty()).collect(),
            priority: p.priority,
            prompt_logprobs: p.prompt_logprobs,
            beam: p.beam.map(BeamParams::try_from).transpose()?,
        })
    }
}

impl From<&Grammar> for wire::Grammar {
    fn from(grammar: &Grammar) -> Self {
        let kind = match grammar {
            Grammar::JsonObject => Kind::JsonObject(wire::grammar::JsonObject {}),
            Grammar::JsonSchema(schema) => Kind::JsonSchema(schema.to_string()),
            Grammar::Regex(regex) => Kind::Regex(regex.to_string()),
            Grammar::Choice(texts) => {
                Kind::Choice(wire::grammar::Choice { texts: texts.iter().map(ToString::to_string).collect() })
            }
            Grammar::Lark(lark) => Kind::Lark(lark.to_string()),
        };
        wire::Grammar { kind: Some(kind) }
    }
}

impl TryFrom<wire::Grammar> for Grammar {
    type Error = WireError;

    fn try_from(grammar: wire::Grammar) -> Result<Self, WireError> {
        Ok(match grammar.kind.ok_or(WireError::Missing("spec.sampling.grammar.kind"))? {
            Kind::JsonObject(_) => Grammar::JsonObject,
            Kind::JsonSchema(schema) => Grammar::JsonSchema(schema.into()),
            Kind::Regex(regex) => Grammar::Regex(regex.into()),
            Kind::Choice(choice) => Grammar::Choice(choice.texts.into_iter().map(Arc::from).collect()),
            Kind::Lark(lark) => Grammar::Lark(lark.into()),
        })
    }
}

impl From<&GenerateSpec> for wire::Spec {
    fn from(spec: &GenerateSpec) -> Self {
        spec_of(spec, pack(&spec.prompt))
    }
}

/// The spec on the wire, its prompt having been [packed](pack) before.
pub fn spec_of(spec: &GenerateSpec, prompt: Bytes) -> wire::Spec {
    wire::Spec {
        prompt,
        output: spec.output.clone(),
        first_choice: spec.choices.start,
        choices: spec.choices.end - spec.choices.start,
        sampling: Some((&spec.sampling).into()),
        cache_salt: spec.cache_salt.clone().into(),
    }
}

/// Token ids as packed varints: seven bits a byte, the lowest first, the highest bit set where more follow.
pub fn pack(tokens: &[TokenId]) -> Bytes {
    let mut packed = Vec::with_capacity(3 * tokens.len());
    for &token in tokens {
        let [first, second, third] = [token, token >> 7, token >> 14].map(|rest| rest as u8 | 0x80);
        match token {
            0..0x80 => packed.push(token as u8),
            0x80..0x4000 => packed.extend_from_slice(&[first, second & 0x7f]),
            0x4000..0x20_0000 => packed.extend_from_slice(&[first, second, third & 0x7f]),
            // More ids than any vocabulary has.
            _ => {
                packed.extend_from_slice(&[first, second, third, (token >> 21) as u8 | 0x80]);
                packed.push((token >> 28) as u8);
            }
        }
    }
    packed.into()
}

/// What was packed; as many tokens as bytes at most.
fn unpack(packed: &[u8]) -> Result<Arc<[TokenId]>, WireError> {
    let wrong = |found: &str| WireError::OutOfRange {
        field: "spec.prompt",
        found: found.to_owned(),
        expected: "varints of 32 bits",
    };
    let (mut tokens, mut token, mut bits) = (Vec::with_capacity(packed.len() / 2), 0u32, 0);
    for &byte in packed {
        let part = u32::from(byte & 0x7f);
        if bits > 28 || part << bits >> bits != part {
            return Err(wrong("a larger number"));
        }
        token |= part << bits;
        bits += 7;
        if byte & 0x80 == 0 {
            tokens.push(token);
            (token, bits) = (0, 0);
        }
    }
    if bits == 0 { Ok(tokens.into()) } else { Err(wrong("half a number")) }
}

/// Choices of one request, over all processes; the scheduler's own bound on `n` is lower.
const CHOICES_MAX: u32 = 128;

/// What to compute, checked for what would break a worker: no prompt, no or too many choices, several choices with output.
pub fn generate_spec(spec: Option<wire::Spec>) -> Result<GenerateSpec, WireError> {
    let spec = spec.ok_or(WireError::Missing("spec"))?;
    let sampling = spec.sampling.ok_or(WireError::Missing("spec.sampling"))?;
    if spec.prompt.is_empty() {
        return Err(WireError::Missing("spec.prompt"));
    }
    let out_of_range =
        |field, found: u32, expected| WireError::OutOfRange { field, found: found.to_string(), expected };
    if spec.choices == 0 || spec.choices > CHOICES_MAX {
        return Err(out_of_range("spec.choices", spec.choices, "1 to 128"));
    }
    if spec.choices > 1 && !spec.output.is_empty() {
        return Err(out_of_range("spec.choices", spec.choices, "1 when output is not empty"));
    }
    if sampling.beam.is_some() && !spec.output.is_empty() {
        let found = format!("{} tokens", spec.output.len());
        return Err(WireError::OutOfRange { field: "spec.output", found, expected: "none in a beam search" });
    }
    let end = spec.first_choice.checked_add(spec.choices).filter(|&end| end <= CHOICES_MAX);
    let end = end.ok_or_else(|| out_of_range("spec.first_choice", spec.first_choice, "0 to 127"))?;
    Ok(GenerateSpec {
        prompt: unpack(&spec.prompt)?,
        output: spec.output,
        choices: spec.first_choice..end,
        sampling: sampling.try_into()?,
        cache_salt: spec.cache_salt.to_vec(),
    })
}

impl From<&SampledToken> for wire::Token {
    fn from(token: &SampledToken) -> Self {
        let finish = match token.finish {
            None => wire::Finish::None,
            Some(FinishReason::Stop) => wire::Finish::Stop,
            Some(FinishReason::Length) => wire::Finish::Length,
        };
        wire::Token {
            choice: token.choice,
            id: token.id,
            position: token.position,
            logprob: token.logprob,
            top: alternatives(&token.top),
            finish: finish.into(),
        }
    }
}

impl From<wire::Token> for SampledToken {
    fn from(token: wire::Token) -> Self {
        let finish = match token.finish() {
            wire::Finish::None => None,
            wire::Finish::Stop => Some(FinishReason::Stop),
            wire::Finish::Length => Some(FinishReason::Length),
        };
        SampledToken {
            choice: token.choice,
            id: token.id,
            position: token.position,
            logprob: token.logprob,
            top: chances(&token.top),
            finish,
        }
    }
}

impl From<Pooling> for wire::Pooling {
    fn from(pooling: Pooling) -> Self {
        match pooling {
            Pooling::Last => wire::Pooling::Last,
            Pooling::Mean => wire::Pooling::Mean,
        }
    }
}

impl From<wire::Pooling> for Pooling {
    fn from(pooling: wire::Pooling) -> Self {
        match pooling {
            wire::Pooling::Last => Pooling::Last,
            wire::Pooling::Mean => Pooling::Mean,
        }
    }
}

impl From<&BeamParams> for wire::Beam {
    fn from(beam: &BeamParams) -> Self {
        let early_stopping = match beam.early_stopping {
            EarlyStopping::No => wire::EarlyStopping::No,
            EarlyStopping::Yes => wire::EarlyStopping::Yes,
            EarlyStopping::Never => wire::EarlyStopping::Never,
        };
        wire::Beam { width: beam.width, length_penalty: beam.length_penalty, early_stopping: early_stopping.into() }
    }
}

impl TryFrom<wire::Beam> for BeamParams {
    type Error = WireError;

    fn try_from(beam: wire::Beam) -> Result<Self, WireError> {
        if beam.width == 0 || beam.width > CHOICES_MAX {
            let found = beam.width.to_string();
            return Err(WireError::OutOfRange { field: "spec.sampling.beam.width", found, expected: "1 to 128" });
        }
        let early_stopping = match beam.early_stopping() {
            wire::EarlyStopping::No => EarlyStopping::No,
            wire::EarlyStopping::Yes => EarlyStopping::Yes,
            wire::EarlyStopping::Never => EarlyStopping::Never,
        };
        Ok(BeamParams { width: beam.width, length_penalty: beam.length_penalty, early_stopping })
    }
}

impl From<&TokenScore> for wire::TokenScore {
    fn from(score: &TokenScore) -> Self {
        wire::TokenScore { logprob: score.logprob, rank: score.rank, top: alternatives(&score.top) }
    }
}

impl From<wire::TokenScore> for TokenScore {
    fn from(score: wire::TokenScore) -> Self {
        TokenScore { logprob: score.logprob, rank: score.rank, top: chances(&score.top) }
    }
}

fn alternatives(top: &[(TokenId, f32)]) -> Vec<wire::Alternative> {
    top.iter().map(|&(id, logprob)| wire::Alternative { id, logprob }).collect()
}

fn chances(top: &[wire::Alternative]) -> Vec<(TokenId, f32)> {
    top.iter().map(|alternative| (alternative.id, alternative.logprob)).collect()
}

impl From<&ModelIdentity> for wire::ModelIdentity {
    fn from(m: &ModelIdentity) -> Self {
        wire::ModelIdentity {
            digest: m.digest.clone(),
            architecture: m.architecture.clone(),
            dtype: m.dtype.clone(),
            kv_dtype: m.kv_dtype.clone(),
            layers: m.layers,
            heads: m.heads,
            kv_heads: m.kv_heads,
            head_dim: m.head_dim,
            vocab_size: m.vocab_size,
            rope: m.rope.clone(),
            sliding_window: m.sliding_window,
            max_model_len: m.max_model_len,
        }
    }
}

impl From<wire::ModelIdentity> for ModelIdentity {
    fn from(m: wire::ModelIdentity) -> Self {
        ModelIdentity {
            digest: m.digest,
            architecture: m.architecture,
            dtype: m.dtype,
            kv_dtype: m.kv_dtype,
            layers: m.layers,
            heads: m.heads,
            kv_heads: m.kv_heads,
            head_dim: m.head_dim,
            vocab_size: m.vocab_size,
            rope: m.rope,
            sliding_window: m.sliding_window,
            max_model_len: m.max_model_len,
        }
    }
}

impl From<&Limits> for wire::Limits {
    fn from(l: &Limits) -> Self {
        wire::Limits {
            block_size: l.block_size,
            blocks_total: l.blocks_total,
            tensor_parallel_size: l.tensor_parallel_size,
            max_num_seqs: l.max_num_seqs,
            max_num_batched_tokens: l.max_num_batched_tokens,
            instructions: l.instructions.clone(),
        }
    }
}

impl From<wire::Limits> for Limits {
    fn from(l: wire::Limits) -> Self {
        Limits {
            block_size: l.block_size,
            blocks_total: l.blocks_total,
            tensor_parallel_size: l.tensor_parallel_size,
            max_num_seqs: l.max_num_seqs,
            max_num_batched_tokens: l.max_num_batched_tokens,
            instructions: l.instructions,
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn spec() -> GenerateSpec {
        GenerateSpec {
            prompt: vec![1, 2, 3].into(),
            output: vec![],
            choices: 0..2,
            sampling: SamplingParams {
                temperature: 0.5,
                logit_bias: vec![(7, -1.5)],
                stop_token_ids: vec![9],
                logprobs: Some(0),
                allowed_token_ids: vec![3, 4],
                bad_words: vec![vec![5], vec![6, 7]],
                priority: -2,
                prompt_logprobs: Some(0),
                beam: Some(BeamParams { width: 3, length_penalty: 0.5, early_stopping: EarlyStopping::Never }),
                ..SamplingParams::default()
            },
            cache_salt: vec![1],
        }
    }

    #[test]
    fn a_spec_survives_the_wire() {
        assert_eq!(generate_spec(Some((&spec()).into())), Ok(spec()));
    }

    #[test]
    fn a_packed_prompt_is_what_repeated_numbers_are_on_the_wire() {
        let tokens = vec![0, 1, 127, 128, 16_383, 16_384, 151_935, (1 << 21) - 1, 1 << 28, u32::MAX];
        let repeated = wire::TokenSequence { tokens: tokens.clone() }.encode_to_vec();
        let packed = wire::Spec { prompt: pack(&tokens), ..Default::default() }.encode_to_vec();
        assert_eq!(packed, repeated);
        assert_eq!(unpack(&pack(&tokens)).as_deref(), Ok(&tokens[..]));
        let packed = pack(&tokens);
        let shared = [0, 1].map(|_| spec_of(&spec(), packed.clone()).prompt.as_ptr());
        assert_eq!(shared, [packed.as_ptr(); 2], "no message copies it");
        for (packed, found) in [
            (&[0x80][..], "half a number"),
            (&[0xff; 5], "a larger number"),
            (&[0x80, 0x80, 0x80, 0x80, 0x10], "a larger number"),
        ] {
            let expected = "varints of 32 bits";
            assert_eq!(
                unpack(packed),
                Err(WireError::OutOfRange { field: "spec.prompt", found: found.into(), expected })
            );
        }
    }

    #[test]
    fn every_grammar_survives_the_wire_and_an_unknown_one_is_refused() {
        let choice = Grammar::Choice([Arc::from("a"), Arc::from("b")].into());
        let texts = [Grammar::JsonSchema("{}".into()), Grammar::Regex("a*".into()), Grammar::Lark("start: /a/".into())];
        for grammar in [Grammar::JsonObject, choice].into_iter().chain(texts) {
            assert_eq!(Grammar::try_from(wire::Grammar::from(&grammar)), Ok(grammar));
        }
        let mut wire: wire::Spec = (&spec()).into();
        wire.sampling.as_mut().unwrap().grammar = Some(wire::Grammar { kind: None });
        assert_eq!(generate_spec(Some(wire)), Err(WireError::Missing("spec.sampling.grammar.kind")));
    }

    #[test]
    fn choices_with_output_are_refused() {
        let wire = wire::Spec { output: vec![4], ..(&spec()).into() };
        assert_eq!(
            generate_spec(Some(wire)).unwrap_err().to_string(),
            "spec.choices is 2, expected 1 when output is not empty"
        );
    }

    #[test]
    fn a_token_survives_the_wire() {
        let token = SampledToken {
            choice: 1,
            id: 5,
            position: 3,
            logprob: -0.25,
            top: vec![(5, -0.25)],
            finish: Some(FinishReason::Length),
        };
        assert_eq!(SampledToken::from(wire::Token::from(&token)), token);
        let score = TokenScore { logprob: -0.5, rank: 3, top: vec![(5, -0.25)] };
        assert_eq!(TokenScore::from(wire::TokenScore::from(&score)), score);
    }
}
