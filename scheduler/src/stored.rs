//! Answers of `/v1/responses` that clients may read again and go on from, for a while.
//!
//! Bounded in number, bytes and age: the oldest go first. Every API key sees its own answers only. They are gone with the process.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use openai::ChatMessage;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

/// Whose answer it is (an API key's digest; `None` where no keys are asked for), and its id.
pub(crate) type Name = (Option<[u8; 32]>, String);

/// A finished answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// As the client got it.
    pub(crate) body: Value,
    /// Everything said up to and with it.
    pub(crate) messages: Vec<ChatMessage>,
}

pub(crate) struct Stored {
    answers_max: usize,
    bytes_max: usize,
    age_max: Duration,
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    answers: HashMap<Name, Kept>,
    /// The same in the order of their coming.
    order: VecDeque<(Instant, Name)>,
    bytes: usize,
}

struct Kept {
    answer: Arc<Answer>,
    bytes: usize,
}

impl Stored {
    pub(crate) fn new(answers_max: usize, bytes_max: usize, age_max: Duration) -> Self {
        Self { answers_max, bytes_max, age_max, shelf: Mutex::default() }
    }

    pub(crate) fn put(&self, name: Name, answer: Answer, now: Instant) {
        let bytes = answer.bytes();
        if bytes > self.bytes_max || self.answers_max == 0 {
            return;
        }
        let mut shelf = self.shelf.lock();
        shelf.remove(&name);
        shelf.bytes += bytes;
        shelf.order.push_back((now, name.clone()));
        shelf.answers.insert(name, Kept { answer: Arc::new(answer), bytes });
        self.tidy(&mut shelf, now);
    }

    pub(crate) fn get(&self, name: &Name, now: Instant) -> Option<Arc<Answer>> {
        let mut shelf = self.shelf.lock();
        self.tidy(&mut shelf, now);
        shelf.answers.get(name).map(|kept| kept.answer.clone())
    }

    /// Whether it was there.
    pub(crate) fn remove(&self, name: &Name, now: Instant) -> bool {
        let mut shelf = self.shelf.lock();
        self.tidy(&mut shelf, now);
        shelf.remove(name)
    }

    /// Drops what is too old or too much.
    fn tidy(&self, shelf: &mut Shelf, now: Instant) {
        while let Some((since, name)) = shelf.order.front().cloned() {
            let old = now.saturating_duration_since(since) >= self.age_max;
            if !old && shelf.answers.len() <= self.answers_max && shelf.bytes <= self.bytes_max {
                break;
            }
            shelf.remove(&name);
        }
    }
}

impl Shelf {
    fn remove(&mut self, name: &Name) -> bool {
        let Some(kept) = self.answers.remove(name) else { return false };
        self.bytes -= kept.bytes;
        self.order.retain(|(_, other)| other != name);
        true
    }
}

impl Answer {
    /// Roughly what it holds in memory.
    fn bytes(&self) -> usize {
        let extra = |message: &ChatMessage| message.extra.values().map(|value| value.to_string().len()).sum::<usize>();
        let message = |message: &ChatMessage| {
            128 + message.role.len() + message.content.as_ref().map_or(0, String::len) + extra(message)
        };
        self.body.to_string().len() + self.messages.iter().map(message).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn name(owner: u8, id: &str) -> Name {
        (Some([owner; 32]), id.to_owned())
    }

    fn answer(text: &str) -> Answer {
        Answer { body: json!(text), messages: Vec::new() }
    }

    #[test]
    fn the_oldest_go_first_and_keys_are_apart() {
        let (stored, start) = (Stored::new(2, 1000, Duration::from_secs(10)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let there = |owner, id, seconds| stored.get(&name(owner, id), at(seconds)).is_some();
        stored.put(name(1, "a"), answer("x"), at(0));
        assert!(there(1, "a", 0) && !there(2, "a", 0));
        stored.put(name(1, "b"), answer("x"), at(1));
        stored.put(name(1, "c"), answer("x"), at(2));
        assert!(!there(1, "a", 2) && there(1, "b", 2) && there(1, "c", 2));
        assert!(there(1, "b", 10) && !there(1, "b", 11) && there(1, "c", 11));
        assert!(stored.remove(&name(1, "c"), at(11)) && !stored.remove(&name(1, "c"), at(11)));
    }

    #[test]
    fn bytes_are_bounded_and_come_back() {
        let (stored, now) = (Stored::new(100, 100, Duration::from_secs(10)), Instant::now());
        stored.put(name(1, "large"), answer(&"x".repeat(200)), now);
        assert!(stored.get(&name(1, "large"), now).is_none());
        for round in 0..50 {
            stored.put(name(1, "same"), answer(&"x".repeat(40)), now);
            stored.put(name(1, &round.to_string()), answer(&"x".repeat(40)), now);
        }
        let shelf = stored.shelf.lock();
        assert_eq!((shelf.answers.len(), shelf.bytes), (2, 84));
    }

    #[test]
    fn nothing_is_kept_where_nothing_may_be() {
        let (stored, now) = (Stored::new(0, 100, Duration::from_secs(10)), Instant::now());
        stored.put(name(1, "a"), answer("x"), now);
        assert!(stored.get(&name(1, "a"), now).is_none());
    }
}
