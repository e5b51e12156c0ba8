//! The vocabulary as the automata walk it: a trie of every token's bytes, with one more token for the end of the text.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};
use types::TokenId;

use super::GrammarError;
use crate::Tokenizer;

/// Longer tokens (runs of spaces, mostly) are left out: the trie cannot hold them, and shorter ones spell the same text.
const TOKEN_BYTES_MAX: usize = 512;
/// Most states that a sequence's lexer may make, of some kilobytes each: it bounds what a grammar holds while it runs.
const LEXER_STATES_MAX: usize = 16_384;
/// What one token may cost in the lexer: some 7 ms, ten times what a large schema needs. Others wait for it in the same step.
const STEP_LEXER_FUEL: u64 = 100_000;
/// Ways in which an ambiguous text may be read at once; the cost of a token grows with its square.
const ITEMS_MAX: usize = 500;

/// The id that stands for the end of the text: none of the model's, whose own ends are the engine's affair.
pub(super) fn end_token(tokenizer: &Tokenizer) -> TokenId {
    tokenizer.vocab_size() as TokenId
}

pub(super) fn factory(tokenizer: &Tokenizer) -> Result<ParserFactory, GrammarError> {
    let end = end_token(tokenizer);
    let mut words: Vec<Vec<u8>> = (0..end).map(|id| word(tokenizer, id)).collect();
    words.push(special("<|end of text|>"));
    let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &words);
    // Nothing is forced token by token, so nobody asks how this environment would cut a text.
    let environment: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = SlicedBiasComputer::general_slices();
    let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
    let mut factory = factory.map_err(|error| GrammarError::Unavailable(error.to_string()))?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.verbose_errors = false;
    limits.max_lexer_states = LEXER_STATES_MAX;
    limits.step_lexer_fuel = STEP_LEXER_FUEL;
    limits.max_items_in_row = ITEMS_MAX;
    Ok(factory)
}

/// A token's bytes; special ones are marked, so that no text spells them.
fn word(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    let bytes = match tokenizer.is_special(id) {
        true => special(&tokenizer.token_text(id)),
        false => tokenizer.token_bytes(id),
    };
    if bytes.len() > TOKEN_BYTES_MAX { Vec::new() } else { bytes }
}

fn special(name: &str) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
}
