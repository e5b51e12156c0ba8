//! Words with their tokens, found without waiting for anyone.
//!
//! A table of a fixed size that fills up once: what is in it stays, since the words that come first are mostly those that come often.

use std::sync::OnceLock;

use types::TokenId;
use xxhash_rust::xxh3::xxh3_64;

/// Places: about as many words as a large vocabulary has, in 4 MiB.
const PLACES: usize = 1 << 16;
/// Places that a word may be in, one beside the other.
const WAYS: usize = 4;
/// Longer words, and those of more tokens, are seldom; with these an entry fills a cache line.
const BYTES_MAX: usize = 28;
const TOKENS_MAX: usize = 7;

pub(super) struct Known(Box<[OnceLock<Word>]>);

struct Word {
    len: u8,
    count: u8,
    text: [u8; BYTES_MAX],
    ids: [TokenId; TOKENS_MAX],
}

impl Default for Known {
    fn default() -> Self {
        Self((0..PLACES).map(|_| OnceLock::new()).collect())
    }
}

impl Known {
    pub(super) fn get(&self, word: &[u8]) -> Option<&[TokenId]> {
        if word.len() > BYTES_MAX {
            return None;
        }
        // Where one place is empty the next are, too.
        let words = self.places(word).map_while(OnceLock::get);
        let found = words.into_iter().find(|known| known.text[..usize::from(known.len)] == *word)?;
        Some(&found.ids[..usize::from(found.count)])
    }

    /// Remembers a word if there is room.
    pub(super) fn put(&self, word: &[u8], ids: &[TokenId]) {
        let mut left = Word::new(word, ids);
        for place in self.places(word) {
            left = left.and_then(|word| place.set(word).err());
        }
    }

    fn places(&self, word: &[u8]) -> impl Iterator<Item = &OnceLock<Word>> {
        let first = xxh3_64(word) as usize;
        (0..WAYS).map(move |way| &self.0[(first ^ way) % PLACES])
    }
}

impl Word {
    /// `None`: too large to be remembered.
    fn new(word: &[u8], ids: &[TokenId]) -> Option<Self> {
        let mut new = Self { len: 0, count: 0, text: [0; BYTES_MAX], ids: [0; TOKENS_MAX] };
        new.text.get_mut(..word.len())?.copy_from_slice(word);
        new.ids.get_mut(..ids.len())?.copy_from_slice(ids);
        (new.len, new.count) = (u8::try_from(word.len()).ok()?, u8::try_from(ids.len()).ok()?);
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_cache_line() {
        assert_eq!(size_of::<OnceLock<Word>>(), 64);
    }

    #[test]
    fn words_stay_as_long_as_there_is_room() {
        let known = Known::default();
        assert_eq!(known.get(b"a"), None);
        for (word, ids) in [(&b"a"[..], &[1, 2][..]), (b"b", &[]), (b"a", &[3])] {
            known.put(word, ids);
        }
        assert_eq!((known.get(b"a"), known.get(b"b")), (Some(&[1, 2][..]), Some(&[][..])));
        known.put(&[b'x'; 29], &[1]);
        known.put(b"y", &[1; 8]);
        assert_eq!((known.get(&[b'x'; 29]), known.get(b"y")), (None, None));
        let words: Vec<String> = (0..200_000).map(|number| number.to_string()).collect();
        words.iter().zip(0..).for_each(|(word, id)| known.put(word.as_bytes(), &[id]));
        let found = words.iter().zip(0..).filter(|(word, _)| known.get(word.as_bytes()).is_some());
        let found: Vec<_> = found.collect();
        assert!(found.len() > PLACES * 9 / 10 && found.len() <= PLACES, "{}", found.len());
        assert!(found.iter().all(|(word, id)| known.get(word.as_bytes()) == Some(&[*id][..])));
    }
}
