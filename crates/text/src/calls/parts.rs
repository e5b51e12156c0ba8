//! What an answer's text turned out to be, in order.

/// A stretch of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text for the reader.
    Content(String),
    /// A call begins. Calls are numbered from 0.
    Call { index: u32, name: String },
    /// More of a call's arguments: JSON text.
    Arguments { index: u32, text: String },
}

/// Collects parts; neighbours of a kind become one.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    parts: Vec<Part>,
    /// Calls begun, those beyond the limit included.
    calls: u32,
    /// Calls from this one on are left out.
    calls_max: u32,
}

impl Parts {
    pub(super) fn new(calls_max: u32) -> Self {
        Self { parts: Vec::new(), calls: 0, calls_max }
    }

    pub(super) fn take(&mut self) -> Vec<Part> {
        std::mem::take(&mut self.parts)
    }

    pub(super) fn calls(&self) -> u32 {
        self.calls
    }

    pub(super) fn content(&mut self, more: &str) {
        match self.parts.last_mut() {
            _ if more.is_empty() => {}
            Some(Part::Content(text)) => text.push_str(more),
            _ => self.parts.push(Part::Content(more.to_owned())),
        }
    }

    pub(super) fn call(&mut self, name: String) {
        let index = self.calls;
        self.calls += 1;
        if index < self.calls_max {
            self.parts.push(Part::Call { index, name });
        }
    }

    /// More arguments of the last call.
    pub(super) fn arguments(&mut self, more: &str) {
        let index = self.calls.saturating_sub(1);
        if more.is_empty() || index >= self.calls_max {
            return;
        }
        match self.parts.last_mut() {
            Some(Part::Arguments { text, .. }) => text.push_str(more),
            _ => self.parts.push(Part::Arguments { index, text: more.to_owned() }),
        }
    }
}
