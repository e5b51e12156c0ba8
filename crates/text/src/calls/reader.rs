//! Reads one call, `{"name": ..., "arguments": {...}}`, character by character. `parameters` is another word for the arguments; what else
//! the object holds means nothing to a client.

use std::sync::Arc;

use super::json::{JsonScanner, Place, Step};
use super::parts::Parts;

#[derive(Clone, Debug)]
pub(super) struct CallReader {
    /// Functions that may be called.
    names: Arc<[String]>,
    scanner: JsonScanner,
    /// The member being read: its key and, as far as it is needed, its value.
    key: String,
    value: String,
    name: Option<String>,
    arguments: Arguments,
    /// Arguments that came before the name.
    held: String,
    begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arguments {
    Missing,
    Reading,
    Whole,
}

impl CallReader {
    pub(super) fn new(names: Arc<[String]>) -> Self {
        Self {
            names,
            scanner: JsonScanner::default(),
            key: String::new(),
            value: String::new(),
            name: None,
            arguments: Arguments::Missing,
            held: String::new(),
            begun: false,
        }
    }

    /// Whether the call has been told: what was read cannot become content any more.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether the call can be made, even if its object is never closed.
    pub(super) fn is_whole(&self) -> bool {
        self.begun && self.arguments == Arguments::Whole
    }

    pub(super) fn push(&mut self, c: char, parts: &mut Parts) -> Step {
        let before = self.scanner.place();
        let step = self.scanner.push(c);
        if step == Step::Broken {
            return step;
        }
        let after = self.scanner.place();
        let fits = match (before, after) {
            (Place::Between, Place::Key) => {
                self.key.clear();
                self.value.clear();
                true
            }
            (Place::Key, Place::Key) => {
                self.key.push(c);
                true
            }
            (Place::BeforeValue, Place::BeforeValue) => true,
            (Place::BeforeValue | Place::Value, _) => self.value(c, after == Place::Between, parts),
            _ => true,
        };
        match step {
            _ if !fits => Step::Broken,
            Step::Last => self.close(parts),
            _ => step,
        }
    }

    /// A character of a member's value, or the one that ends a number or a word. False: this is no call.
    fn value(&mut self, c: char, ended: bool, parts: &mut Parts) -> bool {
        match self.key.as_str() {
            "name" => {
                self.value.push(c);
                !ended || self.named(parts)
            }
            "arguments" | "parameters" => self.argument(c, ended, parts),
            _ => true,
        }
    }

    fn named(&mut self, parts: &mut Parts) -> bool {
        let Ok(name) = serde_json::from_str::<String>(&self.value) else { return false };
        if self.name.is_some() || !self.names.contains(&name) {
            return false;
        }
        self.name = Some(name);
        if self.arguments == Arguments::Whole {
            self.begin(parts);
        }
        true
    }

    fn argument(&mut self, c: char, ended: bool, parts: &mut Parts) -> bool {
        match self.arguments {
            Arguments::Whole => return false,
            Arguments::Missing if c == '{' => {
                self.arguments = Arguments::Reading;
                self.begin(parts);
            }
            // A null says the same as leaving them out.
            Arguments::Missing => {
                self.value.push(c);
                return ended || "null".starts_with(&self.value);
            }
            Arguments::Reading => {}
        }
        match self.begun {
            true => parts.arguments(c.encode_utf8(&mut [0; 4])),
            false => self.held.push(c),
        }
        if ended {
            self.arguments = Arguments::Whole;
        }
        true
    }

    /// Tells the call, once its name is there.
    fn begin(&mut self, parts: &mut Parts) {
        let Some(name) = self.name.clone() else { return };
        parts.call(name);
        parts.arguments(&std::mem::take(&mut self.held));
        self.begun = true;
    }

    fn close(&mut self, parts: &mut Parts) -> Step {
        if self.name.is_none() {
            return Step::Broken;
        }
        if self.arguments == Arguments::Missing {
            self.begin(parts);
            parts.arguments("{}");
            self.arguments = Arguments::Whole;
        }
        Step::Last
    }
}
