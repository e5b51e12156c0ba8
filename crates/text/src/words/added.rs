//! Finds a tokenizer's added tokens in a text: leftmost, and of those the longest.

use std::collections::HashSet;

use tokenizers::AddedToken;
use types::TokenId;

pub(super) struct Added {
    /// By first byte; longest first.
    starting: Box<[Vec<Token>; 256]>,
    /// Whether any begins with this byte.
    begins: [bool; 256],
}

type Token = (Vec<u8>, TokenId);

impl Added {
    /// `None`: they are not simply looked for as they stand.
    pub(super) fn new<'a>(tokens: impl IntoIterator<Item = (&'a TokenId, &'a AddedToken)>) -> Option<Self> {
        let mut added = Self { starting: Box::new([const { Vec::new() }; 256]), begins: [false; 256] };
        let mut seen = HashSet::new();
        for (&id, token) in tokens {
            let plain = !token.single_word && !token.lstrip && !token.rstrip && !token.normalized;
            if !plain || !seen.insert(token.content.as_str()) {
                return None;
            }
            let content = token.content.as_bytes();
            let first = usize::from(*content.first()?);
            added.begins[first] = true;
            added.starting[first].push((content.to_vec(), id));
        }
        added
            .starting
            .iter_mut()
            .for_each(|tokens| tokens.sort_by_key(|(content, _)| std::cmp::Reverse(content.len())));
        Some(added)
    }

    /// The first one at or behind `from`: start, end and id.
    pub(super) fn find(&self, text: &[u8], from: usize) -> Option<(usize, usize, TokenId)> {
        let starts = text[from..].iter().enumerate().filter(|(_, byte)| self.begins[usize::from(**byte)]);
        starts.map(|(at, &byte)| (from + at, byte)).find_map(|(at, byte)| {
            let tokens = &self.starting[usize::from(byte)];
            let (content, id) = tokens.iter().find(|(content, _)| text[at..].starts_with(content))?;
            Some((at, at + content.len(), *id))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn the_leftmost_and_longest_is_found() {
        let token = |text: &str| AddedToken::from(text, true).normalized(false);
        let tokens = HashMap::from([(1, token("<a>")), (2, token("<a>b")), (3, token("é")), (4, token("a"))]);
        let added = Added::new(&tokens).unwrap();
        let text = "<b<a>b é<a>".as_bytes();
        let mut found = Vec::new();
        while let Some((start, end, id)) = added.find(text, found.last().map_or(0, |&(_, end, _)| end)) {
            found.push((start, end, id));
        }
        assert_eq!(found, [(2, 6, 2), (7, 9, 3), (9, 12, 1)]);
        for other in [token("x").lstrip(true), token("x").rstrip(true), token("x").single_word(true), token("a")] {
            assert!(Added::new(tokens.iter().chain([(&9, &other)])).is_none(), "{other:?}");
        }
    }
}
