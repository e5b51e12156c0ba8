//! Clients that ask questions whose answers are known, one after the other, and compare every byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::{Client, End, Said, Seen};

/// Failures and changes that are told in full.
const EXAMPLES_MAX: usize = 3;

/// A request and the answer that an undisturbed cluster gives.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) body: Value,
    pub(super) answer: Said,
}

/// What clients saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) whole: usize,
    pub(super) changed: usize,
    pub(super) refused: usize,
    pub(super) failed: usize,
    /// Of those that failed: no end came.
    pub(super) endless: usize,
    pub(super) worst_gap: Duration,
    /// Longest time in which no client got anything.
    pub(super) silence: Duration,
    pub(super) tokens: u64,
    pub(super) examples: Vec<String>,
    heard: Option<Instant>,
}

/// Closed loops that run until stopped.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
    tally: Arc<Mutex<Tally>>,
}

/// Sixteen requests with everything that a resumed stream could lose: seeds, penalties, logprobs, several choices, stop strings,
/// grammars, short and long prompts.
pub(super) fn questions() -> Vec<Value> {
    let words = "How does a prefill instance hand its blocks over to a decode instance, and what happens when one of them dies? ";
    let question = |number: usize| {
        let prompt = format!("{number}. {}", words.repeat(1 + number % 4 * 3));
        let mut body = json!({"prompt": prompt, "max_tokens": 96, "temperature": 0, "ignore_eos": true});
        let more = match number % 8 {
            1 => json!({"temperature": 1, "seed": number}),
            2 => json!({"temperature": 1, "seed": number, "presence_penalty": 0.5, "frequency_penalty": 0.3}),
            3 => json!({"logprobs": 2, "repetition_penalty": 1.2}),
            4 => json!({"n": 2, "temperature": 1.2, "seed": number, "max_tokens": 48}),
            5 => json!({"stop": ["qqqq", " the"], "min_tokens": 8}),
            6 => json!({"guided_regex": "([a-z]{2,8} ){12,20}end", "temperature": 1, "seed": number}),
            7 if number > 8 => {
                let parts =
                    json!({"type": "array", "minItems": 4, "maxItems": 8, "items": {"enum": ["prefill", "decode"]}});
                let schema = json!({"type": "object", "properties": {"parts": parts}, "required": ["parts"]});
                json!({"guided_json": schema, "temperature": 1, "seed": number})
            }
            _ => json!({}),
        };
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        body
    };
    (0..16).map(question).collect()
}

impl Load {
    /// `clients` closed loops; each begins at another question.
    pub(super) fn start(client: &Client, questions: &Arc<Vec<Question>>, clients: usize) -> Self {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Tally::default())));
        let mut running = JoinSet::new();
        for number in 0..clients {
            let (client, questions, stop, tally) = (client.clone(), questions.clone(), stop.clone(), tally.clone());
            running.spawn(async move {
                for question in questions.iter().cycle().skip(number % questions.len()) {
                    if stop.load(Relaxed) {
                        return;
                    }
                    let seen = client.complete(&question.body, || tally.lock().heard()).await;
                    let failed = !matches!(seen.end, End::Whole(_));
                    tally.lock().add(question, seen);
                    if failed {
                        // What failed at once would otherwise be asked again a thousand times a second.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            });
        }
        Self { stop, clients: running, tally }
    }

    /// Text pieces that came so far.
    pub(super) fn tokens(&self) -> u64 {
        self.tally.lock().tokens
    }

    /// Lets each client end its request.
    pub(super) async fn stop(mut self) -> Tally {
        self.stop.store(true, Relaxed);
        while self.clients.join_next().await.is_some() {}
        self.tally.lock().clone()
    }
}

impl Tally {
    /// A client got a piece of text.
    pub(super) fn heard(&mut self) {
        let now = Instant::now();
        self.tokens += 1;
        self.silence = self.silence.max(self.heard.map_or(Duration::ZERO, |before| now - before));
        self.heard = Some(now);
    }

    /// A request ended.
    pub(super) fn add(&mut self, question: &Question, seen: Seen) {
        self.worst_gap = self.worst_gap.max(seen.worst_gap);
        let example = match seen.end {
            End::Whole(said) if said == question.answer => {
                self.whole += 1;
                return;
            }
            End::Refused => {
                self.refused += 1;
                return;
            }
            End::Whole(said) => {
                self.changed += 1;
                format!("{} answered {said:?} instead of {:?}", question.body, question.answer)
            }
            End::Endless => {
                self.failed += 1;
                self.endless += 1;
                format!("{} was never answered to its end", question.body)
            }
            End::Failed(reason) => {
                self.failed += 1;
                reason
            }
        };
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(example);
        }
    }

    /// Whether every request got its whole, right answer.
    pub(super) fn is_clean(&self) -> bool {
        self.whole > 0 && (self.changed, self.failed, self.refused) == (0, 0, 0)
    }

    /// For the verdict table.
    pub(super) fn describe(&self) -> String {
        let Self { whole, changed, failed, refused, worst_gap, .. } = self;
        let mut text = format!("{whole} right, {changed} changed, {failed} failed");
        if *refused > 0 {
            text += &format!(", {refused} refused");
        }
        text + &format!(", worst gap {:.2} s", worst_gap.as_secs_f64())
    }
}
