//! Which tokens may come next.

use crate::TokenId;

/// A set of token ids, and whether the text may end here. Ids beyond the last word are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSet {
    /// Bit `id % 32` of word `id / 32`.
    pub words: Vec<u32>,
    pub end: bool,
}

impl TokenSet {
    pub fn new(ids: Vec<TokenId>, end: bool) -> Self {
        let mut set = Self { words: Vec::new(), end };
        ids.into_iter().for_each(|id| set.insert(id));
        set
    }

    pub fn contains(&self, id: TokenId) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word & bit(id) != 0)
    }

    pub fn insert(&mut self, id: TokenId) {
        let word = id as usize / 32;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= bit(id);
    }

    pub fn remove(&mut self, id: TokenId) {
        if let Some(word) = self.words.get_mut(id as usize / 32) {
            *word &= !bit(id);
        }
    }

    /// Whether no token is in it; the text may still end.
    pub fn has_no_token(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }
}

fn bit(id: TokenId) -> u32 {
    1 << (id % 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_in_and_out() {
        let mut set = TokenSet { words: vec![1 << 3, 1 << 31], end: false };
        let held = |set: &TokenSet| (0..100).filter(|id| set.contains(*id)).collect::<Vec<_>>();
        assert_eq!(held(&set), [3, 63]);
        set.remove(3);
        set.remove(1000);
        set.insert(97);
        assert_eq!(held(&set), [63, 97]);
        assert!(!set.has_no_token());
        set.remove(63);
        set.remove(97);
        assert!(set.has_no_token());
    }
}
